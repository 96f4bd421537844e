//! Troubles that come again and again and are told once.
//!
//! What cannot be read stays so until somebody repairs it, and is met at every look. The log tells of it once in the life of
//! a server, of so many things at most; it is counted each time.

use std::{
    collections::BTreeSet,
    fmt::Display,
    sync::{Mutex, PoisonError},
};

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

/// Of how many things it is remembered that their trouble was told.
const TOLD_MAX: usize = 10_000;

/// Things whose trouble was told already, so that it does not fill the log. It is counted each time.
#[derive(Debug)]
pub struct Told<K> {
    about: BTreeSet<K>,
    troubles: Counter,
    is_full: bool,
}

impl<K> Told<K> {
    /// Counts in `troubles`.
    pub fn counting(troubles: Counter) -> Self {
        Self { about: BTreeSet::new(), troubles, is_full: false }
    }
}

/// Something that does not work for a while: told when it begins, and when it is over. Each trouble is counted.
#[derive(Debug)]
pub struct Outage {
    what: &'static str,
    since: Option<Instant>,
    troubles: Counter,
}

impl Outage {
    /// Of `what`; counts in `troubles`.
    pub fn counting(troubles: Counter, what: &'static str) -> Self {
        Self { what, since: None, troubles }
    }

    /// It did not work, once more.
    pub fn trouble(&mut self, error: &dyn Display) {
        self.troubles.inc();
        if self.since.is_none() {
            tracing::warn!(%error, "{}", self.what);
            self.since = Some(Instant::now());
        }
    }

    /// It works.
    pub fn over(&mut self) {
        if let Some(since) = self.since.take() {
            tracing::info!(after = ?since.elapsed(), "it is over: {}", self.what);
        }
    }
}

#[cfg(test)]
impl<K> Default for Told<K> {
    fn default() -> Self {
        Self::counting(Counter::default())
    }
}

impl<K: Ord> Told<K> {
    /// Tells what came of `error`, unless it was told of `about` before. Once it told of as many as it remembers, it says so
    /// and tells of no other.
    pub fn tell(&mut self, about: K, error: &dyn Display, what: &'static str) {
        self.troubles.inc();
        if self.about.len() < TOLD_MAX {
            if self.about.insert(about) {
                tracing::error!(%error, "{what}");
            }
        } else if !self.is_full && !self.about.contains(&about) {
            self.is_full = true;
            tracing::error!("{what}: that was told of {TOLD_MAX}; of others it is counted, and told no more");
        }
    }
}

/// Runs that cannot be read: each is told once, whoever's question meets it first, an agent's or that for a list.
#[derive(Debug)]
pub struct UnreadableRuns(Mutex<Told<String>>);

impl UnreadableRuns {
    /// Counts in `troubles`.
    pub fn counting(troubles: Counter) -> Self {
        Self(Mutex::new(Told::counting(troubles)))
    }

    /// Tells of the run with the id `run`; `error` names it.
    pub fn tell(&self, run: impl Display, error: &dyn Display) {
        let what = "a run cannot be read: it is not claimed and no lease of it is renewed until its row is repaired";
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tell(run.to_string(), error, what);
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;
    use crate::testing::log::Log;

    #[test]
    fn that_no_more_is_told_is_told_once() {
        let (log, mut told) = (Log::default(), Told::default());
        let _kept = log.keep(Level::ERROR);
        for _ in 0..2 {
            for about in 0..TOLD_MAX {
                told.tell(about, &"broken", "it stays so");
            }
        }
        assert_eq!((log.lines_with("broken"), log.lines_with("told no more")), (TOLD_MAX, 0));
        for about in 0..TOLD_MAX + 2 {
            told.tell(about, &"broken", "it stays so");
        }
        assert_eq!((log.lines_with("broken"), log.lines_with("told no more")), (TOLD_MAX, 1));
        assert_eq!(told.troubles.get(), 3 * TOLD_MAX as u64 + 2);
    }
}
