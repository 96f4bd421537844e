//! How much of something each org may have open at once.
//!
//! A [`Pass`] is given back when it is dropped, whatever became of the request that had it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holm_domain::{
    ErrorCode, OrgId,
    access::{Role, Token},
};

use crate::problem::Failure;

/// Counts what each org has open, up to a limit.
#[derive(Debug)]
pub struct Gate {
    what: &'static str,
    per_org_max: usize,
    max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    orgs: HashMap<OrgId, usize>,
    total: usize,
}

impl Gate {
    /// A gate that lets each org have `per_org_max` of `what` open.
    pub fn new(what: &'static str, per_org_max: usize) -> Arc<Self> {
        Self::bounded(what, per_org_max, usize::MAX)
    }

    /// One that lets all orgs together have no more than `max`.
    pub fn bounded(what: &'static str, per_org_max: usize, max: usize) -> Arc<Self> {
        Arc::new(Self { what, per_org_max, max, open: Mutex::default() })
    }

    /// Lets one more in, or answers `too_many`.
    pub fn enter(self: &Arc<Self>, org: OrgId) -> Result<Pass, Failure> {
        self.enter_with(org, 1)
    }

    /// Lets `count` more in, or answers `too_many`. What is more than an org may have takes all that it may have.
    pub fn enter_with(self: &Arc<Self>, org: OrgId, count: usize) -> Result<Pass, Failure> {
        let (what, per_org_max, max) = (self.what, self.per_org_max.min(self.max), self.max);
        let count = count.min(per_org_max).max(1);
        let mut open = self.open();
        let (of_org, total) = (open.orgs.get(&org).copied().unwrap_or(0), open.total);
        let detail = if of_org + count > per_org_max {
            format!("the org has {of_org} {what} open and may have {per_org_max}; close some, or try again")
        } else if total + count > max {
            format!("all orgs together have {total} {what} open and may have {max}; try again")
        } else {
            *open.orgs.entry(org).or_default() += count;
            open.total += count;
            return Ok(Pass { gate: Arc::clone(self), org, count });
        };
        Err(Failure::new(ErrorCode::TooMany, detail))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it counts.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// How many all orgs have open.
    pub fn total(&self) -> usize {
        self.open().total
    }

    /// How many the org has open.
    #[cfg(test)]
    pub fn open_of(&self, org: OrgId) -> usize {
        self.open().orgs.get(&org).copied().unwrap_or(0)
    }
}

/// The right to have some open.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    org: OrgId,
    count: usize,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.open();
        open.total -= self.count;
        match open.orgs.get_mut(&self.org) {
            Some(count) if *count > self.count => *count -= self.count,
            _ => {
                open.orgs.remove(&self.org);
            }
        }
    }
}

/// On whose account something is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Party {
    /// The org.
    pub org: OrgId,
    /// Whether it is one of its agents.
    pub is_agent: bool,
}

impl Party {
    /// The one that a token stands for.
    pub fn of(token: &Token) -> Self {
        Self { org: token.org, is_agent: token.role == Role::Agent }
    }

    /// The rest of the org.
    pub fn other(self) -> Self {
        Self { is_agent: !self.is_agent, ..self }
    }
}

/// Two gates for the same thing: what agents need is never taken by anybody else.
#[derive(Debug)]
pub struct Gates {
    /// For agents.
    pub agents: Arc<Gate>,
    /// For everybody else.
    pub others: Arc<Gate>,
}

impl Gates {
    /// Lets `count` more in, or answers `too_many`.
    pub fn enter(&self, party: Party, count: usize) -> Result<Pass, Failure> {
        self.of(party).enter_with(party.org, count)
    }

    fn of(&self, party: Party) -> &Arc<Gate> {
        if party.is_agent { &self.agents } else { &self.others }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn each_org_has_its_own_limit_and_passes_come_back() {
        let gate = Gate::new("streams", 1);
        let pass = gate.enter(org(1)).unwrap();
        assert_eq!(gate.enter(org(1)).unwrap_err().code(), ErrorCode::TooMany);
        let _unaffected = gate.enter(org(2)).unwrap();
        drop(pass);
        let _again = gate.enter(org(1)).unwrap();
    }

    #[test]
    fn all_orgs_together_have_a_limit_and_what_is_too_large_takes_all_of_an_org() {
        let gate = Gate::bounded("bytes", 10, 15);
        let pass = gate.enter_with(org(1), 1_000).unwrap();
        assert_eq!((gate.open_of(org(1)), gate.total()), (10, 10));
        let small = gate.enter_with(org(2), 5).unwrap();
        assert_eq!(gate.enter_with(org(3), 1).unwrap_err().code(), ErrorCode::TooMany);
        drop(pass);
        let _room = gate.enter_with(org(3), 10).unwrap();
        drop(small);
        assert_eq!((gate.open_of(org(2)), gate.total()), (0, 10));
    }

    #[test]
    fn agents_have_a_gate_of_their_own() {
        let gates = Gates { agents: Gate::new("bytes", 1), others: Gate::new("bytes", 1) };
        let (agent, member) = (Party { org: org(1), is_agent: true }, Party { org: org(1), is_agent: false });
        let _taken = gates.enter(member, 1).unwrap();
        assert!(gates.enter(member, 1).is_err());
        let _free = gates.enter(agent, 1).unwrap();
    }
}
