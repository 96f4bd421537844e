//! Whether this host takes new runs: not while its disk is short of room ([`storage`]), nor while it is under pressure
//! ([`pressure`]).
//!
//! What always holds: it is looked at anew before each request for work, so an agent takes runs again by itself. A request
//! that waits at the control plane meanwhile is granted nothing once that was told of the reason. Runs that there are go on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holm_domain::{
    host::{PRESSURE_LABEL, STORAGE_LABEL},
    pressure::{Excess, judge},
};

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

/// What stood against new runs at the last look.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    excesses: Mutex<Vec<Excess>>,
}

impl Admission {
    /// Looks at the host.
    pub(crate) fn look(&self, config: &Config) -> Reasons {
        let storage = storage::shortage(&config.dir, config.storage_floor_bytes).map(|why| (STORAGE_LABEL, why));
        let pressure = self.pressure(config).map(|why| (PRESSURE_LABEL, why));
        storage.into_iter().chain(pressure).collect()
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
