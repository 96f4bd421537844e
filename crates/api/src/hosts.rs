//! Hosts as they are shown.

use std::collections::BTreeMap;

use holm_domain::{
    AgentId, UnixMicros,
    host::{Capacity, Cordon, RuntimeInfo, refusal},
};
use serde::{Deserialize, Serialize};

/// A host with an agent on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostView {
    /// The identity of its agent.
    #[schema(value_type = String)]
    pub id: AgentId,
    /// A name for people.
    pub name: String,
    /// The version of the agent.
    pub version: String,
    /// All that there is.
    #[schema(value_type = Object)]
    pub capacity: Capacity,
    /// How many runs its agent holds now.
    pub runs_held: u32,
    /// The runtimes on it and what they can do.
    #[schema(value_type = Vec<Object>)]
    pub runtimes: Vec<RuntimeInfo>,
    /// Names and values by which it is found. `holm.storage` says that it takes no runs because its disk is nearly full,
    /// `holm.pressure` that it takes none because it is under pressure.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// That somebody wants it to take no new runs: `by` with which token, its name in `by_name`, and `at` what time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub cordon: Option<Cordon>,
    /// When its agent registered first, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub registered_at: UnixMicros,
    /// When its agent was heard of last.
    #[schema(value_type = i64)]
    pub seen_at: UnixMicros,
    /// Whether its agent was heard of within the time of a lease.
    pub alive: bool,
}

impl HostView {
    /// Why it takes no new runs; nothing if it does.
    pub fn refusal(&self) -> Option<String> {
        refusal(&self.labels, self.cordon.as_ref())
    }
}

/// All hosts of the org.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostList {
    /// The hosts, by name.
    pub hosts: Vec<HostView>,
}
