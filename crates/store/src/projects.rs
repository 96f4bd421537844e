//! Projects: what the runs of an org belong to. A project has a name that is unique within its org.

use holm_domain::{OrgId, ProjectId, UnixMicros};

use crate::{
    Backend, Result, Store,
    error::full_unless_one,
    sql::{Args, Db, Query, Row, args, queries},
};

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
            Backend::Memory(memory) => memory.turn().await.project_create(project),
            Backend::Sql(db) => project_create(db, project).await,
        }
    }

    /// The project of that name, if the org has one.
    pub async fn project_by_name(&self, org: OrgId, name: &str) -> Result<Option<Project>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.project_by_name(org, name)),
            Backend::Sql(db) => project_by_name(db, org, name).await,
        }
    }

    /// All projects of the org, by name.
    pub async fn project_list(&self, org: OrgId) -> Result<Vec<Project>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.project_list(org)),
            Backend::Sql(db) => project_list(db, org).await,
        }
    }
}

queries! {
    of "project" in "org";
    PROJECT_CREATE = "insert into projects (id, org, name, created_at)
        select $1, $2, $3, $4 where (select count(*) from projects where org = $2) < $5";
    PROJECT_BY_NAME = "select id, org, name, created_at from projects where org = $1 and name = $2";
    PROJECT_LIST = "select id, org, name, created_at from projects where org = $1 order by name limit $2 + 0";
}

fn read(row: &Row) -> Result<Project> {
    let row = row.of("projects", "id")?;
    Ok(Project {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        name: row.text("name")?,
        created_at: row.at("created_at")?,
    })
}

/// By which a project is stored.
pub(crate) fn creation(project: &Project) -> (Query, Args) {
    let Project { id, org, name, created_at } = project;
    (PROJECT_CREATE, args![*id, *org, name.as_str(), *created_at, PROJECTS_MAX])
}

async fn project_create(db: &Db, project: &Project) -> Result<()> {
    let (query, values) = creation(project);
    full_unless_one(db.execute(query, values).await?, "projects of an org", PROJECTS_MAX)
}

async fn project_by_name(db: &Db, org: OrgId, name: &str) -> Result<Option<Project>> {
    db.row(PROJECT_BY_NAME, args![org, name]).await?.as_ref().map(read).transpose()
}

async fn project_list(db: &Db, org: OrgId) -> Result<Vec<Project>> {
    db.rows(PROJECT_LIST, args![org, PROJECTS_MAX]).await?.iter().map(read).collect()
}
