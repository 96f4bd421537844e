//! How much of something each org may have open at once.
//!
//! A [`Pass`] is given back when it is dropped, whatever became of the request that had it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use holm_domain::{ErrorCode, OrgId};

use crate::problem::Failure;

/// Counts what each org has open, up to a limit.
#[derive(Debug)]
pub struct Gate {
    what: &'static str,
    per_org_max: usize,
    open: Mutex<HashMap<OrgId, usize>>,
}

impl Gate {
    /// A gate that lets each org have `per_org_max` of `what` open.
    pub fn new(what: &'static str, per_org_max: usize) -> Arc<Self> {
        Arc::new(Self { what, per_org_max, open: Mutex::default() })
    }

    /// Lets one more in, or answers `too_many`.
    pub fn enter(self: &Arc<Self>, org: OrgId) -> Result<Pass, Failure> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.get(&org).copied().unwrap_or(0);
        if count >= self.per_org_max {
            let detail = format!("the org has {count} {} open, which is the limit; close one", self.what);
            return Err(Failure::new(ErrorCode::TooMany, detail));
        }
        open.insert(org, count + 1);
        drop(open);
        Ok(Pass { gate: Arc::clone(self), org })
    }

    /// What it counts.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// How many all orgs have open.
    pub fn total(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// How many the org has open.
    #[cfg(test)]
    pub fn open(&self, org: OrgId) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&org).copied().unwrap_or(0)
    }
}

/// The right to have one open.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    org: OrgId,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.org) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.remove(&self.org);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_org_has_its_own_limit_and_passes_come_back() {
        let gate = Gate::new("streams", 1);
        let (one, other) = (OrgId::from_uuid(Uuid::from_u128(1)), OrgId::from_uuid(Uuid::from_u128(2)));
        let pass = gate.enter(one).unwrap();
        assert_eq!(gate.enter(one).unwrap_err().code(), ErrorCode::TooMany);
        let _unaffected = gate.enter(other).unwrap();
        drop(pass);
        let _again = gate.enter(one).unwrap();
    }
}
