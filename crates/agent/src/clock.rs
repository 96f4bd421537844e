//! The only place in the agent where a clock is read.
//!
//! Leases are measured on CLOCK_BOOTTIME: it cannot be set, and goes on while the machine sleeps (SPEC L3).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holm_domain::{BootMicros, UnixMicros};
use rustix::time::{ClockId, clock_gettime};

/// The longest nap before the boot clock is looked at again: the timers of the runtime stand still while the machine sleeps.
const NAP_MAX: Duration = Duration::from_secs(1);

/// The instant by CLOCK_BOOTTIME.
pub(crate) fn boot_now() -> BootMicros {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    BootMicros(seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000))
}

/// The time of day, for the ages of files; no lease hangs on it.
pub(crate) fn now() -> SystemTime {
    let now = clock_gettime(ClockId::Realtime);
    UNIX_EPOCH + Duration::from_secs(u64::try_from(now.tv_sec).unwrap_or(0))
}

/// The time of day at which the boot clock showed 0, as both show it now.
pub(crate) fn booted_at() -> UnixMicros {
    let now = clock_gettime(ClockId::Realtime);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    UnixMicros(micros).minus(boot_now().since(BootMicros(0)))
}

/// Waits until the boot clock shows `at`, for ever without one.
pub(crate) async fn sleep_until(at: Option<BootMicros>) {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        let left = at.since(boot_now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(NAP_MAX)).await;
    }
}

/// The name that the kernel gave to this boot: instants of the boot clock mean nothing under another one.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
