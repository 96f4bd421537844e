//! Hosts: the machines with an agent on them.

use holm_domain::{AgentId, OrgId, UnixMicros, host::Host};

use crate::{Backend, Result, Store};

/// The largest number of hosts of an org.
pub const HOSTS_MAX: u32 = 10_000;

impl Store {
    /// Stores a host or brings its record up to date; the time of its first registration stays. A conflict if the agent is
    /// known under another org.
    pub async fn host_upsert(&self, host: &Host) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.host_upsert(host),
        }
    }

    /// Notes that the agent was heard of. Not found if it never registered.
    pub async fn host_seen(&self, org: OrgId, id: AgentId, now: UnixMicros) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.host_seen(org, id, now),
        }
    }

    /// The host, if the org has one.
    pub async fn host_get(&self, org: OrgId, id: AgentId) -> Result<Option<Host>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.host_get(org, id)),
        }
    }

    /// All hosts of the org, by name.
    pub async fn host_list(&self, org: OrgId) -> Result<Vec<Host>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.host_list(org)),
        }
    }
}
