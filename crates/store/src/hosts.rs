//! Hosts: the machines with an agent on them.

use std::collections::BTreeMap;

use holm_domain::{
    AgentId, OrgId, UnixMicros,
    host::{Capacity, Host, RuntimeInfo},
};
use serde::{Deserialize, Serialize};

use crate::{
    Backend, Error, Result, Store,
    error::full_unless_one,
    sql::{Db, Row, args, encode, queries},
};

/// The largest number of hosts of an org.
pub const HOSTS_MAX: u32 = 10_000;

impl Store {
    /// Stores a host or brings its record up to date; the time of its first registration stays. A conflict if the agent is
    /// known under another org.
    pub async fn host_upsert(&self, host: &Host) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.host_upsert(host),
            Backend::Sql(db) => host_upsert(db, host).await,
        }
    }

    /// Notes that the agent was heard of. Not found if it never registered.
    pub async fn host_seen(&self, org: OrgId, id: AgentId, now: UnixMicros) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.host_seen(org, id, now),
            Backend::Sql(db) => host_seen(db, org, id, now).await,
        }
    }

    /// The host, if the org has one.
    pub async fn host_get(&self, org: OrgId, id: AgentId) -> Result<Option<Host>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.host_get(org, id)),
            Backend::Sql(db) => host_get(db, org, id).await,
        }
    }

    /// All hosts of the org, by name.
    pub async fn host_list(&self, org: OrgId) -> Result<Vec<Host>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.host_list(org)),
            Backend::Sql(db) => host_list(db, org).await,
        }
    }
}

queries! {
    of "host" in "org";
    HOST_UPSERT = "insert into hosts (id, org, name, version, body, registered_at, seen_at)
        select $1, $2, $3, $4, $5, $6, $7 where (select count(*) from hosts where org = $2 and id <> $1) < $8
        on conflict (id) do update set name = excluded.name, version = excluded.version, body = excluded.body,
          seen_at = excluded.seen_at
        where hosts.org = excluded.org";
    HOST_COUNT = "select count(*) as hosts from hosts where org = $1 and id <> $2";
    HOST_SEEN = "update hosts set seen_at = case when seen_at < $3 then $3 else seen_at end where org = $1 and id = $2";
    HOST_GET = "select id, org, name, version, body, registered_at, seen_at from hosts where org = $1 and id = $2";
    HOST_LIST = "select id, org, name, version, body, registered_at, seen_at from hosts where org = $1
        order by name, id limit $2";
}

/// What of a host is looked at only as a whole.
#[derive(Serialize, Deserialize)]
struct HostBody {
    capacity: Capacity,
    runtimes: Vec<RuntimeInfo>,
    labels: BTreeMap<String, String>,
}

fn read(row: &Row) -> Result<Host> {
    let row = row.of("hosts", "id")?;
    let HostBody { capacity, runtimes, labels } = row.body("body")?;
    Ok(Host {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        name: row.text("name")?,
        version: row.text("version")?,
        capacity,
        runtimes,
        labels,
        registered_at: row.at("registered_at")?,
        seen_at: row.at("seen_at")?,
    })
}

async fn host_upsert(db: &Db, host: &Host) -> Result<()> {
    let Host { id, org, name, version, registered_at, seen_at, .. } = host;
    let (runtimes, labels) = (host.runtimes.clone(), host.labels.clone());
    let body = encode("a host", &HostBody { capacity: host.capacity, runtimes, labels })?;
    let values = args![*id, *org, name.as_str(), version.as_str(), body, *registered_at, *seen_at, HOSTS_MAX];
    if db.execute(HOST_UPSERT, values).await? == 1 {
        return Ok(());
    }
    let others = db.row(HOST_COUNT, args![*org, *id]).await?.ok_or(Error::NotFound { what: "host" })?;
    if others.under("hosts", org).number("hosts")? >= u64::from(HOSTS_MAX) {
        return full_unless_one(0, "hosts of an org", HOSTS_MAX);
    }
    Err(Error::Conflict { what: "host" })
}

async fn host_seen(db: &Db, org: OrgId, id: AgentId, now: UnixMicros) -> Result<()> {
    match db.execute(HOST_SEEN, args![org, id, now]).await? {
        0 => Err(Error::NotFound { what: "host" }),
        _ => Ok(()),
    }
}

async fn host_get(db: &Db, org: OrgId, id: AgentId) -> Result<Option<Host>> {
    db.row(HOST_GET, args![org, id]).await?.as_ref().map(read).transpose()
}

async fn host_list(db: &Db, org: OrgId) -> Result<Vec<Host>> {
    db.rows(HOST_LIST, args![org, HOSTS_MAX]).await?.iter().map(read).collect()
}
