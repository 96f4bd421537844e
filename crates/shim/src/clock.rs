//! The clocks of a shim; nothing else in this crate reads one.

use std::time::Duration;

use holm_domain::{BootMicros, UnixMicros};
use rustix::time::{ClockId, clock_gettime};

use crate::spool::writer::Now;

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// CLOCK_BOOTTIME: goes on during suspend, and nobody can set it.
pub fn boot() -> BootMicros {
    BootMicros(0).plus(read(ClockId::Boottime))
}

/// The clock that people read.
pub fn unix() -> UnixMicros {
    UnixMicros(0).plus(read(ClockId::Realtime))
}

/// Both at once.
pub fn now() -> Now {
    Now { boot: boot(), unix: unix() }
}

/// Completes when the boot clock has reached `at`; never where there is nothing to wait for.
pub async fn sleep_until(at: Option<BootMicros>) {
    match at {
        None => std::future::pending().await,
        // tokio's timer counts whole milliseconds on CLOCK_MONOTONIC: whoever waits looks at the boot clock again.
        Some(at) => tokio::time::sleep(at.since(boot())).await,
    }
}
