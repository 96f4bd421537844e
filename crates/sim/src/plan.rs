//! What a seed has in store: times, sizes, and how much each fault weighs.
//!
//! All of it stays within the fault model. What shares the margin: how far the clocks of servers are apart, how fast a
//! host's clock is over a lease, how slowly a server's clock follows a time of day that was set, and how late a shim is
//! scheduled. Together they take less than all of it.

use std::time::Duration;

use holm_domain::limits::LeaseConfig;

use crate::{Mutant, Setting, chance::Chance, time::At};

/// What with a fiftieth of any lease here is a margin that a server takes.
const LEAST_MARGIN: Duration = Duration::from_millis(40);

/// How long an agent has a poll wait that offers a part of its host: what is given back meanwhile may make fit what did not.
pub(crate) const PART_WAIT: Duration = Duration::from_secs(1);
/// How long messages, and the operations of a server, take at most until a run is claimed.
const CLAIM_MAX: Duration = Duration::from_millis(500);

/// A fault that happens to something at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An agent dies and is started again.
    AgentDies,
    /// A host is booted anew, with all that ran on it.
    HostReboots,
    /// A shim dies, and its sandbox with it.
    ShimDies,
    /// A server dies and is started again.
    ServerDies,
    /// An agent stands still for a while.
    AgentPauses,
    /// Nothing gets through between a host and a server, in one direction or both.
    Partition,
    /// The time of day of a server is set.
    ClockJumps,
}

impl Fault {
    /// Every fault, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::AgentDies,
        Self::HostReboots,
        Self::ShimDies,
        Self::ServerDies,
        Self::AgentPauses,
        Self::Partition,
        Self::ClockJumps,
    ];
}

/// How often something befalls a message, in a thousand.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    /// It is lost.
    pub lost: u64,
    /// It arrives twice.
    pub doubled: u64,
    /// It takes long: up to `Plan::delay_max`.
    pub delayed: u64,
    /// Where its way is cut, it is held until that is over instead of lost.
    pub held: u64,
}

/// What a seed has in store.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How leases work.
    pub lease: LeaseConfig,
    /// The margin that the faults share, also where servers are told another one.
    pub margin: Duration,
    /// The time limit of the commands.
    pub time_limit: Duration,
    /// How many hosts there are.
    pub hosts: usize,
    /// How many servers there are.
    pub servers: usize,
    /// How many runs there are.
    pub runs: usize,
    /// How many runs a host takes at once.
    pub places: u32,
    /// How long an agent has a poll wait that offers all of its host.
    pub poll_wait: Duration,
    /// How long a server that is not alone lets a poll wait until it looks again.
    pub reread_every: Duration,
    /// When the last fault has happened.
    pub faults_end: At,
    /// The pause between two faults at most.
    pub fault_every: Duration,
    /// How long what is broken stays so, at most.
    pub broken_max: Duration,
    /// The longest delay of a message.
    pub delay_max: Duration,
    /// What befalls messages.
    pub noise: Noise,
    /// How long a command works at most.
    pub work_max: Duration,
    /// How many lines a command writes at most.
    pub lines_max: u64,
    /// How long a use of the store takes at most.
    pub step_max: Duration,
    /// How late a shim is scheduled at most.
    pub late_max: Duration,
    /// How far the clocks of two servers are apart at most.
    pub skew_max: Duration,
    /// How far a time of day is set at most; nothing but zero where there are several servers.
    pub jump_max: Duration,
    /// How fast or slow the clock of a host is at most, in parts per million.
    pub rate_ppm_max: u64,
    weights: Vec<(Fault, u64)>,
}

impl Plan {
    pub(crate) fn draw(chance: &mut Chance, setting: Setting) -> Self {
        let ttl = Duration::from_millis(chance.between(3_000, 30_000));
        let margin = ttl / 6;
        let servers = chance.index(3) + 1;
        let (runs, is_single) = (chance.index(8) + 1, servers == 1);
        let has_margin = setting.mutant != Some(Mutant::NoMargin);
        // The pause before a run is granted anew does what the margin does: in half of the seeds there is none.
        let has_pause = ttl.as_millis() % 2 == 1;
        let lease = LeaseConfig {
            ttl,
            margin: if has_margin { margin } else { ttl / 50 + LEAST_MARGIN },
            queue_deadline: ttl * 40,
            attempts_max: 3,
            retry_pause: if has_pause { ttl / 10 } else { Duration::ZERO },
            overhead: ttl * 3,
            finishing: ttl * 3,
        };
        let noise = Noise {
            lost: level(chance, 250),
            doubled: level(chance, 300),
            delayed: level(chance, 300),
            held: level(chance, 1_000),
        };
        Self {
            lease,
            margin,
            time_limit: ttl * 4,
            hosts: chance.index(3) + 2,
            servers,
            runs,
            places: 1 + chance.index(runs) as u32,
            poll_wait: ttl * chance.between(1, 16) as u32 / 16,
            reread_every: if is_single { ttl * 2 } else { ttl * chance.between(1, 8) as u32 / 32 },
            faults_end: At::default().plus(ttl * chance.between(6, 16) as u32),
            fault_every: ttl * chance.between(1, 24) as u32 / 16,
            broken_max: ttl * chance.between(1, 3) as u32,
            delay_max: ttl * chance.between(1, 12) as u32 / 8,
            noise,
            work_max: ttl * chance.between(1, 40) as u32 / 8,
            lines_max: chance.between(0, 20),
            step_max: if chance.is(250) { ttl * chance.between(1, 32) as u32 / 512 } else { Duration::ZERO },
            late_max: if setting.late_shims { ttl * 3 } else { margin * 3 / 10 },
            skew_max: margin * 3 / 10,
            jump_max: if is_single { ttl * 3 } else { Duration::ZERO },
            rate_ppm_max: 5_000,
            weights: Fault::ALL.map(|fault| (fault, level(chance, 8))).to_vec(),
        }
    }

    /// A fault, drawn by weight; nothing where none weighs anything.
    pub(crate) fn draw_fault(&self, chance: &mut Chance) -> Option<Fault> {
        let all: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut left = if all == 0 { return None } else { chance.between(1, all) };
        self.weights.iter().find_map(|&(fault, weight)| {
            let is_it = left <= weight;
            left = left.saturating_sub(weight);
            is_it.then_some(fault)
        })
    }

    /// When the last run is submitted: some are once no fault happens any more.
    pub fn submitted_by(&self) -> At {
        At(self.faults_end.0 * 3 / 2)
    }

    /// From when on nothing is felt of the faults: each agent is registered and asks for work as it should.
    pub fn calm_from(&self) -> At {
        self.faults_end.plus(self.lease.ttl * 2)
    }

    /// How long a run may wait at most for a host that has room for it, once nothing is felt of the faults: until a poll
    /// that offers a part of a host is over and the next one looks; where a server hears nothing of what happens on others,
    /// until it looks again.
    pub fn unclaimed_max(&self) -> Duration {
        let unheard = if self.servers == 1 { Duration::ZERO } else { self.reread_every };
        PART_WAIT + unheard + CLAIM_MAX
    }

    /// When every run must have ended, and nothing be left on any host: each attempt at its latest, one run after the other,
    /// on servers that were started last when the faults ended.
    pub fn ended_by(&self) -> At {
        let LeaseConfig { ttl, margin, overhead, finishing, attempts_max, .. } = self.lease;
        let pause = self.lease.retry_pause_after(attempts_max);
        let attempt = self.time_limit + overhead + finishing + (ttl + margin) * 2 + pause;
        let restart = ttl + margin + self.jump_max * 2;
        self.submitted_by().plus((attempt * attempts_max) * self.runs as u32 + restart + self.late_max)
    }
}

/// How strong something is: nothing half of the time.
fn level(chance: &mut Chance, most: u64) -> u64 {
    if chance.is(500) { 0 } else { chance.between(1, most) }
}
