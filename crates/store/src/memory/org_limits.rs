//! Limits of orgs in memory.

use holm_domain::{
    OrgId, UnixMicros,
    audit::Entry,
    org_limits::{OrgLimit, OrgOverrides},
    run::RunState,
};

use super::Memory;
use crate::{Error, Result};

impl Memory {
    pub(crate) fn org_limits_get(&self, org: OrgId) -> OrgOverrides {
        self.lock().org_limits.get(&org).copied().unwrap_or_default()
    }

    pub(crate) fn org_limit_set(&self, org: OrgId, limit: OrgLimit, value: Option<u64>, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        if value.is_some() {
            state.org_must_be(org)?;
        }
        let own = state.org_limits.entry(org).or_default();
        let is_change = value.is_some() || own.of(limit).is_some();
        own.set(limit, value);
        state.tell(if is_change { told } else { &[] });
        Ok(())
    }

    pub(crate) fn org_rate_get(&self, org: OrgId, kind: &'static str) -> Option<UnixMicros> {
        self.lock().org_rates.get(&(org, kind)).copied()
    }

    pub(crate) fn org_rate_move(
        &self,
        org: OrgId,
        kind: &'static str,
        expected: Option<UnixMicros>,
        tat: UnixMicros,
    ) -> Result<()> {
        let mut state = self.lock();
        state.org_must_be(org)?;
        if state.org_rates.get(&(org, kind)).copied() != expected {
            return Err(Error::Conflict { what: "rate" });
        }
        state.org_rates.insert((org, kind), tat);
        Ok(())
    }

    pub(crate) fn org_leases_count(&self, org: OrgId, most: u64) -> u64 {
        let state = self.lock();
        let held = state.runs.values().filter(|row| row.run.org == org && row.run.lease.is_some()).count();
        (held as u64).min(most)
    }

    pub(crate) fn org_queued_count(&self, org: OrgId, most: u64) -> u64 {
        let state = self.lock();
        let queued = state.runs.values().filter(|row| row.run.org == org && row.run.state == RunState::Queued);
        (queued.count() as u64).min(most)
    }
}
