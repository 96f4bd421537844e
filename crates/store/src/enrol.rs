//! Join tokens, and the keys of hosts that they enrol.
//!
//! What always holds: whoever enrols at once with one token, one of them does, and its key is stored in the transaction that
//! marks the token used; a key that was not revoked is never replaced, and an agent has one; a key that was enrolled once, for
//! whichever agent, stays and never enrols again; who enrols and who registers an agent do so one after the other.

use holm_domain::{
    AgentId, OrgId, TokenId, UnixMicros,
    audit::Entry,
    enrol::{Enrolled, HostKey, HostPublicKey, Join, JoinUse},
    host::Host,
};

use crate::{
    Backend, Error, Result, Store, audit,
    error::full_unless_one,
    sql::{Db, Fields, Row, Tx, args, queries},
};

/// The largest number of join tokens of an org that may still enrol somebody: not used, revoked or expired.
pub const JOIN_TOKENS_MAX: u32 = 4_000;
/// Of how many of an org that have ended it is still known how, until they are forgotten for their age: of the newest.
pub const JOIN_TOKENS_ENDED_MAX: u32 = 4_000;
/// How many above that are forgotten at once: more than come meanwhile.
const FORGOTTEN_AT_ONCE: u32 = 100;

impl Store {
    /// Stores a new join token; a conflict if its id or its hash is taken, not found if there is no such org. Those of the org
    /// that expired before `forget_before` are forgotten, and the oldest of [`JOIN_TOKENS_ENDED_MAX`] that have ended.
    pub async fn join_create(&self, join: &Join, forget_before: UnixMicros, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.join_create(join, forget_before, told),
            Backend::Sql(db) => join_create(db, join, forget_before, told).await,
        }
    }

    /// The join token whose secret has that SHA-256, of whichever org. It may be expired, revoked or used.
    pub async fn join_by_hash(&self, hash: &[u8; 32]) -> Result<Option<Join>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.join_by_hash(hash)),
            Backend::Sql(db) => db.row(JOIN_BY_HASH, args![hash]).await?.as_ref().map(join_of).transpose(),
        }
    }

    /// All join tokens of the org that are not forgotten, newest first.
    pub async fn join_list(&self, org: OrgId) -> Result<Vec<Join>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.join_list(org)),
            Backend::Sql(db) => {
                let most = JOIN_TOKENS_MAX + JOIN_TOKENS_ENDED_MAX;
                db.rows(JOIN_LIST, args![org, most]).await?.iter().map(join_of).collect()
            }
        }
    }

    /// The join token, if the org has it.
    pub async fn join_get(&self, org: OrgId, id: TokenId) -> Result<Option<Join>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.join_get(org, id)),
            Backend::Sql(db) => db.row(JOIN_GET, args![org, id]).await?.as_ref().map(join_of).transpose(),
        }
    }

    /// Revokes a join token. One that was revoked before keeps its time; a conflict if it has enrolled somebody.
    pub async fn join_revoke(&self, org: OrgId, id: TokenId, now: UnixMicros, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.join_revoke(org, id, now, told),
            Backend::Sql(db) => join_revoke(db, org, id, now, told).await,
        }
    }

    /// Marks the join token `id` used and stores the key that it enrols, if the host of the agent is still `expected`: a
    /// conflict about the `host` if another process has registered, or the first. One about the `join token` if that was used
    /// or revoked, or expired before `used.at`; and one about the `host key` if the agent has a key that was not revoked, or
    /// belongs to another org, or the key was enrolled before. Then nothing was changed.
    pub async fn host_enrol(
        &self,
        org: OrgId,
        id: TokenId,
        used: JoinUse,
        expected: Option<&Host>,
        told: &[Entry],
    ) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.host_enrol(org, id, used, expected, told),
            Backend::Sql(db) => host_enrol(db, org, id, used, expected, told).await,
        }
    }

    /// What is known of a key, for whichever agent it was enrolled.
    pub async fn host_key_get(&self, public: HostPublicKey) -> Result<Option<Enrolled>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.host_key_get(public)),
            Backend::Sql(db) => db.row(HOST_KEY_GET, args![&public.0]).await?.as_ref().map(enrolled_of).transpose(),
        }
    }

    /// The key of an agent with its org, whichever that is: this is how a request that a host signed finds its org.
    pub async fn host_key_of(&self, agent: AgentId) -> Result<Option<(OrgId, HostKey)>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.host_key_of(agent)),
            Backend::Sql(db) => {
                let found = db.row(HOST_KEY_OF, args![agent]).await?.as_ref().map(enrolled_of).transpose()?;
                Ok(found.map(|Enrolled { org, key, .. }| (org, key)))
            }
        }
    }

    /// Revokes a key of an agent: `meant`, or the newest where that is left out; and says which it is. One that was revoked
    /// before keeps its time. Not found if the agent has no such key.
    pub async fn host_key_revoke(
        &self,
        org: OrgId,
        agent: AgentId,
        meant: Option<HostPublicKey>,
        now: UnixMicros,
        told: &[Entry],
    ) -> Result<HostKey> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.host_key_revoke(org, agent, meant, now, told),
            Backend::Sql(db) => host_key_revoke(db, org, agent, meant, now, told).await,
        }
    }
}

/// What there may be too much of.
pub(crate) const JOIN_TOKENS: &str = "join tokens of an org that are not used";

queries! {
    of "join token" in "org";
    JOIN_CREATE = "insert into join_tokens (id, org, name, hash, created_at, expires_at)
        select $1, $2, $3, $4, $5, $6 where (select count(*) from join_tokens where org = $2 and used_at is null
          and revoked_at is null and expires_at > $5) < $7";
    JOIN_FORGET = "delete from join_tokens where org = $1 and expires_at < $2";
    JOIN_FORGET_ENDED = "delete from join_tokens where org = $1 and id in (select id from join_tokens where org = $1
          and (used_at is not null or revoked_at is not null or expires_at <= $2)
          order by id desc limit $4 + 0 offset $3 + 0)";
    JOIN_BY_HASH = "select id, org, name, hash, created_at, expires_at, revoked_at, used_at, used_by, used_key
        from join_tokens where hash = $1";
    JOIN_LIST = "select id, org, name, hash, created_at, expires_at, revoked_at, used_at, used_by, used_key
        from join_tokens where org = $1 order by id desc limit $2 + 0";
    JOIN_GET = "select id, org, name, hash, created_at, expires_at, revoked_at, used_at, used_by, used_key
        from join_tokens where org = $1 and id = $2";
    JOIN_REVOKE = "update join_tokens set revoked_at = $3
        where org = $1 and id = $2 and used_at is null and revoked_at is null";
    JOIN_USE = "update join_tokens set used_at = $3, used_by = $4, used_key = $5
        where org = $1 and id = $2 and used_at is null and revoked_at is null and expires_at > $3";
    /// Waits for whoever else has it, until the end of the transaction; what is read from then on is what that one has left.
    HOST_LOCK = "insert into host_locks (agent) values ($1) on conflict (agent) do update set agent = excluded.agent";
    HOST_OF_ANY = "select org, instance, seen_at from hosts where id = $1";
    HOST_KEY_PASS = "update host_keys set current_of = null where current_of = $1 and org = $2 and revoked_at is not null";
    HOST_KEY_PUT = "insert into host_keys (agent, current_of, org, public_key, join_token, enrolled_at)
        select $1, $1, $2, $3, $4, $5 where true on conflict do nothing";
    HOST_KEY_GET = "select agent, org, public_key, join_token, enrolled_at, revoked_at from host_keys where public_key = $1";
    HOST_KEY_OF = "select agent, org, public_key, join_token, enrolled_at, revoked_at from host_keys where current_of = $1";
    HOST_KEY_REVOKE = "update host_keys set revoked_at = $3 where org = $1 and public_key = $2 and revoked_at is null";
}

fn join_of(row: &Row) -> Result<Join> {
    let row = row.of("join_tokens", "id")?;
    let used = match row.at_if_any("used_at")? {
        None => None,
        Some(at) => Some(JoinUse { agent: row.parsed("used_by")?, key: HostPublicKey(row.digest("used_key")?), at }),
    };
    Ok(Join {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        name: row.text("name")?,
        hash: row.digest("hash")?,
        created_at: row.at("created_at")?,
        expires_at: row.at("expires_at")?,
        revoked_at: row.at_if_any("revoked_at")?,
        used,
    })
}

fn enrolled_of(row: &Row) -> Result<Enrolled> {
    let row = row.of("host_keys", "agent")?;
    let key = key_if_any(&row)?.ok_or_else(|| row.corrupt("it has no time of enrolment"))?;
    Ok(Enrolled { agent: row.parsed("agent")?, org: row.parsed("org")?, key })
}

/// The key that stands in a row, if one does.
pub(crate) fn key_if_any(row: &Fields<'_>) -> Result<Option<HostKey>> {
    let Some(enrolled_at) = row.at_if_any("enrolled_at")? else { return Ok(None) };
    let public = HostPublicKey(row.digest("public_key")?);
    Ok(Some(HostKey { public, join: row.parsed("join_token")?, enrolled_at, revoked_at: row.at_if_any("revoked_at")? }))
}

async fn join_create(db: &Db, join: &Join, forget_before: UnixMicros, told: &[Entry]) -> Result<()> {
    let Join { id, org, name, hash, created_at, expires_at, revoked_at: _, used: _ } = join;
    let mut tx = db.begin().await?;
    tx.execute(JOIN_FORGET, args![*org, forget_before]).await?;
    let ended = args![*org, *created_at, JOIN_TOKENS_ENDED_MAX, FORGOTTEN_AT_ONCE];
    tx.execute(JOIN_FORGET_ENDED, ended).await?;
    let values = args![*id, *org, name.as_str(), hash, *created_at, *expires_at, JOIN_TOKENS_MAX];
    full_unless_one(tx.execute(JOIN_CREATE, values).await?, JOIN_TOKENS, JOIN_TOKENS_MAX)?;
    audit::commit(tx, told).await
}

async fn join_revoke(db: &Db, org: OrgId, id: TokenId, now: UnixMicros, told: &[Entry]) -> Result<()> {
    if audit::execute(db, (JOIN_REVOKE, args![org, id, now]), told).await? > 0 {
        return Ok(());
    }
    let found = db.row(JOIN_GET, args![org, id]).await?.as_ref().map(join_of).transpose()?;
    match found.ok_or(Error::NotFound { what: "join token" })?.used {
        Some(_) => Err(Error::Conflict { what: "join token" }),
        None => Ok(()),
    }
}

async fn host_key_revoke(
    db: &Db,
    org: OrgId,
    agent: AgentId,
    meant: Option<HostPublicKey>,
    now: UnixMicros,
    told: &[Entry],
) -> Result<HostKey> {
    let mut tx = db.begin().await?;
    lock(&mut tx, agent).await?;
    let found = match meant {
        Some(public) => tx.row(HOST_KEY_GET, args![&public.0]).await?,
        None => tx.row(HOST_KEY_OF, args![agent]).await?,
    };
    let found = found.as_ref().map(enrolled_of).transpose()?.filter(|known| (known.org, known.agent) == (org, agent));
    let key = found.ok_or(Error::NotFound { what: "host key" })?.key;
    if key.revoked_at.is_some() {
        return Ok(key);
    }
    if tx.execute(HOST_KEY_REVOKE, args![org, &key.public.0, now]).await? == 0 {
        return Err(Error::Conflict { what: "host key" });
    }
    audit::commit(tx, told).await?;
    Ok(HostKey { revoked_at: Some(now), ..key })
}

/// Keeps whoever else enrols or registers the agent out until the end of the transaction.
pub(crate) async fn lock(tx: &mut Tx, agent: AgentId) -> Result<()> {
    tx.execute(HOST_LOCK, args![agent]).await.map(drop)
}

async fn host_enrol(
    db: &Db,
    org: OrgId,
    id: TokenId,
    used: JoinUse,
    expected: Option<&Host>,
    told: &[Entry],
) -> Result<()> {
    let JoinUse { agent, key, at } = used;
    let mut tx = db.begin().await?;
    lock(&mut tx, agent).await?;
    if tx.execute(JOIN_USE, args![org, id, at, agent, &key.0]).await? == 0 {
        return Err(Error::Conflict { what: "join token" });
    }
    match (tx.row(HOST_OF_ANY, args![agent]).await?, expected) {
        (None, None) => {}
        (Some(row), expected) => {
            let row = row.under("hosts", agent);
            if row.parsed::<OrgId>("org")? != org {
                return Err(Error::Conflict { what: "host key" });
            }
            let (instance, seen_at) = (row.parsed("instance")?, row.at("seen_at")?);
            // A process may register once more, with another token.
            if expected.is_none_or(|host| (host.instance, host.seen_at) != (instance, seen_at)) {
                return Err(Error::Conflict { what: "host" });
            }
        }
        (None, Some(_)) => return Err(Error::Conflict { what: "host" }),
    }
    tx.execute(HOST_KEY_PASS, args![agent, org]).await?;
    if tx.execute(HOST_KEY_PUT, args![agent, org, &key.0, id, at]).await? == 0 {
        return Err(Error::Conflict { what: "host key" });
    }
    audit::commit(tx, told).await
}
