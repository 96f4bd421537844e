//! The audit logs of orgs in memory.

use holm_domain::{
    OrgId,
    audit::{Entry, Head, Record},
};

use super::{Memory, State};
use crate::Result;

impl State {
    /// Appends what is told of a change, which was made under the same lock.
    pub(super) fn tell(&mut self, told: &[Entry]) {
        for entry in told {
            let records = self.audit.entry(entry.org).or_default();
            let head = records.last().map(Record::head).unwrap_or_default();
            records.push(entry.after(head));
        }
    }
}

impl Memory {
    pub(crate) fn audit_append(&self, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        told.iter().try_for_each(|entry| state.org_must_be(entry.org))?;
        state.tell(told);
        Ok(())
    }

    pub(crate) fn audit_page(&self, org: OrgId, after: u64, limit: u32) -> Vec<Record> {
        let state = self.lock();
        let records = state.audit.get(&org).into_iter().flatten();
        records.filter(|record| record.seq > after).take(limit as usize).cloned().collect()
    }

    pub(crate) fn audit_head(&self, org: OrgId) -> Head {
        let state = self.lock();
        state.audit.get(&org).and_then(|records| records.last()).map(Record::head).unwrap_or_default()
    }
}
