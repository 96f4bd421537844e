//! What orgs may have and do at most: their own limits, the state of their rates, and how much they have.
//!
//! The state of a rate is one instant and is changed by compare-and-swap on it. That of a rate only grows; beside
//! them lie the turns in which servers grant, which are 0 between two of them. Counts go no further than they are asked to.

use holm_domain::{
    OrgId, UnixMicros,
    audit::Entry,
    org_limits::{OrgLimit, OrgOverrides},
};

use crate::{
    Backend, Error, Result, Store, audit,
    sql::{Db, Query, args, queries},
};

impl Store {
    /// The limits that an org has of its own.
    pub async fn org_limits_get(&self, org: OrgId) -> Result<OrgOverrides> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.org_limits_get(org)),
            Backend::Sql(db) => org_limits_get(db, org).await,
        }
    }

    /// Sets one of them, or with nothing takes it back; not found if there is no such org to set it of.
    pub async fn org_limit_set(&self, org: OrgId, limit: OrgLimit, value: Option<u64>, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.org_limit_set(org, limit, value, told),
            Backend::Sql(db) => org_limit_set(db, org, limit, value, told).await,
        }
    }

    /// The state of a rate; nothing where none was ever taken.
    pub async fn org_rate_get(&self, org: OrgId, kind: &'static str) -> Result<Option<UnixMicros>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.org_rate_get(org, kind)),
            Backend::Sql(db) => org_rate_get(db, org, kind).await,
        }
    }

    /// Moves the state of a rate on if it is still what is expected; a conflict otherwise. Not found if there is no such
    /// org.
    pub async fn org_rate_move(
        &self,
        org: OrgId,
        kind: &'static str,
        expected: Option<UnixMicros>,
        tat: UnixMicros,
    ) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.org_rate_move(org, kind, expected, tat),
            Backend::Sql(db) => org_rate_move(db, org, kind, expected, tat).await,
        }
    }

    /// How many runs of an org hold a lease, or `most` if that is less.
    pub async fn org_leases_count(&self, org: OrgId, most: u64) -> Result<u64> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.org_leases_count(org, most)),
            Backend::Sql(db) => count(db, ORG_LEASES_COUNT, org, most).await,
        }
    }

    /// How many runs of an org are queued, or `most` if that is less.
    pub async fn org_queued_count(&self, org: OrgId, most: u64) -> Result<u64> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.org_queued_count(org, most)),
            Backend::Sql(db) => count(db, ORG_QUEUED_COUNT, org, most).await,
        }
    }
}

queries! {
    of "limits of an org" in "org";
    ORG_LIMITS_GET = "select kind, value from org_limits where org = $1";
    ORG_LIMIT_SET = "insert into org_limits (org, kind, value) values ($1, $2, $3)
        on conflict (org, kind) do update set value = excluded.value";
    ORG_LIMIT_UNSET = "delete from org_limits where org = $1 and kind = $2";
    ORG_RATE_GET = "select tat from org_rates where org = $1 and kind = $2";
    ORG_RATE_BEGIN = "insert into org_rates (org, kind, tat) values ($1, $2, $3) on conflict (org, kind) do nothing";
    ORG_RATE_MOVE = "update org_rates set tat = $4 where org = $1 and kind = $2 and tat = $3";
    ORG_LEASES_COUNT = "select count(*) as runs from (select run from leases where org = $1 limit $2 + 0) c";
    ORG_QUEUED_COUNT = "select count(*) as runs from
        (select id from runs where org = $1 and state = 'queued' limit $2 + 0) c";
}

async fn org_limits_get(db: &Db, org: OrgId) -> Result<OrgOverrides> {
    let mut limits = OrgOverrides::default();
    for row in db.rows(ORG_LIMITS_GET, args![org]).await? {
        let row = row.under("org_limits", org);
        // A program of a later version may know more of them.
        if let Some(limit) = OrgLimit::parse(&row.text("kind")?) {
            limits.set(limit, Some(row.number("value")?));
        }
    }
    Ok(limits)
}

async fn org_limit_set(db: &Db, org: OrgId, limit: OrgLimit, value: Option<u64>, told: &[Entry]) -> Result<()> {
    let change = match value {
        Some(value) => (ORG_LIMIT_SET, args![org, limit.as_str(), value]),
        None => (ORG_LIMIT_UNSET, args![org, limit.as_str()]),
    };
    audit::execute(db, change, told).await.map(drop)
}

async fn org_rate_get(db: &Db, org: OrgId, kind: &'static str) -> Result<Option<UnixMicros>> {
    let row = db.row(ORG_RATE_GET, args![org, kind]).await?;
    row.map(|row| row.under("org_rates", format!("{org} {kind}")).at("tat")).transpose()
}

async fn org_rate_move(
    db: &Db,
    org: OrgId,
    kind: &'static str,
    expected: Option<UnixMicros>,
    tat: UnixMicros,
) -> Result<()> {
    let changed = match expected {
        Some(expected) => db.execute(ORG_RATE_MOVE, args![org, kind, expected, tat]).await?,
        None => db.execute(ORG_RATE_BEGIN, args![org, kind, tat]).await?,
    };
    if changed == 1 { Ok(()) } else { Err(Error::Conflict { what: "rate" }) }
}

async fn count(db: &Db, query: Query, org: OrgId, most: u64) -> Result<u64> {
    let row = db.row(query, args![org, most]).await?;
    row.map_or(Ok(0), |row| row.under("runs", org).number("runs"))
}
