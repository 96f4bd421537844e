//! The one place of the server in which a clock is read.
//!
//! The server takes the time of day once, when it starts, and counts on by CLOCK_BOOTTIME (clock_gettime(2)), which nobody
//! can set and which goes on while the machine sleeps. So a time of day that jumps expires no lease, gives up no run,
//! deletes no log and ends no token, and one that is set back keeps none of them. What is shown follows the machine by at
//! most one part in [`FOLLOWS_ONE_IN`] of what passes, so that a clock that was put right is right here after a while, and
//! after a restart at once.
//!
//! What always holds: the time never goes back while a server lives; over the length of a lease it differs from the boot
//! clock by less than the margin, which [`holm_domain::limits::LeaseConfig::validate`] sees to.
//!
//! Servers that share a database have to agree with one another more than with themselves: there each shows the time of day
//! as its machine has it ([`Clock::of_day`]), and machines have to keep it alike.
//!
//! Everything else takes the time from here, so that a test or a simulation can set it. Deadlines of requests and the pace
//! of tasks are no business of this clock: they run on tokio's monotonic timer.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use holm_domain::{UnixMicros, limits::CLOCK_FOLLOWS_ONE_IN as FOLLOWS_ONE_IN};
use rustix::time::{ClockId, clock_gettime};

const NANOS: i128 = 1_000_000_000;

/// A jump of the time of day that is worth a word, in nanoseconds.
const TOLD_FROM: i128 = NANOS;

/// The least by which the time of day is said to be ahead or behind, in nanoseconds. Less may come of the two clocks of a
/// machine being read one after the other.
const GAP_MIN: i128 = NANOS / 100;

/// Where the time comes from. Clones show the same time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    hands: Hands,
    /// Whether the time of day is shown as it is.
    is_of_day: bool,
    count: Arc<Mutex<Option<Count>>>,
}

#[derive(Debug, Clone, Default)]
enum Hands {
    #[default]
    Machine,
    Manual(Arc<Manual>),
}

/// Two clocks that stand still until they are moved, in microseconds.
#[derive(Debug)]
struct Manual {
    of_day: AtomicI64,
    boot: AtomicI64,
}

/// What both clocks of a machine show at one instant, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    of_day: i128,
    boot: i128,
}

/// What was shown last, and how far the time of day was ahead of it then; in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    shown: i128,
    boot: i128,
    gap: i128,
}

impl Count {
    /// The time of day as it is: there was no reading before.
    fn begin(at: Reading) -> Self {
        Self { shown: at.of_day, boot: at.boot, gap: 0 }
    }

    /// Counts on to the instant of `at`, towards the time of day.
    fn on(self, at: Reading) -> Self {
        let passed = (at.boot - self.boot).max(0);
        let counted = self.shown + passed;
        let most = passed / i128::from(FOLLOWS_ONE_IN);
        let shown = counted + (at.of_day - counted).clamp(-most, most);
        Self { shown, boot: self.boot.max(at.boot), gap: at.of_day - shown }
    }
}

impl Clock {
    /// A clock that shows `at` until it is moved.
    pub fn manual(at: UnixMicros) -> Self {
        let manual = Manual { of_day: AtomicI64::new(at.0), boot: AtomicI64::new(0) };
        Self { hands: Hands::Manual(Arc::new(manual)), ..Self::default() }
    }

    /// The same hands, followed at once wherever they are set.
    pub fn of_day(self) -> Self {
        Self { is_of_day: true, ..self }
    }

    /// The time now.
    pub fn now(&self) -> UnixMicros {
        if self.is_of_day {
            return self.time_of_day();
        }
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: what is shown later was read later.
        let at = self.hands.read();
        let next = count.map_or_else(|| Count::begin(at), |count| count.on(at));
        let jumped = next.gap - count.map_or(0, |count| count.gap);
        *count = Some(next);
        drop(count);
        if jumped.abs() > TOLD_FROM {
            let seconds = jumped / NANOS;
            tracing::warn!(
                seconds,
                "the time of day was set; the server counts on as if it had not been and follows slowly, restart it to follow at once"
            );
        }
        UnixMicros(i64::try_from(next.shown / 1_000).unwrap_or(i64::MAX))
    }

    /// The time of day as the machine has it, wherever it is set. For what another machine has written by its own.
    pub fn time_of_day(&self) -> UnixMicros {
        UnixMicros(i64::try_from(self.hands.read().of_day / 1_000).unwrap_or(i64::MAX))
    }

    /// By how many microseconds the time of day is ahead of what is shown; negative where it is behind. For what is compared
    /// with other machines and decides nothing.
    pub fn gap_micros(&self) -> i64 {
        self.now();
        let count = *self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let gap = count.map_or(0, |count| count.gap);
        if gap.abs() < GAP_MIN { 0 } else { i64::try_from(gap / 1_000).unwrap_or(0) }
    }

    /// Lets time pass on a manual clock; a clock of a machine cannot be moved and stays as it is.
    pub fn advance(&self, span: Duration) {
        if let Hands::Manual(manual) = &self.hands {
            let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
            manual.of_day.fetch_add(micros, Ordering::SeqCst);
            manual.boot.fetch_add(micros, Ordering::SeqCst);
        }
    }

    /// Sets the time of day of a manual clock, by `micros` forward or, where they are negative, back; no time passes.
    pub fn set_by(&self, micros: i64) {
        if let Hands::Manual(manual) = &self.hands {
            manual.of_day.fetch_add(micros, Ordering::SeqCst);
        }
    }

    /// The same hands, read by a server that starts now.
    #[cfg(test)]
    pub fn after_restart(&self) -> Self {
        Self { hands: self.hands.clone(), ..Self::default() }
    }
}

impl Hands {
    fn read(&self) -> Reading {
        match self {
            Self::Machine => Reading { of_day: nanos(ClockId::Realtime), boot: nanos(ClockId::Boottime) },
            Self::Manual(manual) => {
                let of = |micros: &AtomicI64| i128::from(micros.load(Ordering::SeqCst)) * 1_000;
                Reading { of_day: of(&manual.of_day), boot: of(&manual.boot) }
            }
        }
    }
}

fn nanos(clock: ClockId) -> i128 {
    let at = clock_gettime(clock);
    i128::from(at.tv_sec) * NANOS + i128::from(at.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;
    const DAY: i64 = 24 * HOUR;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(UnixMicros(5));
        let same = clock.clone();
        assert_eq!(clock.now(), UnixMicros(5));
        same.advance(Duration::from_micros(7));
        assert_eq!(clock.now(), UnixMicros(12), "clones show the same time");
    }

    #[test]
    fn how_far_the_time_of_day_is_ahead_is_known() {
        for (jump, gap) in [(HOUR, HOUR), (-HOUR, -HOUR), (9_999, 0), (-9_999, 0), (0, 0)] {
            let clock = Clock::manual(UnixMicros(DAY));
            clock.now();
            clock.set_by(jump);
            assert_eq!(clock.gap_micros(), gap);
            assert_eq!(clock.time_of_day(), UnixMicros(DAY + jump));
            let clock = Clock::manual(UnixMicros(DAY)).of_day();
            clock.set_by(jump);
            assert_eq!(clock.gap_micros(), 0, "what is shown is the time of day");
        }
    }

    #[test]
    fn the_clock_of_the_machine_is_past_2020_and_goes_on() {
        let clock = Clock::default();
        let first = clock.now();
        assert!(first > UnixMicros(1_577_836_800_000_000));
        std::thread::sleep(Duration::from_millis(2));
        let passed = clock.now().since(first);
        assert!(passed >= Duration::from_millis(1), "{passed:?}");
    }

    #[test]
    fn a_jump_is_followed_slowly_and_the_time_never_goes_back() {
        for jump in [HOUR, -HOUR, 3 * DAY, -3 * DAY] {
            let begun = UnixMicros(1_700_000_000_000_000);
            let clock = Clock::manual(begun);
            clock.now();
            clock.set_by(jump);
            assert_eq!(clock.now(), begun, "{jump}: nothing passed");
            let mut before = begun;
            for second in 1..=100i64 {
                clock.advance(Duration::from_secs(1));
                let now = clock.now();
                assert!(now > before, "{jump}: it went back");
                before = now;
                assert_eq!((now.0 - begun.0 - second * 1_000_000) * 100, second * 1_000_000 * jump.signum(), "{jump}");
            }
            clock.advance(Duration::from_micros(jump.unsigned_abs() * 100));
            assert_eq!(clock.now().0, begun.0 + 100_000_000 + jump.abs() * 100 + jump, "{jump}: followed in the end");
            assert_eq!(clock.after_restart().now(), clock.now());
        }
    }

    #[test]
    fn what_is_shared_is_followed_at_once() {
        let clock = Clock::manual(UnixMicros(DAY)).of_day();
        for jump in [HOUR, -HOUR] {
            let before = clock.now();
            clock.set_by(jump);
            assert_eq!(clock.now().0, before.0 + jump);
        }
    }

    #[test]
    fn who_asks_often_follows_as_much_as_who_asks_seldom() {
        let clock = Clock::manual(UnixMicros(0));
        clock.now();
        clock.set_by(HOUR);
        for _ in 0..100_000 {
            clock.advance(Duration::from_micros(10));
            clock.now();
        }
        assert_eq!(clock.now(), UnixMicros(1_010_000));
    }
}
