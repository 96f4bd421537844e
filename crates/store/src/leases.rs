//! Leases of runs, looked at by time and by agent. They are written by [`Store::run_save`] alone.

use std::collections::BTreeMap;

use holm_domain::{AgentId, OrgId, UnixMicros, run::Run};

use crate::{Backend, Result, Store, error::page};

/// The most runs that one look at leases or deadlines yields.
pub const LEASES_PAGE_MAX: u32 = 10_000;

impl Store {
    /// Runs of all orgs whose deadline is at `now` or before, the longest overdue first; for the server's own task.
    pub async fn runs_due(&self, now: UnixMicros, limit: u32) -> Result<Vec<Run>> {
        let limit = page(limit, LEASES_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.runs_due(now, limit)),
        }
    }

    /// The runs that `agent` holds a lease of, at most [`LEASES_PAGE_MAX`].
    pub async fn runs_of_agent(&self, org: OrgId, agent: AgentId) -> Result<Vec<Run>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.runs_of_agent(org, agent)),
        }
    }

    /// How many runs each agent of the org holds a lease of; agents without one are not in it.
    pub async fn lease_counts(&self, org: OrgId) -> Result<BTreeMap<AgentId, u32>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.lease_counts(org)),
        }
    }
}
