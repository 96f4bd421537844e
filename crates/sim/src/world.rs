//! All there is in one simulation, and the loop that lets one event after the other happen.

use std::{collections::BTreeMap, fmt::Arguments, time::Duration};

use holm_domain::{AgentId, BootMicros, RunId, lease::holder::Held, run::Cancel};
use uuid::Uuid;

use crate::{
    Mutant, Setting,
    agenda::Agenda,
    agent::Host,
    chance::Chance,
    check::Checks,
    counts::Counts,
    disk::Disk,
    network::{Answer, Cuts, Process, Request},
    plan::{Noise, Plan},
    servers::{NoServers, Servers},
    shim::Place,
    time::{At, BootClock},
    trace::Trace,
    watch::Unclaimed,
    work::Purpose,
};

/// The most events of one simulation; none comes near.
const EVENTS_MAX: u64 = 1_000_000;

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A user submits a run, by its number.
    Submit(usize),
    /// A user asks for the end of a run.
    Cancel(usize, Cancel),
    Fault,
    /// An agent dies of what is wrong with its host.
    AgentFails(Process),
    StartAgent(usize),
    StartServer(usize),
    /// The reaper of a server, in one of its lives, makes a round.
    Reap {
        server: usize,
        life: u32,
    },
    /// An operation of a server uses the store and goes on.
    Step {
        server: usize,
        operation: u64,
        purpose: Purpose,
    },
    Arrive {
        server: usize,
        process: Process,
        call: u64,
        request: Request,
    },
    Answer {
        server: usize,
        process: Process,
        call: u64,
        answer: Answer,
    },
    Unanswered {
        process: Process,
        call: u64,
    },
    Claim(Process),
    Listen(Process),
    Wake(Process, BootMicros),
    Prepared(Process, Held),
    Look(Process, Held),
    Launch(Place),
    Line(Place),
    Alarm(Place, u64),
}

impl Event {
    /// The process that must be running for it to happen.
    fn of_agent(&self) -> Option<Process> {
        match self {
            Self::Answer { process, .. } | Self::Unanswered { process, .. } => Some(*process),
            Self::Claim(process) | Self::Listen(process) | Self::Wake(process, _) => Some(*process),
            Self::Prepared(process, _) | Self::Look(process, _) => Some(*process),
            _ => None,
        }
    }
}

/// What is told of one simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The digest of what happened.
    pub digest: String,
    /// What happened, where that was wanted.
    pub lines: Vec<String>,
    /// What did not hold, if anything.
    pub violation: Option<String>,
    /// How much happened.
    pub counts: Counts,
}

/// All there is in one simulation.
pub struct World {
    pub(crate) now: At,
    pub(crate) chance: Chance,
    pub(crate) plan: Plan,
    pub(crate) setting: Setting,
    pub(crate) agenda: Agenda<Event>,
    pub(crate) servers: Servers,
    pub(crate) hosts: Vec<Host>,
    pub(crate) cuts: Cuts,
    pub(crate) checks: Checks,
    pub(crate) counts: Counts,
    /// The operations that sleep: on which server, and what for.
    pub(crate) asleep: BTreeMap<u64, (usize, Purpose)>,
    pub(crate) calls: u64,
    pub(crate) shims: u64,
    /// The runs that were taken in, in that order.
    pub(crate) runs: Vec<RunId>,
    /// Since when a run waits although a host has room for it, and nothing was claimed meanwhile.
    pub(crate) unclaimed: Option<Unclaimed>,
    names: BTreeMap<RunId, usize>,
    trace: Trace,
    violation: Option<String>,
}

/// Simulates one seed to its end, or to the first thing that does not hold.
pub fn simulate(seed: u64, setting: Setting, trace: Trace) -> Result<Told, NoServers> {
    let mut world = World::new(seed, setting, trace)?;
    world.begin_all();
    world.run()?;
    if world.violation.is_none() {
        world.judge();
    }
    world.counts.conflicts = world.servers.conflicts();
    let (digest, lines) = world.trace.finish();
    Ok(Told { digest, lines, violation: world.violation, counts: world.counts })
}

impl World {
    fn new(seed: u64, setting: Setting, trace: Trace) -> Result<Self, NoServers> {
        let mut chance = Chance::new(seed);
        let plan = Plan::draw(&mut chance, setting);
        let skew = crate::time::micros(plan.skew_max);
        let ahead: Vec<i64> =
            (0..plan.servers).map(|_| i64::try_from(chance.between(0, skew)).unwrap_or_default()).collect();
        let servers = Servers::new(&plan, &ahead, setting.mutant == Some(Mutant::WeakSwap))?;
        Ok(Self {
            now: At::default(),
            chance,
            plan,
            setting,
            agenda: Agenda::default(),
            servers,
            hosts: Vec::new(),
            cuts: Cuts::new(),
            checks: Checks::default(),
            counts: Counts::default(),
            asleep: BTreeMap::new(),
            calls: 0,
            shims: 0,
            runs: Vec::new(),
            unclaimed: None,
            names: BTreeMap::new(),
            trace,
            violation: None,
        })
    }

    fn begin_all(&mut self) {
        let plan = format!("{:?}", self.plan);
        self.note(format_args!("{plan}"));
        for host in 0..self.plan.hosts {
            let clock = self.draw_boot_clock();
            let id = AgentId::from_uuid(Uuid::from_u128(100 + host as u128));
            let paused_until = At::default();
            self.hosts.push(Host { id, clock, boot: 0, lives: 0, paused_until, disk: Disk::default(), agent: None });
            self.start_agent(host);
        }
        for server in 0..self.servers.count() {
            self.later(Duration::ZERO, Event::Reap { server, life: self.servers.life(server) });
        }
        let until = self.plan.faults_end;
        for number in 0..self.plan.runs {
            let is_late = self.chance.is(200);
            let (least, most) = if is_late { (until, self.plan.submitted_by()) } else { (At(0), At(until.0 * 3 / 4)) };
            let at = At(self.chance.between(least.0, most.0));
            self.agenda.add(at, Event::Submit(number));
        }
        self.agenda.add(At::default(), Event::Fault);
        if self.chance.is(300) {
            let how = if self.chance.is(500) { Cancel::Terminate } else { Cancel::Kill };
            let at = At(self.chance.between(0, until.0));
            let run = self.chance.index(self.plan.runs);
            self.agenda.add(at, Event::Cancel(run, how));
        }
    }

    fn run(&mut self) -> Result<(), NoServers> {
        let last = self.plan.ended_by();
        while let Some(next_at) = self.agenda.next_at() {
            if let Some(woken_at) = self.servers.pass(next_at) {
                self.now = self.now.max(woken_at);
                self.rouse();
                continue;
            }
            let Some((at, event)) = self.agenda.pop() else { break };
            self.now = at;
            self.check_claims();
            self.counts.events += 1;
            if self.counts.events > EVENTS_MAX {
                self.violated("it goes on for ever".to_owned());
            }
            if self.violation.is_some() || at > last || self.is_over() {
                break;
            }
            self.happen(event)?;
            if self.setting.mutant == Some(Mutant::LostWakeUps) {
                // Whom time wakes was woken before.
                self.servers.woken();
            }
            self.rouse();
            self.see_unclaimed();
        }
        Ok(())
    }

    /// Nothing more will go wrong, and nothing is left to be done.
    fn is_over(&self) -> bool {
        self.now >= self.plan.faults_end
            && self.checks.all_ended(self.plan.runs)
            && self.hosts.iter().all(|host| host.disk.is_clear())
    }

    fn happen(&mut self, event: Event) -> Result<(), NoServers> {
        if let Some(process) = event.of_agent() {
            let host = &self.hosts[process.host];
            let until = host.paused_until;
            if self.now < until && host.agent.as_ref().is_some_and(|agent| agent.life == process.life) {
                self.agenda.add(until, event);
                return Ok(());
            }
        }
        match event {
            Event::Submit(number) => self.submit(number),
            Event::Step { server, operation, purpose } => self.step(server, operation, purpose),
            Event::Cancel(run, how) => self.cancel(run, how),
            Event::Fault => self.fault(),
            Event::AgentFails(process) => self.agent_fails(process),
            Event::StartAgent(host) => self.start_agent(host),
            Event::StartServer(server) => {
                let life = self.servers.start(server, self.now)?;
                self.note(format_args!("s{server} starts, life {life}"));
                self.later(Duration::ZERO, Event::Reap { server, life });
            }
            Event::Reap { server, life } => self.reap(server, life),
            Event::Arrive { server, process, call, request } => self.arrive(server, process, call, request),
            Event::Answer { server, process, call, answer } => self.answered(server, process, call, answer),
            Event::Unanswered { process, call } => self.unanswered(process, call),
            Event::Claim(process) => self.claim(process),
            Event::Listen(process) => self.listen(process),
            Event::Wake(process, due) => self.wake(process, due),
            Event::Prepared(process, held) => self.prepared(process, held),
            Event::Look(process, held) => self.look(process, held),
            Event::Launch(place) => self.launch(place),
            Event::Line(place) => self.write_line(place),
            Event::Alarm(place, alarm) => self.alarm(place, alarm),
        }
        Ok(())
    }

    /// The number of a run, which it gets when it is seen first.
    pub(crate) fn meet(&mut self, id: RunId) -> usize {
        *self.names.entry(id).or_insert_with(|| {
            self.runs.push(id);
            self.runs.len() - 1
        })
    }

    /// Has `event` happen after `pause`.
    pub(crate) fn later(&mut self, pause: Duration, event: Event) {
        self.agenda.add(self.now.plus(pause), event);
    }

    /// What the boot clock of a host shows.
    pub(crate) fn boot_now(&self, host: usize) -> BootMicros {
        let clock: BootClock = self.hosts[host].clock;
        clock.at(self.now)
    }

    /// What befalls messages now.
    pub(crate) fn noise(&self) -> Option<Noise> {
        (self.now < self.plan.faults_end).then_some(self.plan.noise)
    }

    /// A lease by the number of its run and its fence.
    pub(crate) fn name(&self, held: Held) -> String {
        let run = self.names.get(&held.run).map_or_else(|| "?".to_owned(), ToString::to_string);
        format!("r{run}/{}", held.fence)
    }

    pub(crate) fn note(&mut self, what: Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    /// Something does not hold. What came first counts.
    pub(crate) fn violated(&mut self, problem: String) {
        self.trace.note(self.now, format_args!("VIOLATED: {problem}"));
        self.violation.get_or_insert(problem);
    }
}
