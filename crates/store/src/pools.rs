//! Pools: which orgs the hosts of another one execute runs of as well, and how many of each they do.

use std::collections::BTreeMap;

use holm_domain::{AgentId, OrgId, RunId, audit::Entry, host::Host, run::Run};

use crate::{
    Backend, Error, Result, Store, audit,
    error::full_unless_one,
    hosts, runs,
    sql::{Db, Row, args, queries},
};

/// The most orgs that one pool serves beside the one that owns it.
pub const POOL_ORGS_MAX: u32 = 64;

/// The most pairs of a pool and an org that it serves.
pub const POOL_PAIRS_MAX: u32 = 10_000;

/// How many shared hosts an org is shown.
pub(crate) const SHARED_HOSTS_MAX: u32 = 1_000;

/// Of what there may be [`POOL_ORGS_MAX`].
pub(crate) const ORGS_OF_POOL: &str = "orgs of a pool";

/// Of what there may be [`POOL_PAIRS_MAX`].
pub(crate) const ORGS_OF_POOLS: &str = "orgs of all pools";

/// How many leases of runs of an org a host of a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolLeases {
    /// The agent of the host.
    pub agent: AgentId,
    /// The org.
    pub org: OrgId,
    /// How many.
    pub runs: u64,
}

impl Store {
    /// Has a pool of `owner` serve an org. Doing so again changes nothing. Not found if there is no such org;
    /// [`Error::Limit`] beyond [`POOL_ORGS_MAX`] orgs of the pool, or [`POOL_PAIRS_MAX`] of all together.
    pub async fn pool_share(&self, owner: OrgId, pool: &str, org: OrgId, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.pool_share(pool, org, told),
            Backend::Sql(db) => pool_share(db, owner, pool, org, told).await,
        }
    }

    /// Has a pool serve an org no longer; whether it did.
    pub async fn pool_unshare(&self, pool: &str, org: OrgId, told: &[Entry]) -> Result<bool> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.pool_unshare(pool, org, told)),
            Backend::Sql(db) => Ok(audit::execute(db, (POOL_UNSHARE, args![pool, org]), told).await? > 0),
        }
    }

    /// The orgs that each pool serves beside the one that owns it.
    pub async fn pool_list(&self) -> Result<BTreeMap<String, Vec<OrgId>>> {
        let pairs = match &self.backend {
            Backend::Memory(memory) => memory.turn().await.pool_list(),
            Backend::Sql(db) => pool_list(db).await?,
        };
        let mut pools: BTreeMap<String, Vec<OrgId>> = BTreeMap::new();
        pairs.into_iter().for_each(|(pool, org)| pools.entry(pool).or_default().push(org));
        Ok(pools)
    }

    /// The orgs that a pool serves beside the one that owns it, in the order of their ids.
    pub async fn pool_orgs(&self, pool: &str) -> Result<Vec<OrgId>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.pool_orgs(pool)),
            Backend::Sql(db) => pool_orgs(db, pool).await,
        }
    }

    /// How many leases the hosts of a pool of `owner` hold of runs of each org; where there are none, nothing is told.
    pub async fn pool_leases(&self, owner: OrgId, pool: &str) -> Result<Vec<PoolLeases>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.pool_leases(owner, pool)),
            Backend::Sql(db) => pool_leases(db, owner, pool).await,
        }
    }

    /// How many leases the hosts in each pool of `owner` hold; pools without one are not in it.
    pub async fn pool_counts(&self, owner: OrgId) -> Result<BTreeMap<String, u64>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.pool_counts(owner)),
            Backend::Sql(db) => pool_counts(db, owner).await,
        }
    }

    /// The hosts of `owner` that are in a pool which serves `org`, by name.
    pub async fn hosts_shared(&self, owner: OrgId, org: OrgId) -> Result<Vec<Host>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.hosts_shared(owner, org)),
            Backend::Sql(db) => {
                let hosts = db.rows(HOSTS_SHARED, args![owner, org, SHARED_HOSTS_MAX]).await?;
                let hosts: Vec<Host> = hosts.iter().map(hosts::read).collect::<Result<_>>()?;
                Ok(hosts.into_iter().filter(|host| host.pool.is_some()).collect())
            }
        }
    }

    /// The run, of whichever org, if `agent` holds a lease of it, or was the last to start it.
    pub async fn run_of_agent(&self, agent: AgentId, run: RunId) -> Result<Option<Run>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.run_of_agent(agent, run)),
            Backend::Sql(db) => {
                let run = db.row(RUN_OF_ANY, args![run]).await?.as_ref().map(runs::read).transpose()?;
                Ok(run.filter(|run| is_of(agent, run)))
            }
        }
    }
}

queries! {
    of "pool" in "org";
    POOL_SHARE = "insert into pool_orgs (pool, org) select $1, $2
        where (select count(*) from pool_orgs where pool = $1) < $3";
    POOL_PAIRS = "select count(*) as pairs from pool_orgs";
    POOL_LOCK = "update orgs set name = name where id = $1";
    POOL_SERVES = "select org from pool_orgs where pool = $1 and org = $2";
    POOL_UNSHARE = "delete from pool_orgs where pool = $1 and org = $2";
    POOL_LIST = "select pool, org from pool_orgs order by pool, org limit $1 + 0";
    POOL_ORGS = "select org from pool_orgs where pool = $1 order by org limit $2 + 0";
    POOL_LEASES = "select l.agent, l.org, count(*) as runs from hosts h join leases l on l.agent = h.id
        where h.pool = $1 and h.org = $2 group by l.agent, l.org";
    POOL_COUNTS = "select h.pool, count(*) as runs from hosts h join leases l on l.agent = h.id
        where h.org = $1 and h.pool is not null group by h.pool";
    HOSTS_SHARED = "select h.id, h.org, h.name, h.version, h.instance, h.body, h.registered_at, h.seen_at, h.cordon, h.pool, h.pool_voice,
          k.public_key, k.join_token, k.enrolled_at, k.revoked_at
        from pool_orgs p join hosts h on h.pool = p.pool left join host_keys k on k.current_of = h.id and k.org = h.org
        where p.org = $2 and h.org = $1 and h.org <> $2
        order by h.name, h.id limit $3 + 0";
    RUN_OF_ANY = "select id, org, version, state, body from runs where id = $1";
}

async fn pool_share(db: &Db, owner: OrgId, pool: &str, org: OrgId, told: &[Entry]) -> Result<()> {
    let mut tx = db.begin().await?;
    // One at a time: the others are counted.
    tx.execute(POOL_LOCK, args![owner]).await?;
    if tx.row(POOL_SERVES, args![pool, org]).await?.is_some() {
        return Ok(());
    }
    let all = tx.row(POOL_PAIRS, args![]).await?.ok_or(Error::NotFound { what: "pool" })?;
    let all = all.under("pool_orgs", pool).number("pairs")?;
    full_unless_one(u64::from(all < u64::from(POOL_PAIRS_MAX)), ORGS_OF_POOLS, POOL_PAIRS_MAX)?;
    full_unless_one(tx.execute(POOL_SHARE, args![pool, org, POOL_ORGS_MAX]).await?, ORGS_OF_POOL, POOL_ORGS_MAX)?;
    audit::commit(tx, told).await
}

async fn pool_counts(db: &Db, owner: OrgId) -> Result<BTreeMap<String, u64>> {
    let rows = db.rows(POOL_COUNTS, args![owner]).await?;
    let pair = |row: &Row| {
        let row = row.of("hosts", "pool")?;
        Ok((row.text("pool")?, row.number("runs")?))
    };
    rows.iter().map(pair).collect()
}

/// Whether an agent may speak of a run that has, or had, its lease last.
pub(crate) fn is_of(agent: AgentId, run: &Run) -> bool {
    let holds = run.lease.is_some_and(|lease| lease.agent == agent);
    holds || run.sandbox.as_ref().is_some_and(|sandbox| sandbox.agent == agent)
}

async fn pool_list(db: &Db) -> Result<Vec<(String, OrgId)>> {
    let rows = db.rows(POOL_LIST, args![POOL_PAIRS_MAX]).await?;
    let pair = |row: &Row| {
        let row = row.of("pool_orgs", "pool")?;
        Ok((row.text("pool")?, row.parsed("org")?))
    };
    rows.iter().map(pair).collect()
}

async fn pool_orgs(db: &Db, pool: &str) -> Result<Vec<OrgId>> {
    let rows = db.rows(POOL_ORGS, args![pool, POOL_ORGS_MAX]).await?;
    rows.into_iter().map(|row| row.under("pool_orgs", pool).parsed("org")).collect()
}

async fn pool_leases(db: &Db, owner: OrgId, pool: &str) -> Result<Vec<PoolLeases>> {
    let rows = db.rows(POOL_LEASES, args![pool, owner]).await?;
    let read = |row: &Row| {
        let row = row.of("leases", "agent")?;
        Ok(PoolLeases { agent: row.parsed("agent")?, org: row.parsed("org")?, runs: row.number("runs")? })
    };
    rows.iter().map(read).collect()
}
