//! The agent: claims runs, makes their sandboxes, keeps their leases, stores what they write, and removes what is left.
//!
//! [`Agent::run`] is the whole of it. Inside, one task feeds the lease machine (`keeper`), three ask the control plane for
//! work (`poll`), one supervises each attempt (`attempt`), and passes of the `reaper` remove what nobody owns.
//!
//! What always holds: nothing of a sandbox exists that was not journalled before (`journal`); a sandbox is started only
//! under a live lease, and its shim kills it when the lease ends; `kill -9` of this process at any point, followed by a new
//! one, loses no output and leaves nothing behind (`recover`).
//!
//! Deliberately left out: how sandboxes are made (`holm-runtime`), what happens beside them (`holm-shim`), and whether a
//! lease may be granted (`holm-server`).

mod admission;
mod attempt;
mod backoff;
mod capacity;
mod clock;
pub mod control;
mod folder;
mod ids;
pub mod journal;
mod keeper;
mod occupancy;
mod own_key;
mod poll;
pub mod pressure;
mod reaper;
mod recover;
mod registration;
mod shim_process;
mod station;
pub mod storage;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod usage;

use std::{future::Future, sync::Arc, time::Duration};

use holm_api::agent::Registered;
use holm_domain::{
    AgentId,
    lease::holder::{Holder, HolderConfig},
};
use holm_runtime::registry::Registry;
use tokio::sync::mpsc;

pub use clock::boot_id;
pub use folder::{DAMAGE_NAME, Damage, Folder, FolderError, Presence, SET_ASIDE_NAME, presence};
pub use holm_shim::protocol::WaysOut;
pub use ids::examine;
pub use keeper::Shutdown;
pub use own_key::is_enrolled;
pub use shim_process::ShimProgram;
pub use station::Config;

use crate::{
    admission::Admission,
    control::{ControlError, ControlPlane, IdentityError},
    keeper::{Keeper, Unheard},
    occupancy::Occupancy,
    station::Shared,
};

/// How many events may wait for the keeper; whoever has more waits.
const EVENTS_MAX: usize = 256;

/// Why an agent cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The kernel does not say which boot this is.
    #[error("which boot this is: {0}")]
    Boot(std::io::Error),
    /// It cannot say who it is, or is not heard any more under its key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The control plane does not take it.
    #[error("this agent cannot register: {0}")]
    Register(ControlError),
    /// A newer process of this agent works: a copy of its folder, or one that was started while this one slept.
    #[error(
        "a newer process of {0} has registered, so this one has ended; if it works with a copy of this agent's folder, \
         remove `id` from the copy to make it an agent of its own"
    )]
    Superseded(AgentId),
    /// The times of leases that the control plane told cannot work.
    #[error("the control plane wants leases of {ttl_ms} ms renewed every {renew_every_ms} ms, which cannot work")]
    Times {
        /// How long a lease lasts.
        ttl_ms: u64,
        /// How often it is to be renewed.
        renew_every_ms: u64,
    },
}

impl AgentError {
    /// Whether an agent that is started anew ends alike, until somebody gives it another key or another join token.
    pub fn is_for_good(&self) -> bool {
        matches!(self, Self::Identity(IdentityError::Revoked(_) | IdentityError::NotAdmitted(_)))
    }
}

/// The agent of one host.
pub struct Agent<C> {
    config: Config,
    control: C,
    runtimes: Registry,
}

impl<C: ControlPlane> Agent<C> {
    /// An agent that has not begun.
    pub fn new(config: Config, control: C, runtimes: Registry) -> Self {
        Self { config, control, runtimes }
    }

    /// Works until `shutdown`, and then as long as that asks for. The agent's folder is locked meanwhile.
    pub async fn run(self, shutdown: impl Future<Output = Shutdown>) -> Result<(), AgentError> {
        let Self { config, control, runtimes } = self;
        let folder = Folder::open(&config.dir)?;
        let agent = ids::load_or_draw(folder.path())?;
        let process = ids::draw_process(folder.path())?;
        let boot_id = clock::boot_id().map_err(AgentError::Boot)?;
        let admission = Admission::default();
        let mut shutdown = std::pin::pin!(shutdown);
        tokio::select! {
            identified = control.identify(folder.path(), agent) => identified?,
            _ = &mut shutdown => return Ok(()),
        }
        let registration = registration::body(&config, &runtimes, &admission, agent, process);
        let registered = tokio::select! {
            registered = registration::persist(&control, registration) => {
                registered.map_err(|error| not_registered(agent, error))?
            }
            // Shims, if there are any, look after themselves.
            _ = &mut shutdown => return Ok(()),
        };
        let ttl = Duration::from_millis(registered.lease_ttl_ms);
        let renew_every = Duration::from_millis(registered.renew_every_ms);
        if renew_every.is_zero() || renew_every >= ttl {
            let Registered { lease_ttl_ms: ttl_ms, renew_every_ms } = registered;
            return Err(AgentError::Times { ttl_ms, renew_every_ms });
        }
        let retry_every = config.renew_retry.min(renew_every / 2);
        let holder = station::Holder::new(Holder::new(HolderConfig { renew_every, retry_every }));
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let occupancy = Occupancy::default();
        let shared = Arc::new(Shared {
            config,
            agent,
            process,
            boot_id,
            folder,
            control,
            runtimes,
            occupancy,
            holder,
            admission,
            measuring: Arc::default(),
            events,
        });
        let survivors = recover::survey(&shared).await;
        Keeper::new(shared, heard).run(survivors, shutdown).await.map_err(|why| unheard(agent, why))
    }
}

fn unheard(agent: AgentId, why: Unheard) -> AgentError {
    match why {
        Unheard::Superseded => AgentError::Superseded(agent),
        Unheard::Revoked => IdentityError::Revoked(agent).into(),
    }
}

fn not_registered(agent: AgentId, error: ControlError) -> AgentError {
    match error.unheard() {
        Some(why) => unheard(agent, why),
        None => AgentError::Register(error),
    }
}
