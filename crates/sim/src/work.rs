//! The operations of servers, one use of the store after the other, and what happens once they are done.

use std::{collections::BTreeMap, time::Duration};

use holm_domain::{
    RunId,
    lease::holder::Held,
    run::{Cancel, RunSpec},
};

use crate::{
    check::Mark,
    network::{Process, Request},
    servers::{Done, Job, Step},
    world::{Event, World},
};

/// How long a use of the store takes at most where the disk is not slow.
const STEP_MAX: Duration = Duration::from_micros(500);

/// What an operation is for.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// An agent wants an answer.
    Answer(Box<Asked>),
    /// A user submits a run, by its number.
    Submit(usize),
    /// A user asks for the end of a run, by its number.
    Cancel(usize, Cancel),
    /// The reaper of a server, in one of its lives, makes a round.
    Reap(u32),
}

/// A request that a server works on.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) process: Process,
    pub(crate) call: u64,
    pub(crate) request: Request,
    /// How far each run had come when the work began.
    pub(crate) marks: BTreeMap<RunId, Mark>,
}

impl World {
    /// A server begins with a job, if it is up.
    pub(crate) fn work(&mut self, server: usize, job: Job, purpose: Purpose) {
        match self.servers.begin(server, job) {
            Some(operation) => self.step(server, operation, purpose),
            None => self.not_done(&purpose),
        }
    }

    /// An operation goes on to its next use of the store, or to its end.
    pub(crate) fn step(&mut self, server: usize, operation: u64, purpose: Purpose) {
        let leases = match &purpose {
            Purpose::Answer(asked) => asked.request.leases(),
            _ => Vec::new(),
        };
        let before = if leases.is_empty() { BTreeMap::new() } else { self.checks.marks() };
        let step = self.servers.step(operation, self.now);
        self.look_at_store();
        self.check_written(&leases, &before);
        match step {
            Some(Step::Done(done)) => self.done(server, purpose, done),
            Some(Step::Waits) => {
                let is_slow = self.now < self.plan.faults_end;
                let most = if is_slow { STEP_MAX.max(self.plan.step_max) } else { STEP_MAX };
                let pause = self.chance.span(Duration::ZERO, most);
                self.later(pause, Event::Step { server, operation, purpose });
            }
            Some(Step::Sleeps) => {
                self.asleep.insert(operation, (server, purpose));
            }
            None => self.not_done(&purpose),
        }
    }

    /// Operations that were woken go on soon.
    pub(crate) fn rouse(&mut self) {
        for operation in self.servers.woken() {
            if let Some((server, purpose)) = self.asleep.remove(&operation) {
                let pause = self.chance.span(Duration::ZERO, STEP_MAX);
                self.later(pause, Event::Step { server, operation, purpose });
            }
        }
    }

    fn done(&mut self, server: usize, purpose: Purpose, done: Done) {
        match (purpose, done) {
            (Purpose::Answer(asked), Done::Answered(answer)) => self.answer(server, *asked, answer),
            (Purpose::Submit(number), Done::Created(created)) => self.submitted(server, number, created),
            (Purpose::Cancel(run, how), Done::Cancelled(true)) => {
                self.note(format_args!("s{server} was asked for the end of r{run}: {how:?}"));
            }
            (Purpose::Reap(life), Done::Reaped(pause)) => self.later(pause, Event::Reap { server, life }),
            _ => {}
        }
    }

    /// The server was down, or died while it worked. Whoever waits for an answer gives up by itself.
    fn not_done(&mut self, purpose: &Purpose) {
        if let Purpose::Submit(number) = purpose {
            let pause = self.plan.lease.ttl / 10;
            self.later(pause, Event::Submit(*number));
        }
    }

    /// A user submits a run; again with the same key while nobody says that it was taken in.
    pub(crate) fn submit(&mut self, number: usize) {
        let mut spec = RunSpec::new(["true"]);
        spec.limits.timeout_ms = crate::time::micros(self.plan.time_limit) / 1_000;
        let server = self.chance.index(self.servers.count());
        self.work(server, Job::Create(spec, number), Purpose::Submit(number));
    }

    fn submitted(&mut self, server: usize, number: usize, created: Option<RunId>) {
        match created.map(|run| self.name(Held { run, fence: 0 })) {
            Some(name) => self.note(format_args!("s{server} has taken {name} in")),
            None => self.not_done(&Purpose::Submit(number)),
        }
    }

    /// A user asks for the end of a run, if it was taken in.
    pub(crate) fn cancel(&mut self, run: usize, how: Cancel) {
        let Some(id) = self.runs.get(run).copied() else { return };
        let server = self.chance.index(self.servers.count());
        self.work(server, Job::Cancel(id, how), Purpose::Cancel(run, how));
    }

    /// The reaper of a server, in one of its lives, makes a round.
    pub(crate) fn reap(&mut self, server: usize, life: u32) {
        if self.servers.life(server) == life {
            self.work(server, Job::Reap, Purpose::Reap(life));
        }
    }
}
