//! The time-limited right of one agent to work on one run.
//!
//! The server's half is [`grant`]: who gets a lease, how it is renewed, and what becomes of a run when it ends. The agent's
//! half is [`holder`]: when to start, renew and stop. Both are pure, and the simulator drives them together.

pub mod grant;
pub mod holder;
#[cfg(test)]
mod properties;

use serde::{Deserialize, Serialize};

use crate::{AgentId, InstanceId, UnixMicros, run::Measured};

/// One process of an agent: who claims and renews.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claimant {
    /// The agent.
    pub agent: AgentId,
    /// Which of its processes.
    pub instance: InstanceId,
}

/// The right of one agent to work on one run until it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// Who has it.
    pub agent: AgentId,
    /// The process of that agent which claimed or renewed it last. It alone may be told of the claim once more.
    pub instance: InstanceId,
    /// Its number; later leases of the same run have larger ones.
    pub fence: u64,
    /// When it expires by the server's clock. The server waits a margin beyond that before it grants anew.
    pub expires_at: UnixMicros,
    /// What the run used when the lease was renewed last; nothing where its host does not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}
