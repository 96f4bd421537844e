//! What one org may have and do at most, on all servers together.
//!
//! A server is told a value for every limit, which holds for each org; an org may have others of its own
//! ([`OrgOverrides`]). Rates are kept by [`crate::rate`], counts by looking at what is stored.

use std::time::Duration;

use crate::{error::InvalidField, rate::Rate};

/// For how long a rate may be used up at once.
pub const BURST: Duration = Duration::from_secs(10);
/// The largest value of a limit; further than anything can come.
pub const LIMIT_MAX: u64 = 1 << 50;
/// The least bytes of logs a second: a body of a request must fit into the burst.
pub const LOG_BYTES_PER_SECOND_MIN: u64 = 4_096;
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

macro_rules! limits {
    ($($(#[$doc:meta])* $kind:ident $field:ident = $default:expr, $min:expr;)+) => {
        /// A limit of an org.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum OrgLimit {
            $($(#[$doc])* $kind,)+
        }

        impl OrgLimit {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// Its name, in the API, in the database and in metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($field),)+
                }
            }

            /// The least that can be set.
            pub const fn min(self) -> u64 {
                match self {
                    $(Self::$kind => $min,)+
                }
            }
        }

        /// A value for every limit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct OrgLimits {
            $($(#[$doc])* pub $field: u64,)+
        }

        impl Default for OrgLimits {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl OrgLimits {
            /// The value of a limit.
            pub fn of(&self, limit: OrgLimit) -> u64 {
                match limit {
                    $(OrgLimit::$kind => self.$field,)+
                }
            }

            /// The same with those of an org that has others.
            pub fn with(&self, overrides: &OrgOverrides) -> Self {
                Self { $($field: overrides.$field.unwrap_or(self.$field),)+ }
            }
        }

        /// The limits that an org has of its own; it has those of the server where nothing is set.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct OrgOverrides {
            $(
                $(#[$doc])*
                pub $field: Option<u64>,
            )+
        }

        impl OrgOverrides {
            /// Sets a limit, or with nothing takes it back to that of the server.
            pub fn set(&mut self, limit: OrgLimit, value: Option<u64>) {
                match limit {
                    $(OrgLimit::$kind => self.$field = value,)+
                }
            }

            /// What is set of a limit.
            pub fn of(&self, limit: OrgLimit) -> Option<u64> {
                match limit {
                    $(OrgLimit::$kind => self.$field,)+
                }
            }
        }
    };
}

limits! {
    /// How many runs may hold a lease at once; others wait in the queue.
    RunsRunning runs_running_max = 10_000, 0;
    /// How many runs may be queued.
    RunsQueued runs_queued_max = 2_000_000, 0;
    /// How many runs may be submitted in a minute.
    Submits submits_per_minute = 300_000, 1;
    /// How many bytes of logs its agents may append in a second.
    LogBytes log_bytes_per_second = 256 << 20, LOG_BYTES_PER_SECOND_MIN;
    /// How many other requests may change something in a minute, those of agents not among them.
    ApiWrites api_writes_per_minute = 60_000, 1;
    /// How many requests of agents may change something in a minute, but for appends of logs and what leases hang on: events, changes,
    /// registrations, enrolments.
    AgentWrites agent_writes_per_minute = 600_000, 1;
    /// How many requests of its agents may append logs in a minute.
    Appends appends_per_minute = 1_200_000, 1;
    /// How many requests of its agents that runs hang on may come in a minute: polls, starts and ends.
    LeaseRequests lease_requests_per_minute = 1_800_000, 60;
    /// How many renewals of leases may come in a minute, each of up to a thousand. Where fewer are allowed than its agents need,
    /// leases are lost.
    Renewals renewals_per_minute = 600_000, 60;
}

impl OrgLimit {
    /// The limit of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|limit| limit.as_str() == name)
    }

    /// How long a rate counts for; nothing for what is no rate.
    fn period(self) -> Option<Duration> {
        match self {
            Self::RunsRunning | Self::RunsQueued => None,
            Self::LogBytes => Some(SECOND),
            Self::Submits
            | Self::ApiWrites
            | Self::AgentWrites
            | Self::Appends
            | Self::LeaseRequests
            | Self::Renewals => Some(MINUTE),
        }
    }

    /// Refuses a value that cannot be.
    pub fn check(self, value: u64) -> Result<u64, InvalidField> {
        let min = self.min();
        if (min..=LIMIT_MAX).contains(&value) {
            return Ok(value);
        }
        Err(InvalidField::new(self.as_str(), value, format!("give {min} to {LIMIT_MAX}")))
    }
}

impl OrgLimits {
    /// The rate of a limit that is one. A request whose least costs `largest` units fits into its burst.
    pub fn rate(&self, limit: OrgLimit, largest: u64) -> Option<Rate> {
        let period = limit.period()?;
        let rate = Rate { units: self.of(limit).max(1), period, burst: 1 };
        Some(Rate { burst: rate.units_in(BURST).max(largest), ..rate })
    }
}

impl OrgOverrides {
    /// Sets what `LIMIT=VALUE` says, where `default` takes a limit back; or says what would be accepted.
    pub fn set_text(&mut self, text: &str) -> Result<OrgLimit, String> {
        let (name, value) = text.split_once('=').ok_or("give LIMIT=VALUE")?;
        let names = || OrgLimit::ALL.iter().map(|limit| limit.as_str()).collect::<Vec<_>>().join(", ");
        let limit = OrgLimit::parse(name).ok_or_else(|| format!("give one of {}", names()))?;
        let given = match value {
            "default" => None,
            number => Some(number.parse().map_err(|_| "give a number, or `default`".to_owned())?),
        };
        given.map_or(Ok(0), |given| limit.check(given)).map_err(|error| error.problem)?;
        self.set(limit, given);
        Ok(limit)
    }

    /// Refuses values that cannot be.
    pub fn check(&self) -> Result<(), InvalidField> {
        for limit in OrgLimit::ALL {
            self.of(*limit).map_or(Ok(0), |value| limit.check(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_can_be_set_and_overrides_win() {
        let defaults = OrgLimits::default();
        for limit in OrgLimit::ALL {
            assert_eq!(limit.check(defaults.of(*limit)), Ok(defaults.of(*limit)));
            assert_eq!(OrgLimit::parse(limit.as_str()), Some(*limit));
            let mut overrides = OrgOverrides::default();
            overrides.set(*limit, Some(7_777));
            assert_eq!((overrides.check(), defaults.with(&overrides).of(*limit)), (Ok(()), 7_777));
            overrides.set(*limit, Some(LIMIT_MAX + 1));
            assert_eq!(overrides.check().unwrap_err().field, limit.as_str());
        }
        let none = OrgOverrides { submits_per_minute: Some(0), ..OrgOverrides::default() };
        assert_eq!(none.check().unwrap_err().field, "submits_per_minute");
    }

    #[test]
    fn bursts_hold_ten_seconds_and_the_largest_request() {
        let limits = OrgLimits { submits_per_minute: 60, log_bytes_per_second: 4_096, ..OrgLimits::default() };
        let burst = |limit, largest| limits.rate(limit, largest).map(|rate| rate.burst);
        assert_eq!(burst(OrgLimit::Submits, 1), Some(10));
        assert_eq!(burst(OrgLimit::LogBytes, 8 << 20), Some(8 << 20));
        assert_eq!(burst(OrgLimit::RunsRunning, 1), None);
    }
}
