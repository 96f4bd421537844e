//! Faults that happen to something at one moment, and their end.

use std::time::Duration;

use crate::{
    network::{Process, Way},
    plan::Fault,
    time::{At, BootClock},
    world::{Event, World},
};

impl World {
    /// One fault happens, and the next is planned.
    pub(crate) fn fault(&mut self) {
        if self.now >= self.plan.faults_end {
            return;
        }
        let pause = self.chance.span(Duration::ZERO, self.plan.fault_every);
        self.later(pause, Event::Fault);
        let Some(fault) = self.plan.draw_fault(&mut self.chance) else { return };
        let (host, server) = (self.chance.index(self.hosts.len()), self.chance.index(self.servers.count()));
        let until = self.broken_until();
        self.note(format_args!("{fault:?} h{host} s{server} until {}", until.0));
        self.counts.faults[fault as usize] += 1;
        match fault {
            Fault::AgentDies => self.agent_dies(host, until),
            Fault::HostReboots => self.host_reboots(host, until),
            Fault::ShimDies => self.shim_dies(host),
            Fault::ServerDies => {
                self.servers.stop(server);
                self.asleep.retain(|_, (of, _)| *of != server);
                self.agenda.add(until, Event::StartServer(server));
            }
            Fault::AgentPauses => {
                self.hosts[host].paused_until = until;
            }
            Fault::Partition => self.cut(host, server, until),
            Fault::ClockJumps => {
                let ahead = self.chance.around(crate::time::micros(self.plan.jump_max));
                if !self.plan.jump_max.is_zero() {
                    self.servers.set_ahead(server, self.now, ahead);
                }
            }
        }
    }

    fn broken_until(&mut self) -> At {
        let most = if self.chance.is(500) { self.plan.broken_max } else { self.plan.lease.ttl / 4 };
        self.now.plus(self.chance.span(Duration::ZERO, most)).min(self.plan.faults_end)
    }

    fn agent_dies(&mut self, host: usize, until: At) {
        self.hosts[host].agent = None;
        self.agenda.add(until, Event::StartAgent(host));
    }

    /// The agent that could not make a sandbox dies, and is there again before its lease is over.
    pub(crate) fn agent_fails(&mut self, Process { host, life }: Process) {
        let is_it = self.hosts[host].agent.as_ref().is_some_and(|agent| agent.life == life);
        if is_it && self.now < self.plan.faults_end {
            let until = self.now.plus(self.chance.span(Duration::ZERO, self.plan.lease.ttl / 10));
            self.agent_dies(host, until);
        }
    }

    fn host_reboots(&mut self, host: usize, until: At) {
        self.agent_dies(host, until);
        let held: Vec<_> = self.hosts[host].disk.shims.keys().copied().collect();
        for held in held {
            self.kill_shim(host, held);
        }
        let clock = self.draw_boot_clock();
        let on = &mut self.hosts[host];
        on.boot += 1;
        on.clock = clock;
    }

    pub(crate) fn draw_boot_clock(&mut self) -> BootClock {
        let first = self.chance.between(1_000_000, 100_000_000);
        let rate_ppm = self.chance.around(self.plan.rate_ppm_max);
        BootClock { booted_at: self.now, first, rate_ppm }
    }

    fn shim_dies(&mut self, host: usize) {
        let alive = self.hosts[host].disk.shims.iter().filter(|(_, shim)| shim.is_alive);
        let alive: Vec<_> = alive.map(|(held, _)| *held).collect();
        if !alive.is_empty() {
            let held = alive[self.chance.index(alive.len())];
            self.kill_shim(host, held);
        }
    }

    fn cut(&mut self, host: usize, server: usize, until: At) {
        let ways = if self.chance.is(500) { vec![true, false] } else { vec![self.chance.is(500)] };
        let is_all = self.chance.is(600);
        for server in (0..self.servers.count()).filter(|index| is_all || *index == server) {
            for &is_there in &ways {
                self.cuts.insert(Way { host, server, is_there }, until);
            }
        }
    }
}
