//! Telling the control plane who this agent is: at the start, and again whenever it says that it does not know.

use holm_api::agent::{Register, Registered};
use holm_domain::AgentId;
use holm_runtime::{crash::effect_of, registry::Registry};

use crate::{
    admission::Admission,
    backoff::Backoff,
    control::{ControlError, ControlPlane},
    ids::Process,
    station::{Config, Shared},
};

/// What is told of this host, as it stands now.
pub(crate) fn body(
    config: &Config,
    runtimes: &Registry,
    admission: &Admission,
    agent: AgentId,
    process: Process,
) -> Register {
    let mut labels = config.labels.clone();
    labels.extend(admission.look(config).into_iter().map(|(label, why)| (label.to_owned(), why)));
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
pub(crate) async fn persist<C: ControlPlane>(control: &C, body: Register) -> Result<Registered, ControlError> {
    let mut backoff = Backoff::default();
    loop {
        match effect_of("agent.register", control.register(body.clone())).await {
            Err(ControlError::Unavailable(problem)) => {
                tracing::warn!(problem, "the control plane is not available; trying again to register");
                backoff.wait().await;
            }
            Err(ControlError::Later { after, problem }) => {
                tracing::warn!(problem, "the control plane takes no registration now; trying again to register");
                tokio::time::sleep(after).await;
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
    let body = body(&shared.config, &shared.runtimes, &shared.admission, shared.agent, shared.process);
    match shared.control.register(body).await {
        Ok(_) => true,
        Err(error) => {
            tracing::error!(%error, "this agent cannot register again");
            false
        }
    }
}
