//! How often something may happen: the generic cell rate algorithm (ITU-T I.371), with one instant as its whole state.
//!
//! The state is the *theoretical arrival time*: when all that was taken would have come at the steady rate. Each unit moves
//! it on by what one unit costs in time; it may lie ahead of now by what the burst costs, and never lies behind it for the
//! next decision. So over any span, by whomever and in whatever order units are taken, no more are taken than the rate
//! allows in it, and the burst besides. Costs are rounded up to whole microseconds, to the disadvantage of who takes.
//!
//! Where several machines decide on the same state, the clock that is furthest ahead counts: the state never goes back, and
//! one that is behind is refused meanwhile. A state that is further ahead than the burst and [`CLOCKS_APART_MAX`] was left by
//! a clock that was wrong: it counts as a burst that is used up.

use std::time::Duration;

use crate::UnixMicros;

/// How far the clocks of those who decide on one state may be apart.
pub const CLOCKS_APART_MAX: Duration = Duration::from_secs(300);

/// So many units a period, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least 1.
    pub units: u64,
    /// In how long, at least a microsecond.
    pub period: Duration,
    /// How many may be taken at once where none were taken for long, at least 1.
    pub burst: u64,
}

/// What becomes of an attempt to take units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// So many were taken, and the state is another now.
    Units {
        /// How many.
        count: u64,
        /// The new theoretical arrival time.
        tat: UnixMicros,
    },
    /// Not even the least that was asked for: not before so long, if nobody else takes any meanwhile.
    Wait(Duration),
    /// More than may ever be taken at once.
    Never,
}

impl Rate {
    /// Takes as many units as there are, at least `least` and at most `most`.
    pub fn take(&self, tat: UnixMicros, now: UnixMicros, least: u64, most: u64) -> Taken {
        let (least, most) = (least.max(1), most.max(least).max(1));
        let tolerance = self.cost(self.burst);
        if self.cost(least) > tolerance {
            return Taken::Never;
        }
        let ahead = match i128::from(tat.0) - i128::from(now.0) {
            wrong if wrong > tolerance + CLOCKS_APART_MAX.as_micros() as i128 => tolerance - self.cost(least),
            ahead => ahead.max(0),
        };
        let late = ahead + self.cost(least) - tolerance;
        if late > 0 {
            return Taken::Wait(Duration::from_micros(u64::try_from(late).unwrap_or(u64::MAX)));
        }
        let count = self.affordable(tolerance - ahead).clamp(least, most);
        let moved = i64::try_from(i128::from(now.0) + ahead + self.cost(count)).unwrap_or(i64::MAX);
        Taken::Units { count, tat: UnixMicros(moved) }
    }

    /// How many units come in that time, at least 1.
    pub fn units_in(&self, span: Duration) -> u64 {
        let units = u128::from(self.units) * span.as_micros() / self.period.as_micros().max(1);
        u64::try_from(units).unwrap_or(u64::MAX).max(1)
    }

    /// What units cost, in microseconds.
    fn cost(&self, units: u64) -> i128 {
        let cost = (u128::from(units) * self.period.as_micros()).div_ceil(u128::from(self.units.max(1)));
        i128::try_from(cost).unwrap_or(i128::MAX / 4)
    }

    /// The most units that cost no more than that many microseconds.
    fn affordable(&self, micros: i128) -> u64 {
        let micros = u128::try_from(micros).unwrap_or(0);
        let units = micros.saturating_mul(u128::from(self.units)) / self.period.as_micros().max(1);
        u64::try_from(units).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(micros: i64) -> UnixMicros {
        UnixMicros(micros)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate { units: 60, period: MINUTE, burst: 3 };
        let mut tat = at(0);
        for _ in 0..3 {
            match rate.take(tat, at(1_000_000), 1, 1) {
                Taken::Units { count: 1, tat: next } => tat = next,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(rate.take(tat, at(1_000_000), 1, 1), Taken::Wait(Duration::from_secs(1)));
        assert_eq!(rate.take(tat, at(1_400_000), 1, 1), Taken::Wait(Duration::from_millis(600)));
        assert_eq!(rate.take(tat, at(2_000_000), 1, 9), Taken::Units { count: 1, tat: at(5_000_000) });
        assert_eq!(rate.take(tat, at(9_000_000), 1, 9), Taken::Units { count: 3, tat: at(12_000_000) });
        assert_eq!(rate.take(tat, at(9_000_000), 4, 9), Taken::Never);
    }

    #[test]
    fn units_that_come_in_a_tenth_of_a_second() {
        let rate = |units, period| Rate { units, period, burst: 1 }.units_in(Duration::from_millis(100));
        assert_eq!([rate(60, MINUTE), rate(6_000, MINUTE), rate(1 << 20, Duration::from_secs(1))], [1, 10, 104_857]);
    }

    #[test]
    fn a_clock_that_was_wrong_blocks_nobody_for_long() {
        let rate = Rate { units: 60, period: MINUTE, burst: 3 };
        let now = at(1_000_000_000);
        assert_eq!(rate.take(at(now.0 + 400_000_000), now, 1, 9), Taken::Units { count: 1, tat: at(1_003_000_000) });
        assert!(matches!(rate.take(at(1_003_000_000), now, 1, 9), Taken::Wait(_)));
        assert!(matches!(rate.take(at(now.0 + 300_000_000), now, 1, 9), Taken::Wait(_)));
    }

    #[derive(Debug, Clone)]
    struct Attempt {
        after_us: u64,
        clock: usize,
        least: u64,
        more: u64,
    }

    fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
        let attempt = (0..3_000_000u64, 0..3usize, 1..40u64, 0..40u64)
            .prop_map(|(after_us, clock, least, more)| Attempt { after_us, clock, least, more });
        proptest::collection::vec(attempt, 1..200)
    }

    proptest! {
        /// Whoever takes, in whatever order, with clocks that are apart: over every span of time no more than the rate
        /// allows in it, the burst, and what comes in the time by which the clocks are apart.
        #[test]
        fn never_more_than_the_rate_and_the_burst(
            units in 1..5_000u64,
            period_ms in 1..120_000u64,
            burst in 1..100u64,
            apart in proptest::array::uniform3(0..2_000_000i64),
            attempts in attempts(),
        ) {
            let rate = Rate { units, period: Duration::from_millis(period_ms), burst };
            let (mut tat, mut time, mut taken) = (at(0), 1_000_000_000_000i64, Vec::new());
            for Attempt { after_us, clock, least, more } in attempts {
                time += after_us as i64;
                match rate.take(tat, at(time + apart[clock]), least, least + more) {
                    Taken::Units { count, tat: next } => {
                        prop_assert!((least..=least + more).contains(&count));
                        prop_assert!(next > tat, "the state never goes back");
                        tat = next;
                        taken.push((time, count));
                    }
                    Taken::Wait(wait) => prop_assert!(!wait.is_zero()),
                    Taken::Never => prop_assert!(least > burst),
                }
            }
            let skew = apart.iter().max().unwrap() - apart.iter().min().unwrap();
            for (from, (begun, _)) in taken.iter().enumerate() {
                let mut sum = 0u128;
                for (now, count) in &taken[from..] {
                    sum += u128::from(*count);
                    // The burst is rounded up to a microsecond.
                    let span = (now - begun + skew + 1) as u128;
                    let allowed = u128::from(burst) + span * u128::from(units) / (u128::from(period_ms) * 1_000);
                    prop_assert!(sum <= allowed, "{sum} of {allowed}");
                }
            }
        }

        /// Who waits as long as he was told gets what he asked for, if nobody else took any.
        #[test]
        fn a_wait_is_enough(units in 1..5_000u64, period_ms in 1..120_000u64, burst in 1..100u64, ahead in 0..9_000_000i64,
            least in 1..100u64) {
            let rate = Rate { units, period: Duration::from_millis(period_ms), burst };
            let now = at(1_000_000_000);
            if let Taken::Wait(wait) = rate.take(at(now.0 + ahead), now, least, least) {
                let later = rate.take(at(now.0 + ahead), now.plus(wait), least, least);
                prop_assert!(matches!(later, Taken::Units { .. }), "{later:?}");
                let sooner = rate.take(at(now.0 + ahead), at(now.plus(wait).0 - 1), least, least);
                prop_assert!(matches!(sooner, Taken::Wait(_)), "{sooner:?}");
            }
        }
    }
}
