//! Orgs: the tenants. An org has a name that is unique on this store.

use holm_domain::{OrgId, UnixMicros};

use crate::{
    Backend, Result, Store,
    sql::{Db, Row, args, queries},
};

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

async fn org_get(db: &Db, id: OrgId) -> Result<Option<Org>> {
    db.row(ORG_GET, args![id]).await?.as_ref().map(read).transpose()
}

async fn org_by_name(db: &Db, name: &str) -> Result<Option<Org>> {
    db.row(ORG_BY_NAME, args![name]).await?.as_ref().map(read).transpose()
}
