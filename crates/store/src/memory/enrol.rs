//! Join tokens and keys of hosts in memory.

use holm_domain::{
    AgentId, OrgId, TokenId, UnixMicros,
    audit::Entry,
    enrol::{Enrolled, HostKey, HostPublicKey, Join, JoinUse},
    host::Host,
};

use super::{Memory, State};
use crate::{Error, JOIN_TOKENS_ENDED_MAX, JOIN_TOKENS_MAX, Result, enrol::JOIN_TOKENS, error::full_unless_one};

impl State {
    /// The host as it is read: with the key of its agent, and its pool.
    pub(super) fn whole(&self, host: &Host) -> Host {
        let key = self.current_key(host.id).filter(|known| known.org == host.org).map(|known| known.key);
        let host = Host { key, pool: None, ..host.clone() };
        let pool = self.pools.get(&host.id).filter(|(_, voice)| *voice == host.voice());
        Host { pool: pool.map(|(pool, _)| pool.clone()), ..host }
    }

    /// The newest key of an agent.
    pub(super) fn current_key(&self, agent: AgentId) -> Option<Enrolled> {
        self.host_keys.get(self.current_keys.get(&agent)?).copied()
    }
}

impl Memory {
    pub(crate) fn join_create(&self, join: &Join, forget_before: UnixMicros, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        state.org_must_be(join.org)?;
        if state.joins.contains_key(&join.id) || state.joins.values().any(|other| other.hash == join.hash) {
            return Err(Error::Conflict { what: "join token" });
        }
        state.joins.retain(|_, other| other.org != join.org || other.expires_at >= forget_before);
        let is_open = |other: &Join| other.used.is_none() && other.works(join.created_at).is_ok();
        let of_org = state.joins.values().filter(|other| other.org == join.org);
        let (open, ended): (Vec<&Join>, Vec<&Join>) = of_org.partition(|other| is_open(other));
        if open.len() >= JOIN_TOKENS_MAX as usize {
            return full_unless_one(0, JOIN_TOKENS, JOIN_TOKENS_MAX);
        }
        let forgotten: Vec<TokenId> =
            ended.iter().rev().skip(JOIN_TOKENS_ENDED_MAX as usize).map(|join| join.id).collect();
        state.joins.retain(|id, _| !forgotten.contains(id));
        state.joins.insert(join.id, Join { revoked_at: None, used: None, ..join.clone() });
        state.tell(told);
        Ok(())
    }

    pub(crate) fn join_by_hash(&self, hash: &[u8; 32]) -> Option<Join> {
        self.lock().joins.values().find(|join| join.hash == *hash).cloned()
    }

    pub(crate) fn join_list(&self, org: OrgId) -> Vec<Join> {
        self.lock().joins.values().rev().filter(|join| join.org == org).cloned().collect()
    }

    pub(crate) fn join_get(&self, org: OrgId, id: TokenId) -> Option<Join> {
        self.lock().joins.get(&id).filter(|join| join.org == org).cloned()
    }

    pub(crate) fn join_revoke(&self, org: OrgId, id: TokenId, now: UnixMicros, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        let join = state.joins.get_mut(&id).filter(|join| join.org == org);
        let join = join.ok_or(Error::NotFound { what: "join token" })?;
        if join.used.is_some() {
            return Err(Error::Conflict { what: "join token" });
        }
        if join.revoked_at.is_none() {
            join.revoked_at = Some(now);
            state.tell(told);
        }
        Ok(())
    }

    pub(crate) fn host_enrol(
        &self,
        org: OrgId,
        id: TokenId,
        used: JoinUse,
        expected: Option<&Host>,
        told: &[Entry],
    ) -> Result<()> {
        let mut state = self.lock();
        let works = |join: &Join| {
            join.org == org && join.used.is_none() && join.revoked_at.is_none() && join.expires_at > used.at
        };
        if !state.joins.get(&id).is_some_and(works) {
            return Err(Error::Conflict { what: "join token" });
        }
        let host = state.hosts.get(&used.agent);
        let is_theirs = host.is_some_and(|host| host.org != org);
        let is_current = |host: &Host| (host.instance, host.seen_at);
        if !is_theirs && host.map(is_current) != expected.map(is_current) {
            return Err(Error::Conflict { what: "host" });
        }
        let is_taken = |known: Enrolled| known.org != org || known.key.revoked_at.is_none();
        let is_known = state.host_keys.contains_key(&used.key.0);
        if is_theirs || is_known || state.current_key(used.agent).is_some_and(is_taken) {
            return Err(Error::Conflict { what: "host key" });
        }
        let key = HostKey { public: used.key, join: id, enrolled_at: used.at, revoked_at: None };
        state.host_keys.insert(used.key.0, Enrolled { agent: used.agent, org, key });
        state.current_keys.insert(used.agent, used.key.0);
        if let Some(join) = state.joins.get_mut(&id) {
            join.used = Some(used);
        }
        state.tell(told);
        Ok(())
    }

    pub(crate) fn host_key_get(&self, public: HostPublicKey) -> Option<Enrolled> {
        self.lock().host_keys.get(&public.0).copied()
    }

    pub(crate) fn host_key_of(&self, agent: AgentId) -> Option<(OrgId, HostKey)> {
        self.lock().current_key(agent).map(|Enrolled { org, key, .. }| (org, key))
    }

    pub(crate) fn host_key_revoke(
        &self,
        org: OrgId,
        agent: AgentId,
        meant: Option<HostPublicKey>,
        now: UnixMicros,
        told: &[Entry],
    ) -> Result<HostKey> {
        let mut state = self.lock();
        let public = meant.map(|meant| meant.0).or_else(|| state.current_keys.get(&agent).copied());
        let found = public.and_then(|public| state.host_keys.get_mut(&public));
        let found = found.filter(|known| (known.org, known.agent) == (org, agent));
        let key = &mut found.ok_or(Error::NotFound { what: "host key" })?.key;
        let is_new = key.revoked_at.is_none();
        key.revoked_at.get_or_insert(now);
        let key = *key;
        state.tell(if is_new { told } else { &[] });
        Ok(key)
    }
}
