//! What must hold. At every step: at most one live sandbox of a run; nothing taken under an old fence; what a spool has let
//! go is stored; a run whose sandbox has ended is not executed again, and one that has ended stays as it ended. At the end:
//! each run has ended once, and its log is complete, in order and once.

use std::collections::{BTreeMap, BTreeSet};

use holm_domain::{
    RunId,
    lease::holder::Held,
    log::parse_all,
    run::{Event, EventKind, Run, RunState},
};
use holm_store::Segment;

use crate::shim::line;

/// What is known of a run as it was stored last.
#[derive(Debug, Clone)]
struct Stored {
    fence: u64,
    version: u64,
    state: RunState,
    ended: Option<Run>,
    head: u64,
}

/// How far a run had come at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) fence: u64,
    written: (u64, u64),
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Checks {
    live: BTreeMap<RunId, u32>,
    stored: BTreeMap<RunId, Stored>,
    wrote: BTreeMap<Held, u64>,
    /// What ended its run: the end that its agent told was taken.
    finished: BTreeSet<Held>,
}

impl Checks {
    /// A sandbox begins to live; true if another one of its run does.
    pub(crate) fn sandbox_lives(&mut self, held: Held) -> bool {
        let live = self.live.entry(held.run).or_default();
        *live += 1;
        *live > 1
    }

    pub(crate) fn sandbox_died(&mut self, held: Held) {
        let live = self.live.entry(held.run).or_default();
        *live = live.saturating_sub(1);
    }

    /// A sandbox has written so many lines in all.
    pub(crate) fn wrote(&mut self, held: Held, lines: u64) {
        self.wrote.insert(held, lines);
    }

    /// The end of a run was taken from its agent.
    pub(crate) fn finished(&mut self, held: Held) {
        self.finished.insert(held);
    }

    /// The sequence that follows what is stored of a run's log.
    pub(crate) fn head(&self, run: RunId) -> u64 {
        self.stored.get(&run).map_or(0, |stored| stored.head)
    }

    /// The newest fence of each run, and what changes with whatever is taken for it.
    pub(crate) fn marks(&self) -> BTreeMap<RunId, Mark> {
        let mark = |stored: &Stored| Mark { fence: stored.fence, written: (stored.version, stored.head) };
        self.stored.iter().map(|(run, stored)| (*run, mark(stored))).collect()
    }

    /// Whether every run of so many has ended.
    pub(crate) fn all_ended(&self, runs: usize) -> bool {
        self.stored.len() == runs && self.stored.values().all(|stored| stored.ended.is_some())
    }

    /// Takes in how a run is stored now; returns whether it came into the queue, or what does not hold.
    pub(crate) fn look(&mut self, run: Run, head: u64) -> Result<bool, String> {
        let before = self.stored.get(&run.id);
        if let Some(before) = before {
            if run.fence < before.fence || run.version < before.version || head < before.head {
                return Err("the store went back".to_owned());
            }
            if before.ended.as_ref().is_some_and(|ended| *ended != run || head != before.head) {
                return Err("a run changed after its end".to_owned());
            }
            let may_follow = [RunState::Finishing, RunState::Ended].contains(&run.state);
            if before.state == RunState::Finishing && !may_follow {
                return Err("a run whose sandbox had ended is executed again".to_owned());
            }
        }
        let is_queued = run.state == RunState::Queued;
        let came = is_queued && before.is_none_or(|before| before.state != RunState::Queued);
        let (fence, version, state) = (run.fence, run.version, run.state);
        let id = run.id;
        let ended = (state == RunState::Ended).then_some(run);
        self.stored.insert(id, Stored { fence, version, state, ended, head });
        Ok(came)
    }

    /// What does not hold of a run that should have ended.
    pub(crate) fn judge(&self, run: RunId, events: &[Event], log: &[Segment]) -> Result<(), String> {
        let stored = self.stored.get(&run).ok_or("it was not taken in")?;
        let ended =
            stored.ended.as_ref().ok_or_else(|| format!("it is {} and has not ended", stored.state.as_str()))?;
        let ends: Vec<_> = events.iter().filter(|event| matches!(event.kind, EventKind::Ended { .. })).collect();
        let is_last = events.last().is_some_and(|event| matches!(event.kind, EventKind::Ended { .. }));
        if ends.len() != 1 || !is_last {
            return Err(format!("it ended {} times", ends.len()));
        }
        let lines = lines(log)?;
        if lines.len() as u64 + 1 != stored.head {
            return Err(format!("its log has {} lines and goes on at {}", lines.len(), stored.head));
        }
        let told = self.told(run, &lines)?;
        let last = Held { run, fence: ended.fence };
        let wrote = self.wrote.get(&last).copied().unwrap_or(0);
        if self.finished.contains(&last) && told.get(&last.fence).copied().unwrap_or(0) != wrote {
            return Err(format!("its agent told the end, and of {wrote} lines {told:?} are stored"));
        }
        Ok(())
    }

    /// How many lines each lease stored; each must be the next of what its sandbox wrote, and leases follow each other.
    fn told(&self, run: RunId, lines: &[String]) -> Result<BTreeMap<u64, u64>, String> {
        let mut told: BTreeMap<u64, u64> = BTreeMap::new();
        for text in lines {
            let fence = text.split(' ').next().and_then(|fence| fence.parse().ok()).unwrap_or(0);
            let newest = told.last_key_value().map_or(0, |(fence, _)| *fence);
            let next = told.entry(fence).or_default();
            let wrote = self.wrote.get(&Held { run, fence }).copied().unwrap_or(0);
            if fence < newest || *next >= wrote || *text != line(fence, *next) {
                return Err(format!("its log has {text:?} where line {next} of lease {newest} or a later one belongs"));
            }
            *next += 1;
        }
        Ok(told)
    }
}

fn lines(log: &[Segment]) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    let mut next = 1;
    for segment in log {
        for batch in parse_all(&segment.bytes).map_err(|error| error.to_string())? {
            for entry in batch.read().map_err(|error| error.to_string())?.iter() {
                if entry.seq != next {
                    return Err(format!("its log has entry {} where {next} belongs", entry.seq));
                }
                next += 1;
                lines.push(String::from_utf8_lossy(entry.data).into_owned());
            }
        }
    }
    Ok(lines)
}
