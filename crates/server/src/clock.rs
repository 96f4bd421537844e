//! The one place of the server in which the time of day is read.
//!
//! Everything else takes the time from here, so that a test or a simulation can set it. Deadlines of requests and the pace
//! of tasks are no business of this clock: they run on tokio's monotonic timer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use holm_domain::UnixMicros;

/// Where the time of day comes from.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The clock of the machine.
    #[default]
    System,
    /// A clock that stands still until it is moved.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that shows `at` until it is moved.
    pub fn manual(at: UnixMicros) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(at.0)))
    }

    /// The time now. A machine whose clock stands before 1970 shows 1970.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> UnixMicros {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                UnixMicros(0).plus(since)
            }
            Self::Manual(at) => UnixMicros(at.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock on; a clock of a machine cannot be moved and stays as it is.
    pub fn advance(&self, span: Duration) {
        if let Self::Manual(at) = self {
            at.store(UnixMicros(at.load(Ordering::SeqCst)).plus(span).0, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(UnixMicros(5));
        let same = clock.clone();
        assert_eq!(clock.now(), UnixMicros(5));
        same.advance(Duration::from_micros(7));
        assert_eq!(clock.now(), UnixMicros(12), "clones show the same time");
    }

    #[test]
    fn the_clock_of_the_machine_is_past_2020() {
        assert!(Clock::System.now() > UnixMicros(1_577_836_800_000_000));
    }
}
