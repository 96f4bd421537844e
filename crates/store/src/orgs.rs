//! Orgs: the tenants. An org has a name that is unique on this store.

use holm_domain::{OrgId, UnixMicros};

use crate::{Backend, Result, Store};

/// A tenant: the boundary that nothing crosses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Org {
    /// Its identity.
    pub id: OrgId,
    /// Its name, unique on this store.
    pub name: String,
    /// When it was made.
    pub created_at: UnixMicros,
}

impl Store {
    /// Stores a new org; a conflict if its id or its name is taken.
    pub async fn org_create(&self, org: &Org) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.org_create(org),
        }
    }

    /// The org, if there is one.
    pub async fn org_get(&self, id: OrgId) -> Result<Option<Org>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.org_get(id)),
        }
    }

    /// The org of that name, if there is one.
    pub async fn org_by_name(&self, name: &str) -> Result<Option<Org>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.org_by_name(name)),
        }
    }
}
