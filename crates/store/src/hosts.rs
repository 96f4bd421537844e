//! Hosts: the machines with an agent on them.

use std::collections::BTreeMap;

use holm_domain::{
    AgentId, InstanceId, OrgId, TokenId, UnixMicros,
    audit::Entry,
    host::{Capacity, Cordon, Host, RuntimeInfo},
};
use serde::{Deserialize, Serialize};

use crate::{
    Backend, Error, Result, Store, audit, enrol,
    error::full_unless_one,
    sql::{Args, Db, Query, Row, args, encode, queries},
};

/// The largest number of hosts of an org.
pub const HOSTS_MAX: u32 = 10_000;

impl Store {
    /// Stores a host, or brings its record up to date if the process that registered last is still `expect_instance`; a
    /// conflict otherwise, and if the agent is known under another org, or speaks with another key than that of `host` by now,
    /// or that was revoked. The time of its first registration stays, and so do its cordon, its pool and its key.
    pub async fn host_upsert(&self, expect_instance: Option<InstanceId>, host: &Host) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.host_upsert(expect_instance, host),
            Backend::Sql(db) => host_upsert(db, expect_instance, host).await,
        }
    }

    /// Notes when the agent was heard of last. Not found if it never registered.
    pub async fn host_seen(&self, org: OrgId, id: AgentId, now: UnixMicros) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.host_seen(org, id, now),
            Backend::Sql(db) => host_seen(db, org, id, now).await,
        }
    }

    /// Notes that a host is to take no new runs; where that was noted before, the first note stays. Without a `cordon` that
    /// is over. Not found if it never registered.
    pub async fn host_cordon(&self, org: OrgId, id: AgentId, cordon: Option<&Cordon>, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.host_cordon(org, id, cordon, told),
            Backend::Sql(db) => host_cordon(db, org, id, cordon, told).await,
        }
    }

    /// Puts a host into a pool, or takes it out of the one in which it is, for as long as it speaks with what it does in
    /// `host`; a conflict if it is in another pool than there, or is not known.
    pub async fn host_pool(&self, host: &Host, pool: Option<&str>, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.host_pool(host, pool, told),
            Backend::Sql(db) => host_pool(db, host, pool, told).await,
        }
    }

    /// The host, if the org has one.
    pub async fn host_get(&self, org: OrgId, id: AgentId) -> Result<Option<Host>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.host_get(org, id)),
            Backend::Sql(db) => host_get(db, org, id).await,
        }
    }

    /// All hosts of the org, by name.
    pub async fn host_list(&self, org: OrgId) -> Result<Vec<Host>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.host_list(org)),
            Backend::Sql(db) => host_list(db, org).await,
        }
    }
}

queries! {
    of "host" in "org";
    HOST_UPSERT = "insert into hosts (id, org, name, version, instance, body, registered_at, seen_at)
        select $1, $2, $3, $4, $5, $6, $7, $8 where (select count(*) from hosts where org = $2 and id <> $1) < $9
          and not exists (select 1 from host_keys where current_of = $1 and (public_key <> $11 or org <> $2
            or revoked_at is not null))
        on conflict (id) do update set name = excluded.name, version = excluded.version, instance = excluded.instance,
          body = excluded.body, seen_at = excluded.seen_at
        where hosts.org = excluded.org and hosts.instance = $10";
    HOST_COUNT = "select count(*) as hosts from hosts where org = $1 and id <> $2";
    HOST_SEEN = "update hosts set seen_at = $3 where org = $1 and id = $2";
    HOST_CORDON = "update hosts set cordon = $3 where org = $1 and id = $2 and cordon is null";
    HOST_UNCORDON = "update hosts set cordon = null where org = $1 and id = $2 and cordon is not null";
    HOST_POOL = "update hosts set pool = $3, pool_voice = $4 where org = $1 and id = $2
        and case when pool_voice = $4 then coalesce(pool, '') else '' end = $5";
    HOST_GET = "select h.id, h.org, h.name, h.version, h.instance, h.body, h.registered_at, h.seen_at, h.cordon, h.pool, h.pool_voice,
          k.public_key, k.join_token, k.enrolled_at, k.revoked_at
        from hosts h left join host_keys k on k.current_of = h.id and k.org = h.org where h.org = $1 and h.id = $2";
    HOST_LIST = "select h.id, h.org, h.name, h.version, h.instance, h.body, h.registered_at, h.seen_at, h.cordon, h.pool, h.pool_voice,
          k.public_key, k.join_token, k.enrolled_at, k.revoked_at
        from hosts h left join host_keys k on k.current_of = h.id and k.org = h.org where h.org = $1
        order by h.name, h.id limit $2 + 0";
}

/// What of a host is looked at only as a whole.
#[derive(Serialize, Deserialize)]
struct HostBody {
    capacity: Capacity,
    runtimes: Vec<RuntimeInfo>,
    labels: BTreeMap<String, String>,
    token: TokenId,
    superseded: Vec<InstanceId>,
}

/// Reads a host.
pub(crate) fn read(row: &Row) -> Result<Host> {
    let row = row.of("hosts", "id")?;
    let HostBody { capacity, runtimes, labels, token, superseded } = row.body("body")?;
    let voice = row.text_if_any("pool_voice")?;
    let host = Host {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        name: row.text("name")?,
        version: row.text("version")?,
        capacity,
        runtimes,
        labels,
        token,
        key: enrol::key_if_any(&row)?,
        instance: row.parsed("instance")?,
        superseded,
        registered_at: row.at("registered_at")?,
        seen_at: row.at("seen_at")?,
        cordon: row.body_if_any("cordon")?,
        pool: row.text_if_any("pool")?,
    };
    let is_in_pool = voice.is_some_and(|voice| voice == host.voice());
    Ok(Host { pool: host.pool.filter(|_| is_in_pool), ..host })
}

async fn host_upsert(db: &Db, expect_instance: Option<InstanceId>, host: &Host) -> Result<()> {
    let Host {
        id,
        org,
        name,
        version,
        capacity,
        runtimes,
        labels,
        token,
        key,
        instance,
        superseded,
        registered_at,
        seen_at,
        cordon: _,
        pool: _,
    } = host.clone();
    let body = encode("a host", &HostBody { capacity, runtimes, labels, token, superseded })?;
    let expected = expect_instance.map(|instance| instance.to_string()).unwrap_or_default();
    // No key is empty, so where none is expected none may be there.
    let key: &[u8] = key.as_ref().map_or(&[], |key| &key.public.0);
    let values = args![id, org, name, version, instance, body, registered_at, seen_at, HOSTS_MAX, expected, key];
    let mut tx = db.begin().await?;
    enrol::lock(&mut tx, id).await?;
    if tx.execute(HOST_UPSERT, values).await? == 1 {
        return tx.commit().await;
    }
    let others = tx.row(HOST_COUNT, args![org, id]).await?.ok_or(Error::NotFound { what: "host" })?;
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

async fn host_cordon(db: &Db, org: OrgId, id: AgentId, cordon: Option<&Cordon>, told: &[Entry]) -> Result<()> {
    let change = match cordon {
        Some(cordon) => (HOST_CORDON, args![org, id, encode("a cordon", cordon)?]),
        None => (HOST_UNCORDON, args![org, id]),
    };
    match audit::execute(db, change, told).await? {
        0 if host_get(db, org, id).await?.is_none() => Err(Error::NotFound { what: "host" }),
        _ => Ok(()),
    }
}

async fn host_pool(db: &Db, host: &Host, pool: Option<&str>, told: &[Entry]) -> Result<()> {
    let (pool, known) = (pool.map(str::to_owned), host.pool.clone().unwrap_or_default());
    let change = (HOST_POOL, args![host.org, host.id, pool, host.voice(), known]);
    if audit::execute(db, change, told).await? == 0 { Err(Error::Conflict { what: "host" }) } else { Ok(()) }
}

/// By which the row of a host is found.
pub(crate) fn by_id(org: OrgId, id: AgentId) -> (Query, Args) {
    (HOST_GET, args![org, id])
}

async fn host_get(db: &Db, org: OrgId, id: AgentId) -> Result<Option<Host>> {
    let (query, values) = by_id(org, id);
    db.row(query, values).await?.as_ref().map(read).transpose()
}

async fn host_list(db: &Db, org: OrgId) -> Result<Vec<Host>> {
    db.rows(HOST_LIST, args![org, HOSTS_MAX]).await?.iter().map(read).collect()
}
