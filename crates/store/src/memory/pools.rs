//! Pools in memory.

use std::collections::BTreeMap;

use holm_domain::{AgentId, OrgId, RunId, audit::Entry, host::Host, run::Run};

use super::{Memory, State, tenants::room};
use crate::{
    POOL_ORGS_MAX, POOL_PAIRS_MAX, PoolLeases, Result,
    pools::{ORGS_OF_POOL, ORGS_OF_POOLS, SHARED_HOSTS_MAX, is_of},
};

impl State {
    fn is_in_pool(&self, agent: AgentId, owner: OrgId, pool: &str) -> bool {
        let host = self.hosts.get(&agent).filter(|host| host.org == owner);
        host.is_some_and(|host| self.whole(host).pool.as_deref() == Some(pool))
    }
}

impl Memory {
    pub(crate) fn pool_share(&self, pool: &str, org: OrgId, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        state.org_must_be(org)?;
        let pair = (pool.to_owned(), org);
        if !state.pool_orgs.contains(&pair) {
            room(ORGS_OF_POOLS, state.pool_orgs.len(), POOL_PAIRS_MAX)?;
            room(ORGS_OF_POOL, state.pool_orgs.iter().filter(|(shared, _)| shared == pool).count(), POOL_ORGS_MAX)?;
            state.pool_orgs.insert(pair);
            state.tell(told);
        }
        Ok(())
    }

    pub(crate) fn pool_unshare(&self, pool: &str, org: OrgId, told: &[Entry]) -> bool {
        let mut state = self.lock();
        let did = state.pool_orgs.remove(&(pool.to_owned(), org));
        state.tell(if did { told } else { &[] });
        did
    }

    pub(crate) fn pool_list(&self) -> Vec<(String, OrgId)> {
        self.lock().pool_orgs.iter().cloned().collect()
    }

    pub(crate) fn pool_orgs(&self, pool: &str) -> Vec<OrgId> {
        let state = self.lock();
        state.pool_orgs.iter().filter(|(shared, _)| shared == pool).map(|(_, org)| *org).collect()
    }

    pub(crate) fn pool_leases(&self, owner: OrgId, pool: &str) -> Vec<PoolLeases> {
        let (state, mut running) = (self.lock(), BTreeMap::new());
        for row in state.runs.values() {
            if let Some(lease) = row.run.lease.filter(|lease| state.is_in_pool(lease.agent, owner, pool)) {
                *running.entry((lease.agent, row.run.org)).or_default() += 1;
            }
        }
        running.into_iter().map(|((agent, org), runs)| PoolLeases { agent, org, runs }).collect()
    }

    pub(crate) fn pool_counts(&self, owner: OrgId) -> BTreeMap<String, u64> {
        let (state, mut counts) = (self.lock(), BTreeMap::new());
        for lease in state.runs.values().filter_map(|row| row.run.lease) {
            let host = state.hosts.get(&lease.agent).filter(|host| host.org == owner);
            if let Some(pool) = host.and_then(|host| state.whole(host).pool) {
                *counts.entry(pool).or_default() += 1;
            }
        }
        counts
    }

    pub(crate) fn hosts_shared(&self, owner: OrgId, org: OrgId) -> Vec<Host> {
        let state = self.lock();
        let serves = |pool: &str| state.pool_orgs.contains(&(pool.to_owned(), org));
        let owned = state.hosts.values().filter(|host| host.org == owner && host.org != org);
        let is_shared = |host: &Host| host.pool.as_deref().is_some_and(serves);
        let mut found: Vec<Host> = owned.map(|host| state.whole(host)).filter(is_shared).collect();
        found.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        found.truncate(SHARED_HOSTS_MAX as usize);
        found
    }

    pub(crate) fn run_of_agent(&self, agent: AgentId, run: RunId) -> Option<Run> {
        let state = self.lock();
        let run = &state.runs.get(&run)?.run;
        is_of(agent, run).then(|| run.clone())
    }
}
