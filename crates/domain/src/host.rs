//! A machine with an agent on it, as the control plane knows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{AgentId, OrgId, UnixMicros};

/// How much of something there is on a host, or is free on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// Runs at once.
    pub runs: u32,
    /// Thousandths of a processor.
    pub cpus_milli: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Capacity {
    /// Whether `wanted` fits into this.
    pub fn fits(&self, wanted: &Capacity) -> bool {
        wanted.runs <= self.runs && wanted.cpus_milli <= self.cpus_milli && wanted.memory_bytes <= self.memory_bytes
    }

    /// This less `taken`; nothing is ever less than zero.
    pub fn less(&self, taken: &Capacity) -> Capacity {
        Capacity {
            runs: self.runs.saturating_sub(taken.runs),
            cpus_milli: self.cpus_milli.saturating_sub(taken.cpus_milli),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
        }
    }
}

/// What a runtime on a host can do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RuntimeInfo {
    /// `process`, `container` or `vm`.
    pub name: String,
    /// What it can do, by name: `limits.memory`, `snapshot`, `root.tar`, …
    pub capabilities: Vec<String>,
    /// What it cannot enforce on this host, each with the reason.
    pub unenforced: Vec<String>,
}

/// A machine with an agent on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The identity of its agent.
    pub id: AgentId,
    /// The org whose runs it executes.
    pub org: OrgId,
    /// A name for people, usually the host's own.
    pub name: String,
    /// The version of the agent.
    pub version: String,
    /// All that there is.
    pub capacity: Capacity,
    /// The runtimes on it.
    pub runtimes: Vec<RuntimeInfo>,
    /// Names and values by which it is found.
    pub labels: BTreeMap<String, String>,
    /// When its agent registered first.
    pub registered_at: UnixMicros,
    /// When its agent was heard of last.
    pub seen_at: UnixMicros,
}
