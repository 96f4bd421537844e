//! Orgs, projects, tokens and hosts in memory.

use holm_domain::{
    AgentId, InstanceId, OrgId, TokenId, UnixMicros,
    access::Token,
    audit::Entry,
    enrol::Enrolled,
    host::{Cordon, Host},
};

use super::{Memory, State};
use crate::{Error, HOSTS_MAX, ORGS_MAX, Org, PROJECTS_MAX, Project, Result, TOKENS_MAX};

impl State {
    pub(super) fn org_must_be(&self, org: OrgId) -> Result<()> {
        if self.orgs.contains_key(&org) { Ok(()) } else { Err(Error::NotFound { what: "org" }) }
    }
}

pub(super) fn room(what: &'static str, taken: usize, max: u32) -> Result<()> {
    if taken < max as usize {
        return Ok(());
    }
    Err(Error::Limit { what, given: u64::from(max) + 1, max: u64::from(max) })
}

impl Memory {
    pub(crate) fn org_create(&self, org: &Org) -> Result<()> {
        let mut state = self.lock();
        if state.orgs.contains_key(&org.id) || state.orgs.values().any(|other| other.name == org.name) {
            return Err(Error::Conflict { what: "org" });
        }
        state.orgs.insert(org.id, org.clone());
        Ok(())
    }

    pub(crate) fn org_found(&self, org: &Org, project: &Project, token: &Token, told: &[Entry]) -> Result<()> {
        room("orgs", self.lock().orgs.len(), ORGS_MAX)?;
        // The others of an org that is new, with ids that nobody has, are not refused.
        self.org_create(org)?;
        self.project_create(project)?;
        self.token_create(token, told)
    }

    pub(crate) fn org_list(&self) -> Vec<Org> {
        let mut orgs: Vec<Org> = self.lock().orgs.values().cloned().collect();
        orgs.sort_by(|a, b| a.name.cmp(&b.name));
        orgs
    }

    pub(crate) fn org_get(&self, id: OrgId) -> Option<Org> {
        self.lock().orgs.get(&id).cloned()
    }

    pub(crate) fn org_by_name(&self, name: &str) -> Option<Org> {
        self.lock().orgs.values().find(|org| org.name == name).cloned()
    }

    pub(crate) fn project_create(&self, project: &Project) -> Result<()> {
        let mut state = self.lock();
        state.org_must_be(project.org)?;
        let mut of_org = state.projects.values().filter(|other| other.org == project.org);
        if state.projects.contains_key(&project.id) || of_org.clone().any(|other| other.name == project.name) {
            return Err(Error::Conflict { what: "project" });
        }
        room("projects of an org", of_org.by_ref().count(), PROJECTS_MAX)?;
        state.projects.insert(project.id, project.clone());
        Ok(())
    }

    pub(crate) fn project_by_name(&self, org: OrgId, name: &str) -> Option<Project> {
        self.lock().projects.values().find(|project| project.org == org && project.name == name).cloned()
    }

    pub(crate) fn project_list(&self, org: OrgId) -> Vec<Project> {
        let mut found: Vec<Project> =
            self.lock().projects.values().filter(|project| project.org == org).cloned().collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    pub(crate) fn token_create(&self, token: &Token, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        state.org_must_be(token.org)?;
        if state.tokens.contains_key(&token.id) || state.tokens.values().any(|other| other.hash == token.hash) {
            return Err(Error::Conflict { what: "token" });
        }
        let live = state.tokens.values().filter(|other| other.org == token.org && other.revoked_at.is_none()).count();
        room("tokens of an org", live, TOKENS_MAX)?;
        state.tokens.insert(token.id, token.clone());
        state.tell(told);
        Ok(())
    }

    pub(crate) fn token_by_hash(&self, hash: &[u8; 32]) -> Option<Token> {
        self.lock().tokens.values().find(|token| token.hash == *hash).cloned()
    }

    pub(crate) fn token_get(&self, org: OrgId, id: TokenId) -> Option<Token> {
        self.lock().tokens.get(&id).filter(|token| token.org == org).cloned()
    }

    pub(crate) fn token_list(&self, org: OrgId) -> Vec<Token> {
        let mut found: Vec<Token> = self.lock().tokens.values().filter(|token| token.org == org).cloned().collect();
        found.sort_by_key(|token| (token.revoked_at.is_some(), std::cmp::Reverse(token.id)));
        found.truncate(TOKENS_MAX as usize);
        found
    }

    pub(crate) fn token_revoke(&self, org: OrgId, id: TokenId, now: UnixMicros, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        let token = state.tokens.get_mut(&id).filter(|token| token.org == org);
        let token = token.ok_or(Error::NotFound { what: "token" })?;
        if token.revoked_at.is_none() {
            token.revoked_at = Some(now);
            state.tell(told);
        }
        Ok(())
    }

    pub(crate) fn host_upsert(&self, expect_instance: Option<InstanceId>, host: &Host) -> Result<()> {
        let mut state = self.lock();
        state.org_must_be(host.org)?;
        let speaks = |known: Enrolled| {
            (known.org, known.key.revoked_at) == (host.org, None)
                && host.key.map(|key| key.public) == Some(known.key.public)
        };
        if !state.current_key(host.id).is_none_or(speaks) {
            return Err(Error::Conflict { what: "host" });
        }
        let Some(known) = state.hosts.get(&host.id) else {
            let count = state.hosts.values().filter(|other| other.org == host.org).count();
            room("hosts of an org", count, HOSTS_MAX)?;
            state.hosts.insert(host.id, Host { cordon: None, pool: None, ..host.clone() });
            return Ok(());
        };
        if known.org != host.org || Some(known.instance) != expect_instance {
            return Err(Error::Conflict { what: "host" });
        }
        let Host { registered_at, cordon, .. } = known.clone();
        state.hosts.insert(host.id, Host { registered_at, cordon, pool: None, ..host.clone() });
        Ok(())
    }

    pub(crate) fn host_seen(&self, org: OrgId, id: AgentId, now: UnixMicros) -> Result<()> {
        let mut state = self.lock();
        let host = state.hosts.get_mut(&id).filter(|host| host.org == org).ok_or(Error::NotFound { what: "host" })?;
        host.seen_at = now;
        Ok(())
    }

    pub(crate) fn host_pool(&self, host: &Host, pool: Option<&str>, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        let known = state.hosts.get(&host.id).filter(|known| known.org == host.org);
        if known.is_none_or(|known| state.whole(known).pool != host.pool) {
            return Err(Error::Conflict { what: "host" });
        }
        match pool {
            Some(pool) => drop(state.pools.insert(host.id, (pool.to_owned(), host.voice()))),
            None => drop(state.pools.remove(&host.id)),
        }
        state.tell(told);
        Ok(())
    }

    pub(crate) fn host_cordon(&self, org: OrgId, id: AgentId, cordon: Option<&Cordon>, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        let host = state.hosts.get_mut(&id).filter(|host| host.org == org).ok_or(Error::NotFound { what: "host" })?;
        if host.cordon.is_some() != cordon.is_some() {
            host.cordon = cordon.cloned();
            state.tell(told);
        }
        Ok(())
    }

    pub(crate) fn host_get(&self, org: OrgId, id: AgentId) -> Option<Host> {
        let state = self.lock();
        state.hosts.get(&id).filter(|host| host.org == org).map(|host| state.whole(host))
    }

    /// Those of all orgs.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let state = self.lock();
        state.hosts.values().map(|host| state.whole(host)).collect()
    }

    pub(crate) fn host_list(&self, org: OrgId) -> Vec<Host> {
        let state = self.lock();
        let of_org = state.hosts.values().filter(|host| host.org == org);
        let mut found: Vec<Host> = of_org.map(|host| state.whole(host)).collect();
        found.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        found
    }
}
