//! Whether this host takes new runs: not while its disk is short of room ([`storage`]), nor while it is under pressure
//! ([`pressure`]), nor for a while after it could not make several sandboxes in a row: it would be the first to ask for the
//! next run, being always idle.
//!
//! What always holds: it is looked at anew before each request for work, so an agent takes runs again by itself. A request
//! that waits at the control plane meanwhile is granted nothing once that was told of the reason. Runs that there are go on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holm_domain::{
    host::{FAILING_LABEL, PRESSURE_LABEL, STORAGE_LABEL},
    limits::LABEL_BYTES_MAX,
    pressure::{Excess, judge},
};
use tokio::time::Instant;

use crate::{
    control::ControlPlane,
    pressure, registration,
    station::{Config, Shared},
    storage,
};

/// How often it is looked; the kernel reckons the pressure over ten seconds.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What stands against new runs, by the labels under which the control plane hears of it.
pub(crate) type Reasons = BTreeMap<&'static str, String>;

/// How many sandboxes in a row could not be made before the host takes no runs for a while.
const FAILURES_MAX: u32 = 3;
/// For how long it takes none then; twice as long after each further failure, and at most [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(5);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What stood against new runs at the last look.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    excesses: Mutex<Vec<Excess>>,
    failing: Mutex<Failing>,
}

/// Sandboxes in a row that could not be made.
#[derive(Debug, Default)]
struct Failing {
    in_a_row: u32,
    /// Until when no runs are taken for it, and why the last one could not be made.
    pause: Option<(Instant, String)>,
}

impl Failing {
    fn fails(&mut self, why: &str, now: Instant) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if let Some(beyond) = self.in_a_row.checked_sub(FAILURES_MAX) {
            let pause = PAUSE.saturating_mul(1 << beyond.min(16)).min(PAUSE_MAX);
            self.pause = Some((now + pause, why[..why.floor_char_boundary(LABEL_BYTES_MAX)].to_owned()));
        }
    }

    fn reason(&self, now: Instant) -> Option<String> {
        self.pause.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why.clone())
    }
}

impl Admission {
    /// Looks at the host.
    pub(crate) fn look(&self, config: &Config) -> Reasons {
        let storage = storage::shortage(&config.dir, config.storage_floor_bytes).map(|why| (STORAGE_LABEL, why));
        let pressure = self.pressure(config).map(|why| (PRESSURE_LABEL, why));
        let failing = self.failing().reason(Instant::now()).map(|why| (FAILING_LABEL, why));
        storage.into_iter().chain(pressure).chain(failing).collect()
    }

    /// A sandbox could not be made, for a reason that lies with this host.
    pub(crate) fn not_made(&self, why: &str) {
        self.failing().fails(why, Instant::now());
    }

    /// A sandbox was made.
    pub(crate) fn made(&self) {
        *self.failing() = Failing::default();
    }

    fn failing(&self) -> MutexGuard<'_, Failing> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pressure(&self, config: &Config) -> Option<String> {
        let seen = pressure::read(&config.proc_dir).pressure;
        let mut excesses = self.excesses.lock().unwrap_or_else(PoisonError::into_inner);
        *excesses = judge(&excesses, &seen, &config.pressure_limits);
        let told: Vec<String> = excesses.iter().map(Excess::to_string).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// Tells the control plane, for ever, when something stands against new runs and when it does not any more.
pub(crate) async fn tell<C: ControlPlane>(shared: Arc<Shared<C>>) {
    let mut told = Reasons::new();
    loop {
        let reasons = shared.admission.look(&shared.config);
        if !reasons.keys().eq(told.keys()) {
            if reasons.is_empty() {
                tracing::info!("runs are taken again");
            }
            for (label, why) in &reasons {
                tracing::error!(dir = %shared.config.dir.display(), label, why, "no runs are taken");
            }
            // What cannot be told now is told at the next look.
            if registration::again(&shared).await {
                told = reasons;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_fails_again_and_again_takes_nothing_for_longer_and_longer() {
        let (mut failing, now) = (Failing::default(), Instant::now());
        let seconds = |failing: &Failing| (0..).find(|s| failing.reason(now + Duration::from_secs(*s)).is_none());
        let paused: Vec<_> = (0..12)
            .map(|_| {
                failing.fails("no mounts", now);
                seconds(&failing).unwrap_or_default()
            })
            .collect();
        assert_eq!(paused, [0, 0, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
        assert_eq!(failing.reason(now).as_deref(), Some("no mounts"));
        let admission = Admission::default();
        (0..3).for_each(|_| admission.not_made("no mounts"));
        assert!(admission.failing().reason(Instant::now()).is_some());
        admission.made();
        assert!(admission.failing().reason(Instant::now()).is_none());
        admission.not_made("no mounts");
        assert!(admission.failing().reason(Instant::now()).is_none(), "it begins anew");
    }
}
