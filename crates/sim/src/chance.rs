//! Everything random of a simulation, from its seed.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use uuid::Uuid;

use crate::time::micros;

/// The one source of chance.
#[derive(Debug)]
pub(crate) struct Chance(StdRng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A number of `least` to `most`.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0.random_range(least..=most)
    }

    /// A number of -`most` to `most`.
    pub(crate) fn around(&mut self, most: u64) -> i64 {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.0.random_range(-most..=most)
    }

    /// An index below `count`, which is not 0.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    /// True so many times in a thousand.
    pub(crate) fn is(&mut self, in_a_thousand: u64) -> bool {
        self.between(1, 1_000) <= in_a_thousand
    }

    /// A span of `least` to `most`.
    pub(crate) fn span(&mut self, least: Duration, most: Duration) -> Duration {
        Duration::from_micros(self.between(micros(least), micros(most).max(micros(least))))
    }

    /// A new identity.
    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(self.0.random())
    }
}
