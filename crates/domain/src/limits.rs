//! What a run may use, and the bounds within which it may be asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::InvalidField;

/// The largest number of arguments, and of environment variables, of a command.
pub const ARGS_MAX: usize = 1_024;
/// The largest total of arguments or of environment variables, in bytes. Linux allows a quarter of the stack; this is less.
pub const ARGS_BYTES_MAX: usize = 512 * 1024;
/// The largest number of labels on a run.
pub const LABELS_MAX: usize = 64;
/// The longest label key or value, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// The largest number of mounts of a run.
pub const MOUNTS_MAX: usize = 64;
/// The longest path, in bytes (PATH_MAX of Linux).
pub const PATH_BYTES_MAX: usize = 4_096;
/// The most that a structured result may hold, in bytes.
pub const RESULT_BYTES_MAX: usize = 64 * 1024;

/// The largest archive of what a command changed in its work dir, in bytes: more is neither kept nor stored nor taken.
pub const CHANGES_BYTES_MAX: u64 = 4 * 1024 * MIB;
/// How many files it must be possible to make where there is a floor of free space: a run makes some dozens, images have
/// many, and each large object that a server stores is one.
pub const STORAGE_FLOOR_FILES: u64 = 1_024;

/// Thousandths of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpus(pub u32);

/// What one run may use at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Processor time per wall time, in thousandths of a processor: 10 to 1,024,000.
    pub cpus_milli: MilliCpus,
    /// Memory of all processes and of the writable file system, in bytes: 4 MiB to 64 TiB.
    pub memory_bytes: u64,
    /// Processes and threads: 1 to 4,194,304 (the largest pid_max of Linux).
    pub pids: u32,
    /// The writable layer of the root file system, in bytes: 1 MiB to 64 TiB.
    pub disk_bytes: u64,
    /// What the command may write to its standard output and error, in bytes: 4 KiB to 1 TiB.
    pub log_bytes: u64,
    /// From the start of the command to its forced end, in milliseconds: 1 to 31 days.
    pub timeout_ms: u64,
}

const MIB: u64 = 1024 * 1024;
const TIB: u64 = 1024 * 1024 * MIB;

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpus_milli: MilliCpus(1_000),
            memory_bytes: 1024 * MIB,
            pids: 1_024,
            disk_bytes: 1024 * MIB,
            log_bytes: 1024 * MIB,
            timeout_ms: 3_600_000,
        }
    }
}

impl Limits {
    /// Checks every limit against its bounds.
    pub fn validate(&self) -> Result<(), InvalidField> {
        within("limits.cpus_milli", u64::from(self.cpus_milli.0), 10, 1_024_000, "thousandths of a processor")?;
        within("limits.memory_bytes", self.memory_bytes, 4 * MIB, 64 * TIB, "bytes")?;
        within("limits.pids", u64::from(self.pids), 1, 4_194_304, "processes")?;
        within("limits.disk_bytes", self.disk_bytes, MIB, 64 * TIB, "bytes")?;
        within("limits.log_bytes", self.log_bytes, 4 * 1024, TIB, "bytes")?;
        within("limits.timeout_ms", self.timeout_ms, 1, 31 * 24 * 3_600_000, "milliseconds")
    }

    /// The longest archive of changes that is kept, in bytes. A file of the writable layer takes at least a page of it and, with
    /// its head, less than twice that in the archive; what takes more is sparse, has long names, or takes no page: an empty
    /// file, a link or a further name has a head of 512 bytes there.
    pub fn changes_bytes_max(&self) -> u64 {
        self.disk_bytes.saturating_mul(2).saturating_add(MIB).min(CHANGES_BYTES_MAX)
    }

    /// The time limit of the command.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

fn within(field: &str, value: u64, min: u64, max: u64, unit: &str) -> Result<(), InvalidField> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidField::new(field, value, format!("give {min} to {max} {unit}")))
}

/// A server's clock differs from one that nobody sets by at most one part in this many, whatever the time of day does: so
/// slowly it follows one that was set.
pub const CLOCK_FOLLOWS_ONE_IN: u32 = 100;

/// The longest lease that a server can be told to grant.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(3600);

/// The longest pause of a run whose lease expired, before it is granted anew, and of a host that could not make its sandbox.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);

/// How long a run waits for more memory than a host has left before the host keeps room for it.
pub const ROOM_KEPT_AFTER: Duration = Duration::from_secs(60);

/// How long a host keeps room for a run if it is not heard of meanwhile: then another may.
pub const ROOM_KEPT_FOR: Duration = Duration::from_secs(120);

/// How often a run comes back to the queue because a host could not make its sandbox. These do not count as attempts whose
/// lease expired: nothing of them was executed.
pub const HOST_FAILURES_MAX: u32 = 4;

/// The times and counts by which leases work. All are checked together by [`LeaseConfig::validate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseConfig {
    /// How long a lease lasts from its grant or renewal.
    pub ttl: Duration,
    /// What the server waits beyond the expiry before it grants anew.
    pub margin: Duration,
    /// How long a run may wait in the queue.
    pub queue_deadline: Duration,
    /// How many times a run may be claimed before an expired lease ends it as lost; times at which its host could not make the
    /// sandbox are not counted.
    pub attempts_max: u32,
    /// How long a run whose first lease expired pauses before it is granted anew; twice as long after each further one, and at
    /// most [`RETRY_PAUSE_MAX`]. So long it passes over a host that could not make its sandbox, too.
    pub retry_pause: Duration,
    /// What a run may take beyond its own time limit for preparation, flushing and teardown.
    pub overhead: Duration,
    /// How long what a sandbox left may take to be stored once it has ended.
    pub finishing: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            margin: Duration::from_secs(5),
            queue_deadline: Duration::from_secs(24 * 3600),
            attempts_max: 3,
            retry_pause: Duration::from_secs(1),
            overhead: Duration::from_secs(900),
            finishing: Duration::from_secs(2 * 3600),
        }
    }
}

impl LeaseConfig {
    /// How often a holder renews: a third of the time a lease lasts.
    pub fn renew_every(&self) -> Duration {
        self.ttl / 3
    }

    /// How long after a grant it is told once more to an agent that shows no sign of knowing it.
    pub fn claim_again_after(&self) -> Duration {
        (self.ttl / 8).min(Duration::from_secs(1))
    }

    /// How long a run pauses, or passes a host over, after the `attempt`th time in vain.
    pub fn retry_pause_after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.retry_pause.saturating_mul(1 << doublings).min(RETRY_PAUSE_MAX)
    }

    /// Refuses times that would let two sandboxes of one run overlap, or a run wait for ever.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let problem =
            |field: &str, value: Duration, problem: &str| Err(InvalidField::new(field, format!("{value:?}"), problem));
        if self.ttl < Duration::from_millis(500) || self.ttl > LEASE_TTL_MAX {
            return problem("lease.ttl", self.ttl, "give 500 ms to one hour");
        }
        if self.margin < Duration::from_millis(100) || self.margin > Duration::from_secs(3600) {
            return problem("lease.margin", self.margin, "give 100 ms to one hour");
        }
        if self.margin < self.ttl * 2 / CLOCK_FOLLOWS_ONE_IN {
            let least = self.ttl * 2 / CLOCK_FOLLOWS_ONE_IN;
            return problem("lease.margin", self.margin, &format!("give at least {least:?}, a fiftieth of the lease"));
        }
        if self.queue_deadline < Duration::from_secs(1) {
            return problem("lease.queue_deadline", self.queue_deadline, "give at least one second");
        }
        if self.retry_pause > RETRY_PAUSE_MAX {
            return problem("lease.retry_pause", self.retry_pause, "give at most five minutes");
        }
        if self.attempts_max == 0 || self.attempts_max > 100 {
            return Err(InvalidField::new("lease.attempts_max", self.attempts_max, "give 1 to 100"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold() {
        assert_eq!(Limits::default().validate(), Ok(()));
        assert_eq!(LeaseConfig::default().validate(), Ok(()));
    }

    #[test]
    fn changes_are_bounded_whatever_the_disk() {
        let of = |disk_bytes| Limits { disk_bytes, ..Limits::default() }.changes_bytes_max();
        assert_eq!((of(MIB), of(64 * TIB)), (3 * MIB, CHANGES_BYTES_MAX));
    }

    #[test]
    fn pauses_double_and_are_bounded() {
        let config = LeaseConfig::default();
        let seconds = |attempt| config.retry_pause_after(attempt).as_secs();
        assert_eq!([0, 1, 2, 3, 9, 10, 100, u32::MAX].map(seconds), [1, 1, 2, 4, 256, 300, 300, 300]);
        let none = LeaseConfig { retry_pause: Duration::ZERO, ..config };
        assert_eq!(none.retry_pause_after(100), Duration::ZERO);
    }

    #[test]
    fn a_margin_is_wider_than_a_clock_strays_in_a_lease() {
        let lease = |margin_ms| LeaseConfig {
            ttl: Duration::from_secs(60),
            margin: Duration::from_millis(margin_ms),
            ..LeaseConfig::default()
        };
        assert_eq!(lease(1_200).validate(), Ok(()));
        assert_eq!(lease(1_199).validate().map_err(|error| error.field), Err("lease.margin".to_owned()));
    }

    #[test]
    fn each_bound_is_named() {
        let absurd = [
            ("limits.cpus_milli", Limits { cpus_milli: MilliCpus(0), ..Limits::default() }),
            ("limits.cpus_milli", Limits { cpus_milli: MilliCpus(u32::MAX), ..Limits::default() }),
            ("limits.memory_bytes", Limits { memory_bytes: 1, ..Limits::default() }),
            ("limits.memory_bytes", Limits { memory_bytes: u64::MAX, ..Limits::default() }),
            ("limits.pids", Limits { pids: 0, ..Limits::default() }),
            ("limits.disk_bytes", Limits { disk_bytes: 0, ..Limits::default() }),
            ("limits.timeout_ms", Limits { timeout_ms: 0, ..Limits::default() }),
            ("limits.timeout_ms", Limits { timeout_ms: u64::MAX, ..Limits::default() }),
        ];
        for (field, limits) in absurd {
            assert_eq!(limits.validate().map_err(|error| error.field), Err(field.to_owned()));
        }
    }
}
