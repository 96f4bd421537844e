//! Does to a fleet what a schedule says, counts what came of it, and starts again what ended by itself for a good reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use holm_e2e::{Fleet, network::Cut, ran::send, world::fleet::Part};
use rustix::process::Signal;

use super::{
    runs::Runs,
    schedule::{Due, Fault, Step},
};

/// How often it is looked whether something ended by itself.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// When a server that ended by itself is started again, as whoever looks after services would.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Why a server may end by itself, in its own words: its database is away when it starts, or goes meanwhile, or somebody has
/// got its port.
const GOOD_REASONS: [&str; 3] = ["cannot open the database", "the store did not answer", "cannot listen on"];

/// How often something happened.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub servers_killed: usize,
    /// Of these, while sandboxes were alive.
    pub servers_killed_under_runs: usize,
    pub servers_paused: usize,
    pub servers_started_again: usize,
    pub agents_killed: usize,
    pub agents_paused: usize,
    pub wires_cut: usize,
    pub wires_cut_one_way: usize,
    pub shims_killed: usize,
    pub shims_paused: usize,
    pub databases_ended: usize,
    /// Sandboxes that their shims killed at their deadline while their agent was dead or stood still.
    pub killed_by_deadline: usize,
}

/// A fleet to which a schedule happens.
pub struct Driver<'a> {
    fleet: &'a mut Fleet,
    runs: Runs,
    begun: Instant,
    /// What ended by itself, and when it is started again.
    down: BTreeMap<Part, Instant>,
    paused: BTreeSet<Part>,
    shims: BTreeMap<u64, u32>,
    /// Of each agent that is dead or stands still, what its shims had killed before.
    killed_before: BTreeMap<usize, BTreeSet<PathBuf>>,
    counts: Counts,
}

impl<'a> Driver<'a> {
    pub fn new(fleet: &'a mut Fleet, runs: Runs) -> Self {
        Self {
            fleet,
            runs,
            begun: Instant::now(),
            down: BTreeMap::new(),
            paused: BTreeSet::new(),
            shims: BTreeMap::new(),
            killed_before: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// Does it all. Afterwards everything runs, or is about to.
    #[track_caller]
    pub fn follow(mut self, schedule: &[Due]) -> (Runs, Counts) {
        for due in schedule {
            let at = self.begun + Duration::from_millis(due.at_ms);
            while let Some(left) = at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                self.look_after();
                thread::sleep(left.min(LOOK_EVERY));
            }
            match due.step {
                Step::Submit { lines, pause_ms } => self.runs.submit(lines, pause_ms),
                Step::Cancel { run, kill } => self.runs.cancel(run, kill),
                Step::Read { run } => self.runs.read(run),
                Step::Begin(fault) => self.begin(fault),
                Step::End(fault) => self.end(fault),
            }
        }
        while !self.down.is_empty() {
            self.look_after();
            thread::sleep(LOOK_EVERY);
        }
        (self.runs, self.counts)
    }

    /// Starts again what ended by itself and was to; whatever else ends by itself fails the test.
    #[track_caller]
    fn look_after(&mut self) {
        while let Some((part, ran)) = self.fleet.fallen() {
            let said = ran.complaint();
            // Its last word, which a server that has begun to serve does not have.
            let last = said.lines().filter_map(|line| line.strip_prefix("holm: ")).next_back().unwrap_or_default();
            let is_good = matches!(part, Part::Server(_)) && GOOD_REASONS.iter().any(|reason| last.contains(reason));
            assert!(is_good, "{part:?} ended by itself: {ran}");
            self.down.insert(part, Instant::now() + AGAIN_AFTER);
        }
        let now = Instant::now();
        let due: Vec<Part> = self.down.iter().filter(|(_, at)| **at <= now).map(|(part, _)| *part).collect();
        for part in due {
            self.down.remove(&part);
            self.fleet.launch(part);
            self.counts.servers_started_again += 1;
        }
    }

    #[track_caller]
    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Killed(part) => self.kill(part),
            Fault::Paused(part) => self.pause(part),
            Fault::Cut(agent, cut) => {
                self.fleet.cut(agent, cut);
                self.counts.wires_cut += 1;
                let is_one_way = matches!(cut, Cut::ToHost | Cut::FromHost);
                self.counts.wires_cut_one_way += usize::from(is_one_way);
            }
            Fault::ShimKilled(which) => {
                if let Some(shim) = self.shim(which) {
                    send(shim, Signal::KILL);
                    self.counts.shims_killed += 1;
                }
            }
            Fault::ShimPaused(which) => {
                if let Some(shim) = self.shim(which) {
                    send(shim, Signal::STOP);
                    self.shims.insert(which, shim);
                    self.counts.shims_paused += 1;
                }
            }
            Fault::Database { crash } => {
                if crash {
                    self.fleet.postgres.crash()
                } else {
                    self.fleet.postgres.stop()
                }
                self.counts.databases_ended += 1;
            }
        }
    }

    #[track_caller]
    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Killed(part) => {
                self.count_kills(part);
                self.fleet.launch(part);
            }
            Fault::Paused(part) => {
                if self.paused.remove(&part) {
                    self.count_kills(part);
                    self.fleet.resume(part);
                }
            }
            Fault::Cut(agent, _) => self.fleet.mend(agent),
            Fault::ShimKilled(_) => {}
            Fault::ShimPaused(which) => {
                if let Some(shim) = self.shims.remove(&which) {
                    send(shim, Signal::CONT);
                }
            }
            Fault::Database { .. } => self.fleet.postgres.start_again(),
        }
    }

    #[track_caller]
    fn kill(&mut self, part: Part) {
        let has_runs = !self.fleet.shims().is_empty();
        // One that has just ended by itself is not there, and is started when this is over.
        let was_down = self.down.remove(&part).is_some();
        if !was_down {
            self.fleet.kill(part);
        }
        match part {
            Part::Server(_) => {
                self.counts.servers_killed += 1;
                self.counts.servers_killed_under_runs += usize::from(has_runs && !was_down);
            }
            Part::Agent(agent) => {
                self.counts.agents_killed += 1;
                self.killed_before.insert(agent, self.fleet.killed_by_deadline(agent));
            }
        }
    }

    fn pause(&mut self, part: Part) {
        if !self.fleet.is_there(part) {
            return;
        }
        self.fleet.pause(part);
        self.paused.insert(part);
        match part {
            Part::Server(_) => self.counts.servers_paused += 1,
            Part::Agent(agent) => {
                self.counts.agents_paused += 1;
                self.killed_before.insert(agent, self.fleet.killed_by_deadline(agent));
            }
        }
    }

    /// Nobody but the shims could kill anything while an agent was dead or stood still.
    fn count_kills(&mut self, part: Part) {
        let Part::Agent(agent) = part else { return };
        let before = self.killed_before.remove(&agent).unwrap_or_default();
        self.counts.killed_by_deadline += self.fleet.killed_by_deadline(agent).difference(&before).count();
    }

    fn shim(&self, which: u64) -> Option<u32> {
        let shims = self.fleet.shims();
        let index = usize::try_from(which % shims.len().max(1) as u64).ok()?;
        shims.get(index).copied()
    }
}
