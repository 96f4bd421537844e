//! Telling the control plane who this agent is: at the start, and again whenever it says that it does not know.

use holm_api::agent::{Register, Registered};
use holm_domain::AgentId;
use holm_runtime::{crash::effect_of, registry::Registry};

use crate::{
    backoff::Backoff,
    control::{ControlError, ControlPlane},
    ids::Process,
    station::{Config, Shared},
    storage,
};

fn body(config: &Config, runtimes: &Registry, agent: AgentId, process: Process) -> Register {
    let mut labels = config.labels.clone();
    if let Some(why) = storage::shortage_of(config) {
        labels.insert(storage::STORAGE_LABEL.to_owned(), why);
    }
    Register {
        agent,
        instance: process.instance,
        after: process.after,
        name: config.name.clone(),
        version: config.version.clone(),
        capacity: config.capacity,
        runtimes: runtimes.infos(),
        labels,
    }
}

/// Registers; goes on trying while the control plane is not available.
pub(crate) async fn persist<C: ControlPlane>(
    config: &Config,
    control: &C,
    runtimes: &Registry,
    agent: AgentId,
    process: Process,
) -> Result<Registered, ControlError> {
    let body = body(config, runtimes, agent, process);
    let mut backoff = Backoff::default();
    loop {
        match effect_of("agent.register", control.register(body.clone())).await {
            Err(ControlError::Unavailable(problem)) => {
                tracing::warn!(problem, "the control plane is not available; trying again to register");
                backoff.wait().await;
            }
            result => return result,
        }
    }
}

/// Registers once more with a control plane that has forgotten this agent. Whoever asks tries again anyway, so a failure
/// is only told.
pub(crate) async fn renew<C: ControlPlane>(shared: &Shared<C>) {
    tracing::warn!(agent = %shared.agent, "the control plane does not know this agent; it registers again");
    again(shared).await;
}

/// Brings what the control plane knows of this host up to date; tells whether it did.
pub(crate) async fn again<C: ControlPlane>(shared: &Shared<C>) -> bool {
    let body = body(&shared.config, &shared.runtimes, shared.agent, shared.process);
    match shared.control.register(body).await {
        Ok(_) => true,
        Err(error) => {
            tracing::error!(%error, "this agent cannot register again");
            false
        }
    }
}
