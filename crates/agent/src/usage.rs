//! What attempts use now, measured right before their leases are renewed.
//!
//! What always holds: no renewal waits for it for longer than [`MEASURED_WITHIN`], nor begins a measurement while another one
//! hangs; what was not measured is absent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holm_domain::{BootMicros, lease::holder::Held, run::LiveUsage};

use crate::{
    clock,
    control::ControlPlane,
    station::{Shared, attempt_of},
};

/// How long a renewal waits for what the runs use.
const MEASURED_WITHIN: Duration = Duration::from_millis(500);
/// Over less than this no rate is told: the kernel counts in ticks.
const RATE_OVER: Duration = Duration::from_millis(50);

/// The processor time that was used up to an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub(crate) at: BootMicros,
    pub(crate) used_us: u64,
}

impl CpuTime {
    /// How much of the processors was used on average from here to `later`, in thousandths of one.
    pub(crate) fn cpus_milli_until(self, later: Self) -> Option<u64> {
        let passed = later.at.since(self.at);
        // Less than before is a sandbox that was made again.
        let used_us = later.used_us.checked_sub(self.used_us)?;
        (passed >= RATE_OVER).then(|| u128::from(used_us) * 1_000 / passed.as_micros())?.try_into().ok()
    }
}

/// What the sandboxes under these leases use, as far as it could be measured in time.
pub(crate) async fn measure<C: ControlPlane>(shared: &Arc<Shared<C>>, leases: &[Held]) -> BTreeMap<Held, LiveUsage> {
    let Ok(turn) = shared.measuring.clone().try_lock_owned() else {
        tracing::warn!("what runs use is being measured still; it is not told now");
        return BTreeMap::new();
    };
    let task = tokio::task::spawn_blocking({
        let (shared, leases) = (shared.clone(), leases.to_vec());
        move || {
            let _turn = turn;
            leases.into_iter().filter_map(|held| Some((held, measure_one(&shared, held)?))).collect()
        }
    });
    match tokio::time::timeout(MEASURED_WITHIN, task).await {
        Ok(Ok(measured)) => measured,
        Ok(Err(error)) => {
            tracing::error!(%error, "measuring what runs use");
            BTreeMap::new()
        }
        Err(_) => {
            tracing::warn!("what runs use was not measured in time; it is not told now");
            BTreeMap::new()
        }
    }
}

fn measure_one<C>(shared: &Shared<C>, held: Held) -> Option<LiveUsage> {
    let attempt = attempt_of(held);
    let resources = shared.occupancy.resources(attempt)?;
    let usage = shared.runtimes.by_name(&resources.runtime).ok()?.measure(&resources);
    let rate = |used_us| shared.occupancy.cpus_milli(attempt, CpuTime { at: clock::boot_now(), used_us });
    LiveUsage { cpus_milli: usage.cpu_us.and_then(rate), ..usage }.known()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_over_a_time_that_can_be_measured() {
        let at = |at_ms: u64, used_us| CpuTime { at: BootMicros(at_ms * 1_000), used_us };
        let begun = at(1_000, 500);
        assert_eq!(begun.cpus_milli_until(at(3_000, 1_000_500)), Some(500));
        assert_eq!(begun.cpus_milli_until(at(3_000, 500)), Some(0));
        assert_eq!(begun.cpus_milli_until(at(1_049, 900)), None, "too soon");
        assert_eq!(begun.cpus_milli_until(at(3_000, 499)), None, "it began anew");
        assert_eq!(begun.cpus_milli_until(at(0, 900)), None, "not backwards");
    }
}
