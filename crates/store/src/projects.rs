//! Projects: what the runs of an org belong to. A project has a name that is unique within its org.

use holm_domain::{OrgId, ProjectId, UnixMicros};

use crate::{Backend, Result, Store};

/// The largest number of projects of an org.
pub const PROJECTS_MAX: u32 = 10_000;

/// What runs of an org belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its identity.
    pub id: ProjectId,
    /// The org it belongs to.
    pub org: OrgId,
    /// Its name, unique within the org.
    pub name: String,
    /// When it was made.
    pub created_at: UnixMicros,
}

impl Store {
    /// Stores a new project; a conflict if its id or its name is taken, not found if there is no such org.
    pub async fn project_create(&self, project: &Project) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.project_create(project),
        }
    }

    /// The project of that name, if the org has one.
    pub async fn project_by_name(&self, org: OrgId, name: &str) -> Result<Option<Project>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.project_by_name(org, name)),
        }
    }

    /// All projects of the org, by name.
    pub async fn project_list(&self, org: OrgId) -> Result<Vec<Project>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.project_list(org)),
        }
    }
}
