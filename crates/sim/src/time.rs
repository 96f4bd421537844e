//! Virtual time, and the boot clock of a host in it.

use std::time::Duration;

use holm_domain::BootMicros;

const MILLION: u64 = 1_000_000;

/// An instant of virtual time: microseconds since the simulation began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct At(pub u64);

impl At {
    /// This instant and `span` later.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0 + micros(span))
    }

    /// The time from `earlier` to this instant; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A span in whole microseconds.
pub fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// CLOCK_BOOTTIME of one host since one boot: it begins anywhere and is a little fast or slow.
#[derive(Debug, Clone, Copy)]
pub struct BootClock {
    /// When the host was booted.
    pub booted_at: At,
    /// What the clock showed then, in microseconds.
    pub first: u64,
    /// How fast it is, in parts per million beyond true; at least -1,000,000.
    pub rate_ppm: i64,
}

impl BootClock {
    fn rate(&self) -> u64 {
        MILLION.saturating_add_signed(self.rate_ppm)
    }

    /// What it shows at `at`.
    pub fn at(&self, at: At) -> BootMicros {
        let passed = micros(at.since(self.booted_at));
        BootMicros(self.first + passed * self.rate() / MILLION)
    }

    /// The first instant at which it shows `shown`, or the instant of the boot if it showed more then.
    pub fn when(&self, shown: BootMicros) -> At {
        let passed = shown.0.saturating_sub(self.first);
        At(self.booted_at.0 + (passed * MILLION).div_ceil(self.rate()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_rings_at_the_first_instant_that_shows_it() {
        for rate_ppm in [-5_000, -1, 0, 3, 5_000] {
            let clock = BootClock { booted_at: At(77), first: 1_000, rate_ppm };
            for shown in [1_000, 1_001, 12_345, 999_999_999].map(BootMicros) {
                let at = clock.when(shown);
                assert!(clock.at(at) >= shown, "{rate_ppm}: {shown:?}");
                assert!(at == clock.booted_at || clock.at(At(at.0 - 1)) < shown, "{rate_ppm}: {shown:?}");
            }
        }
    }
}
