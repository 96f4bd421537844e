//! Orgs: the tenants. An org has a name that is unique on this store.

use holm_domain::{OrgId, UnixMicros, access::Token, audit::Entry};

use crate::{
    Backend, Project, Result, Store, audit,
    error::full_unless_one,
    projects,
    sql::{Db, Row, args, queries},
    tokens,
};

/// The largest number of orgs.
pub const ORGS_MAX: u32 = 10_000;

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
            Backend::Memory(memory) => memory.turn().await.org_create(org),
            Backend::Sql(db) => org_create(db, org).await,
        }
    }

    /// Stores a new org with its first project and its first token, or nothing; a conflict if a name or an id is taken, and
    /// [`Error::Limit`](crate::Error::Limit) beyond [`ORGS_MAX`].
    pub async fn org_found(&self, org: &Org, project: &Project, token: &Token, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.org_found(org, project, token, told),
            Backend::Sql(db) => org_found(db, org, project, token, told).await,
        }
    }

    /// All orgs, by name.
    pub async fn org_list(&self) -> Result<Vec<Org>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.org_list()),
            Backend::Sql(db) => db.rows(ORG_LIST, args![ORGS_MAX]).await?.iter().map(read).collect(),
        }
    }

    /// The org, if there is one.
    pub async fn org_get(&self, id: OrgId) -> Result<Option<Org>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.org_get(id)),
            Backend::Sql(db) => org_get(db, id).await,
        }
    }

    /// The org of that name, if there is one.
    pub async fn org_by_name(&self, name: &str) -> Result<Option<Org>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.org_by_name(name)),
            Backend::Sql(db) => org_by_name(db, name).await,
        }
    }
}

queries! {
    of "org" in "store";
    ORG_CREATE = "insert into orgs (id, name, created_at) values ($1, $2, $3)";
    ORG_FOUND = "insert into orgs (id, name, created_at) select $1, $2, $3 where (select count(*) from orgs) < $4";
    ORG_LIST = "select id, name, created_at from orgs order by name limit $1 + 0";
    ORG_GET = "select id, name, created_at from orgs where id = $1";
    ORG_BY_NAME = "select id, name, created_at from orgs where name = $1";
}

fn read(row: &Row) -> Result<Org> {
    let row = row.of("orgs", "id")?;
    Ok(Org { id: row.parsed("id")?, name: row.text("name")?, created_at: row.at("created_at")? })
}

async fn org_create(db: &Db, org: &Org) -> Result<()> {
    db.execute(ORG_CREATE, args![org.id, org.name.as_str(), org.created_at]).await.map(drop)
}

async fn org_found(db: &Db, org: &Org, project: &Project, token: &Token, told: &[Entry]) -> Result<()> {
    let mut tx = db.begin().await?;
    let made = tx.execute(ORG_FOUND, args![org.id, org.name.as_str(), org.created_at, ORGS_MAX]).await?;
    full_unless_one(made, "orgs", ORGS_MAX)?;
    for (query, values) in [projects::creation(project), tokens::creation(token)] {
        tx.execute(query, values).await?;
    }
    audit::commit(tx, told).await
}

async fn org_get(db: &Db, id: OrgId) -> Result<Option<Org>> {
    db.row(ORG_GET, args![id]).await?.as_ref().map(read).transpose()
}

async fn org_by_name(db: &Db, name: &str) -> Result<Option<Org>> {
    db.row(ORG_BY_NAME, args![name]).await?.as_ref().map(read).transpose()
}
