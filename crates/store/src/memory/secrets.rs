//! Secrets of orgs and projects in memory.

use holm_domain::{
    EnvelopeId, OrgId, ProjectId, SecretId,
    audit::Entry,
    egress::bound::Bound,
    secret::{SECRETS_MAX, SecretName},
};

use super::{Memory, State, tenants::room};
use crate::{Error, KeptSecret, ResealedSecret, Result, SealedSecret, Secret};

const CONFLICT: Error = Error::Conflict { what: "secret" };
const NOT_FOUND: Error = Error::NotFound { what: "secret" };

fn is_named(kept: &KeptSecret, org: OrgId, project: Option<ProjectId>, name: &SecretName) -> bool {
    (kept.secret.org, kept.secret.project) == (org, project) && kept.secret.name == *name
}

impl State {
    fn secret_named(&self, org: OrgId, project: Option<ProjectId>, name: &SecretName) -> Option<&KeptSecret> {
        self.secrets.values().find(|kept| is_named(kept, org, project, name))
    }

    /// Whether a secret refers to that data key.
    pub(super) fn is_sealing_secrets(&self, by: EnvelopeId) -> bool {
        self.secrets.values().any(|kept| kept.sealed.by == by)
    }
}

impl Memory {
    pub(crate) fn secret_create(&self, new: &KeptSecret, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        let Secret { id, org, project, name, .. } = &new.secret;
        state.keys.seals_still(new.sealed.by)?;
        let taken = state.secrets.values().filter(|kept| kept.secret.org == *org).count();
        room("secrets of an org", taken, SECRETS_MAX)?;
        if state.secrets.contains_key(id) || state.secret_named(*org, *project, name).is_some() {
            return Err(CONFLICT);
        }
        let is_of_org = |id: &ProjectId| state.projects.get(id).is_some_and(|project| project.org == *org);
        if !state.orgs.contains_key(org) || !project.as_ref().is_none_or(is_of_org) {
            return Err(Error::NotFound { what: "org or project" });
        }
        state.secrets.insert(*id, new.clone());
        state.tell(told);
        Ok(())
    }

    pub(crate) fn secret_replace(&self, new: &KeptSecret, bound: Option<&Bound>, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        state.keys.seals_still(new.sealed.by)?;
        let found = state.secrets.get_mut(&new.secret.id).filter(|kept| kept.secret.org == new.secret.org);
        let found = found.ok_or(NOT_FOUND)?;
        if !self.is_current(new.secret.version.saturating_sub(1), found.secret.version) {
            return Err(CONFLICT);
        }
        found.secret.version = new.secret.version;
        found.secret.updated_at = new.secret.updated_at;
        found.sealed = new.sealed.clone();
        if let Some(bound) = bound {
            found.secret.bound = bound.clone();
        }
        state.tell(told);
        Ok(())
    }

    pub(crate) fn secret_bind(&self, new: &Secret, told: &[Entry]) -> Result<()> {
        let mut state = self.lock();
        let found = state.secrets.get_mut(&new.id).filter(|kept| kept.secret.org == new.org).ok_or(NOT_FOUND)?;
        if !self.is_current(new.version, found.secret.version) {
            return Err(CONFLICT);
        }
        found.secret.bound = new.bound.clone();
        state.tell(told);
        Ok(())
    }

    pub(crate) fn secret_delete(
        &self,
        org: OrgId,
        project: Option<ProjectId>,
        name: &SecretName,
        told: &[Entry],
    ) -> Result<u64> {
        let mut state = self.lock();
        let Secret { id, version, .. } = state.secret_named(org, project, name).ok_or(NOT_FOUND)?.secret;
        state.secrets.remove(&id);
        state.tell(told);
        Ok(version)
    }

    pub(crate) fn secrets(&self, org: OrgId) -> Vec<Secret> {
        let state = self.lock();
        let of_org = state.secrets.values().filter(|kept| kept.secret.org == org);
        let mut found: Vec<Secret> = of_org.map(|kept| kept.secret.clone()).collect();
        found.sort_by(|a, b| (&a.name, a.project).cmp(&(&b.name, b.project)));
        found
    }

    pub(crate) fn secret_by_name(
        &self,
        org: OrgId,
        project: Option<ProjectId>,
        name: &SecretName,
    ) -> Option<KeptSecret> {
        let state = self.lock();
        state.secret_named(org, project, name).or_else(|| state.secret_named(org, None, name)).cloned()
    }

    pub(crate) fn secrets_sealed_by(&self, by: EnvelopeId, after: Option<SecretId>, limit: u32) -> Vec<KeptSecret> {
        let state = self.lock();
        let is_next = |kept: &&KeptSecret| kept.sealed.by == by && Some(kept.secret.id) > after;
        state.secrets.values().filter(is_next).take(limit as usize).cloned().collect()
    }

    pub(crate) fn secrets_reseal(&self, old: EnvelopeId, new: EnvelopeId, resealed: &[ResealedSecret]) -> Result<u32> {
        let mut state = self.lock();
        state.keys.seals_still(new)?;
        let mut count = 0;
        for ResealedSecret { org, id, version, sealed } in resealed {
            let is_same = |kept: &&mut KeptSecret| {
                kept.secret.org == *org && kept.secret.version == *version && kept.sealed.by == old
            };
            if let Some(kept) = state.secrets.get_mut(id).filter(is_same) {
                kept.sealed = SealedSecret { by: new, bytes: sealed.clone() };
                count += 1;
            }
        }
        Ok(count)
    }
}
