//! Whether a host under pressure takes new runs.
//!
//! The kernel tells for which share of the last ten seconds tasks stalled for want of memory or of I/O (pressure stall
//! information). A host whose share reaches a limit takes nothing new until the share is below half of that limit, so it
//! does not change its mind back and forth; runs that it has go on. A share that is not known stands against nothing.
//!
//! Memory counts only while little of it is available: a run that thrashes at its own memory limit stalls, too, and must
//! not be able to close its host to others. Processor time is left out on purpose: it is shared by weight, a run waits for
//! a place and for memory and never for processors, and a host whose processors are all busy is one that is well used.

use std::fmt;

/// All of something, in hundredths of a percent.
pub const ALL_BP: u32 = 10_000;
/// Below this share of available memory stalls for want of memory are the host's, in hundredths of a percent.
pub const MEMORY_SCARCE_BP: u32 = 2_500;

/// What tasks stall on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stall {
    /// Some tasks stall for want of memory.
    MemorySome,
    /// All tasks that could work stall for want of memory.
    MemoryFull,
    /// All tasks that could work stall on I/O.
    IoFull,
}

impl Stall {
    /// All of them.
    pub const ALL: [Stall; 3] = [Stall::MemorySome, Stall::MemoryFull, Stall::IoFull];

    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Stall::MemorySome => "memory-some",
            Stall::MemoryFull => "memory-full",
            Stall::IoFull => "io-full",
        }
    }
}

/// What the kernel tells of its host, each in hundredths of a percent and absent where it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// The share of the last ten seconds in which some tasks stalled for want of memory.
    pub memory_some_bp: Option<u32>,
    /// That in which all tasks did.
    pub memory_full_bp: Option<u32>,
    /// That in which all tasks stalled on I/O.
    pub io_full_bp: Option<u32>,
    /// The share of the memory that is available.
    pub memory_available_bp: Option<u32>,
}

impl Pressure {
    /// The share of a stall.
    pub fn of(&self, stall: Stall) -> Option<u32> {
        match stall {
            Stall::MemorySome => self.memory_some_bp,
            Stall::MemoryFull => self.memory_full_bp,
            Stall::IoFull => self.io_full_bp,
        }
    }

    /// Whether a stall is one of the host's. Where it is not known how much memory is available, it is.
    fn is_of_host(&self, stall: Stall) -> bool {
        match stall {
            Stall::MemorySome | Stall::MemoryFull => {
                self.memory_available_bp.is_none_or(|share| share < MEMORY_SCARCE_BP)
            }
            Stall::IoFull => true,
        }
    }
}

/// From which share on each stall stands against new runs: 1 to 100 percent, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PressureLimits {
    /// Of some tasks, for want of memory.
    pub memory_some_percent: Option<u8>,
    /// Of all tasks, for want of memory.
    pub memory_full_percent: Option<u8>,
    /// Of all tasks, on I/O. Never, unless it is asked for: one program that does nothing but write to a slow disk gets to all
    /// of it by itself, and must not be able to close its host to others.
    pub io_full_percent: Option<u8>,
}

impl Default for PressureLimits {
    fn default() -> Self {
        Self { memory_some_percent: Some(40), memory_full_percent: Some(10), io_full_percent: None }
    }
}

impl PressureLimits {
    /// No stall stands against anything.
    pub const NONE: Self = Self { memory_some_percent: None, memory_full_percent: None, io_full_percent: None };

    /// The limit of a stall.
    pub fn of(&self, stall: Stall) -> Option<u8> {
        match stall {
            Stall::MemorySome => self.memory_some_percent,
            Stall::MemoryFull => self.memory_full_percent,
            Stall::IoFull => self.io_full_percent,
        }
    }

    /// Sets the limit of a stall.
    pub fn set(&mut self, stall: Stall, percent: Option<u8>) {
        match stall {
            Stall::MemorySome => self.memory_some_percent = percent,
            Stall::MemoryFull => self.memory_full_percent = percent,
            Stall::IoFull => self.io_full_percent = percent,
        }
    }
}

/// A stall that stands against new runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// Which.
    pub stall: Stall,
    /// Its share, in hundredths of a percent.
    pub share_bp: u32,
    /// Its limit, in percent.
    pub limit_percent: u8,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.stall {
            Stall::MemorySome => "some tasks wait for memory",
            Stall::MemoryFull => "all tasks wait for memory",
            Stall::IoFull => "all tasks wait for I/O",
        };
        let (whole, rest) = (self.share_bp / 100, self.share_bp % 100);
        write!(f, "{what} {whole}.{rest:02} % of the time (limit {} %)", self.limit_percent)
    }
}

/// What stands against new runs now, where `before` stood against them at the last look; nothing if they are taken.
pub fn judge(before: &[Excess], pressure: &Pressure, limits: &PressureLimits) -> Vec<Excess> {
    let excess = |stall: Stall| {
        let (share_bp, limit_percent) = (pressure.of(stall)?, limits.of(stall)?);
        let limit_bp = u32::from(limit_percent) * 100;
        let was_so = before.iter().any(|excess| excess.stall == stall);
        let bound_bp = if was_so { limit_bp / 2 } else { limit_bp };
        (share_bp >= bound_bp && pressure.is_of_host(stall)).then_some(Excess { stall, share_bp, limit_percent })
    };
    Stall::ALL.into_iter().filter_map(excess).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn io(share_bp: u32) -> Pressure {
        Pressure { io_full_bp: Some(share_bp), ..Pressure::default() }
    }

    #[test]
    fn between_half_of_the_limit_and_the_limit_it_stays_as_it_was() {
        let limits = PressureLimits { io_full_percent: Some(80), ..PressureLimits::default() };
        assert_eq!(judge(&[], &io(7_999), &limits), []);
        let closed = judge(&[], &io(8_000), &limits);
        assert_eq!(closed, [Excess { stall: Stall::IoFull, share_bp: 8_000, limit_percent: 80 }]);
        assert_eq!(judge(&closed, &io(4_000), &limits).len(), 1);
        assert_eq!(judge(&closed, &io(3_999), &limits), []);
        assert_eq!(closed[0].to_string(), "all tasks wait for I/O 80.00 % of the time (limit 80 %)");
    }

    #[test]
    fn one_stall_that_is_over_holds_no_other_up() {
        let limits = PressureLimits::default();
        let memory = Pressure { memory_full_bp: Some(5_000), ..io(5_000) };
        let closed = judge(&[], &memory, &limits);
        assert_eq!(closed.iter().map(|excess| excess.stall).collect::<Vec<_>>(), [Stall::MemoryFull]);
        assert_eq!(judge(&closed, &Pressure { memory_full_bp: Some(0), ..memory }, &limits), []);
    }

    #[test]
    fn a_run_that_thrashes_at_its_own_limit_closes_no_host() {
        let limits = PressureLimits::default();
        let thrashing = |available| Pressure {
            memory_some_bp: Some(ALL_BP),
            memory_full_bp: Some(ALL_BP),
            memory_available_bp: available,
            ..Pressure::default()
        };
        assert_eq!(judge(&[], &thrashing(Some(MEMORY_SCARCE_BP)), &limits), []);
        assert_eq!(judge(&[], &thrashing(Some(MEMORY_SCARCE_BP - 1)), &limits).len(), 2);
        assert_eq!(judge(&[], &thrashing(None), &limits).len(), 2, "it is not known whose it is");
    }

    fn share() -> impl Strategy<Value = Option<u32>> {
        prop::option::weighted(0.9, 0..=ALL_BP)
    }

    prop_compose! {
        fn pressure()(some in share(), full in share(), io in share(), available in share()) -> Pressure {
            Pressure {
                memory_some_bp: some,
                memory_full_bp: full,
                io_full_bp: io,
                memory_available_bp: available,
            }
        }
    }

    prop_compose! {
        fn limits()(percents in prop::array::uniform3(prop::option::weighted(0.9, 1..=100u8))) -> PressureLimits {
            let mut limits = PressureLimits::NONE;
            Stall::ALL.into_iter().zip(percents).for_each(|(stall, percent)| limits.set(stall, percent));
            limits
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_and_what_is_not_alternate_only_across_the_whole_gap(
            looks in prop::collection::vec(pressure(), 1..60),
            limits in limits(),
        ) {
            let mut before: Vec<Excess> = Vec::new();
            for pressure in looks {
                let now = judge(&before, &pressure, &limits);
                for stall in Stall::ALL {
                    let is = now.iter().any(|excess| excess.stall == stall);
                    let was = before.iter().any(|excess| excess.stall == stall);
                    let (Some(share), Some(limit)) = (pressure.of(stall), limits.of(stall)) else {
                        prop_assert!(!is, "what is not known, or has no limit, stands against nothing");
                        continue;
                    };
                    let limit = u32::from(limit) * 100;
                    prop_assert!(!is || was || share >= limit);
                    prop_assert!(is || !was || share < limit / 2 || !pressure.is_of_host(stall));
                }
                before = now;
            }
        }

        #[test]
        fn more_pressure_never_lets_in_what_less_keeps_out(
            low in pressure(),
            more in prop::array::uniform3(0..=ALL_BP),
            limits in limits(),
            was_closed: bool,
        ) {
            let closed = Pressure {
                memory_some_bp: Some(ALL_BP),
                memory_full_bp: Some(ALL_BP),
                io_full_bp: Some(ALL_BP),
                memory_available_bp: None,
            };
            let before = if was_closed { judge(&[], &closed, &limits) } else { Vec::new() };
            let [some, full, io] = more;
            let high = Pressure {
                memory_some_bp: low.memory_some_bp.map(|share| (share + some).min(ALL_BP)),
                memory_full_bp: low.memory_full_bp.map(|share| (share + full).min(ALL_BP)),
                io_full_bp: low.io_full_bp.map(|share| (share + io).min(ALL_BP)),
                ..low
            };
            let stalls = |pressure| judge(&before, pressure, &limits).iter().map(|excess| excess.stall).collect::<Vec<_>>();
            let (low, high) = (stalls(&low), stalls(&high));
            prop_assert!(low.iter().all(|stall| high.contains(stall)), "{:?} and not {:?}", low, high);
        }
    }
}
