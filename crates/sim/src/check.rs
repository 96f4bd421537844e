//! What must hold. At every step: at most one live sandbox of a run; nothing taken under an old fence; what a spool has let
//! go is stored; a run whose sandbox has ended is not executed again, and one that has ended stays as it ended. At the end:
//! each run has ended once, and its log and the events of its sandboxes are complete, in order and once.

use std::collections::{BTreeMap, BTreeSet};

use holm_domain::{
    RunId,
    lease::holder::Held,
    log::parse_all,
    run::{Event, EventKind, Run, RunState},
};
use holm_store::Segment;

use crate::shim::{place_of_event, place_of_line};

/// What is known of a run as it was stored last.
#[derive(Debug, Clone)]
struct Stored {
    fence: u64,
    version: u64,
    state: RunState,
    /// Whether it is in the queue and does not pause.
    is_ready: bool,
    ended: Option<Run>,
    head: u64,
    /// How many events it has.
    events: u64,
}

/// How far a run had come at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) fence: u64,
    written: (u64, u64, u64),
}

/// What a sandbox has written so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wrote {
    pub(crate) lines: u64,
    pub(crate) events: u64,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Checks {
    live: BTreeMap<RunId, u32>,
    stored: BTreeMap<RunId, Stored>,
    wrote: BTreeMap<Held, Wrote>,
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

    /// A sandbox has written so much in all.
    pub(crate) fn wrote(&mut self, held: Held, wrote: Wrote) {
        self.wrote.insert(held, wrote);
    }

    /// The end of a run was taken from its agent.
    pub(crate) fn finished(&mut self, held: Held) {
        self.finished.insert(held);
    }

    /// The sequence that follows what is stored of a run's log.
    pub(crate) fn head(&self, run: RunId) -> u64 {
        self.stored.get(&run).map_or(0, |stored| stored.head)
    }

    /// How many events of a run are stored.
    pub(crate) fn events(&self, run: RunId) -> u64 {
        self.stored.get(&run).map_or(0, |stored| stored.events)
    }

    /// The newest fence of each run, and what changes with whatever is taken for it.
    pub(crate) fn marks(&self) -> BTreeMap<RunId, Mark> {
        let mark =
            |stored: &Stored| Mark { fence: stored.fence, written: (stored.version, stored.head, stored.events) };
        self.stored.iter().map(|(run, stored)| (*run, mark(stored))).collect()
    }

    /// Whether a run is in the queue and may be claimed, and how often one was claimed.
    pub(crate) fn queue(&self) -> (bool, u64) {
        let is_ready = self.stored.values().any(|stored| stored.is_ready);
        (is_ready, self.stored.values().map(|stored| stored.fence).sum())
    }

    /// Whether every run of so many has ended.
    pub(crate) fn all_ended(&self, runs: usize) -> bool {
        self.stored.len() == runs && self.stored.values().all(|stored| stored.ended.is_some())
    }

    /// Takes in how a run is stored now, with so many events; returns whether it came into the queue, or what does not hold.
    pub(crate) fn look(&mut self, run: Run, head: u64, events: u64) -> Result<bool, String> {
        let before = self.stored.get(&run.id);
        if let Some(before) = before {
            if run.fence < before.fence || run.version < before.version || head < before.head {
                return Err("the store went back".to_owned());
            }
            let is_same = |ended: &Run| *ended == run && (head, events) == (before.head, before.events);
            if before.ended.as_ref().is_some_and(|ended| !is_same(ended)) {
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
        let (id, is_ready) = (run.id, is_queued && run.retry_at.is_none() && run.passed_over.is_empty());
        let ended = (state == RunState::Ended).then_some(run);
        self.stored.insert(id, Stored { fence, version, state, is_ready, ended, head, events });
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
        if events.len() as u64 != stored.events {
            return Err(format!("it has {} events, and had {}", events.len(), stored.events));
        }
        let lines = lines(log)?;
        if lines.len() as u64 + 1 != stored.head {
            return Err(format!("its log has {} lines and goes on at {}", lines.len(), stored.head));
        }
        let events = events.iter().filter_map(|event| place_of_event(&event.kind));
        let told = (
            self.told(run, lines, "line", |wrote| wrote.lines)?,
            self.told(run, events, "event", |wrote| wrote.events)?,
        );
        let last = Held { run, fence: ended.fence };
        let wrote = self.wrote.get(&last).copied().unwrap_or_default();
        let of_last = |told: &BTreeMap<u64, u64>| told.get(&last.fence).copied().unwrap_or(0);
        if self.finished.contains(&last) && (of_last(&told.0), of_last(&told.1)) != (wrote.lines, wrote.events) {
            return Err(format!("its agent told the end, and of {wrote:?} these are stored: {told:?}"));
        }
        Ok(())
    }

    /// How many lines, or events, each lease stored, each told as its lease and its place in what that wrote; each must be
    /// the next of what its sandbox wrote, and leases follow each other.
    fn told(
        &self,
        run: RunId,
        places: impl IntoIterator<Item = (u64, u64)>,
        what: &str,
        written: impl Fn(Wrote) -> u64,
    ) -> Result<BTreeMap<u64, u64>, String> {
        let mut told: BTreeMap<u64, u64> = BTreeMap::new();
        for (fence, index) in places {
            let newest = told.last_key_value().map_or(0, |(fence, _)| *fence);
            let next = told.entry(fence).or_default();
            let wrote = self.wrote.get(&Held { run, fence }).copied().unwrap_or_default();
            if fence < newest || index != *next || *next >= written(wrote) {
                return Err(format!("{what} {index} of lease {fence} stands where {next} of it or {newest} belongs"));
            }
            *next += 1;
        }
        Ok(told)
    }
}

/// The lease and the place of each line of a log.
fn lines(log: &[Segment]) -> Result<Vec<(u64, u64)>, String> {
    let mut lines = Vec::new();
    for segment in log {
        for batch in parse_all(&segment.bytes).map_err(|error| error.to_string())? {
            for entry in batch.read().map_err(|error| error.to_string())?.iter() {
                let next = lines.len() as u64 + 1;
                if entry.seq != next {
                    return Err(format!("its log has entry {} where {next} belongs", entry.seq));
                }
                let text = String::from_utf8_lossy(entry.data);
                lines.push(place_of_line(&text).ok_or_else(|| format!("its log has {text:?}, which nobody wrote"))?);
            }
        }
    }
    Ok(lines)
}
