//! The keys of the deployment: data keys, and the keys by which tokens are signed. What is secret of them is sealed before it
//! comes here; nothing in this crate can open it.
//!
//! What always holds: one data key seals and one key signs, whoever rotates at once; nothing is stored that another data key
//! sealed than the one that seals then; a data key is there for as long as anything is sealed by it; the private half of a key
//! that signs no more is erased in the transaction that says so.

use holm_domain::{EnvelopeId, KeyId, UnixMicros, audit::Entry, keys::KeyTimes};

use crate::{
    Backend, Error, Result, Store, audit,
    error::full_unless_one,
    sql::{Db, Row, Tx, args, queries},
};

/// The largest number of signing keys, with those that are retired or withdrawn and not forgotten yet.
pub const SIGNING_KEYS_MAX: u32 = 1_000;

/// The same where a key that signs is withdrawn: that is never refused for the number of those that were made before.
pub(crate) const WITHDRAWN_KEYS_MAX: u32 = 2 * SIGNING_KEYS_MAX;

/// The most data keys that are listed of those that seal no more.
pub const ENVELOPES_RETIRED_MAX: u32 = 100;

/// A data key, sealed by the root key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeKey {
    /// Its identity.
    pub id: EnvelopeId,
    /// The key, sealed.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: UnixMicros,
}

/// Something that a data key seals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// The data key.
    pub by: EnvelopeId,
    /// What is sealed.
    pub bytes: Vec<u8>,
}

/// A signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Its identity and its times.
    pub times: KeyTimes,
    /// The public half (RFC 8032 §5.1.5).
    pub public: [u8; 32],
    /// The private half, while the key signs.
    pub private: Option<SealedSecret>,
}

/// A private half that was sealed anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resealed {
    /// The signing key.
    pub id: KeyId,
    /// Its private half, sealed by the new data key.
    pub sealed: Vec<u8>,
}

impl Store {
    /// The data key that seals now, if there is one.
    pub async fn envelope_current(&self) -> Result<Option<EnvelopeKey>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.envelope_current()),
            Backend::Sql(db) => envelope_current(db).await,
        }
    }

    /// Stores the first data key; a conflict if there is one.
    pub async fn envelope_create(&self, key: &EnvelopeKey) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.envelope_create(key),
            Backend::Sql(db) => envelope_create(db, key).await,
        }
    }

    /// The data key, whether it seals still or not.
    pub async fn envelope_get(&self, id: EnvelopeId) -> Result<Option<EnvelopeKey>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.envelope_get(id)),
            Backend::Sql(db) => envelope_get(db, id).await,
        }
    }

    /// The oldest [`ENVELOPES_RETIRED_MAX`] data keys that seal no more and are there for what they sealed.
    pub async fn envelopes_retired(&self) -> Result<Vec<EnvelopeKey>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.envelopes_retired()),
            Backend::Sql(db) => envelopes_retired(db).await,
        }
    }

    /// Deletes the data keys that seal no more and by which nothing is sealed; returns how many those were.
    pub async fn envelopes_forget(&self) -> Result<u64> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.envelopes_forget()),
            Backend::Sql(db) => db.execute(ENVELOPES_FORGET, args![]).await,
        }
    }

    /// Has the data key `new` seal in the place of `old`, which stays for the secrets that it sealed until they are sealed anew;
    /// a conflict if another one seals by now, or if `old` sealed a signing key that is not among `resealed`. Then nothing was
    /// changed.
    pub async fn envelope_rotate(
        &self,
        old: EnvelopeId,
        new: &EnvelopeKey,
        resealed: &[Resealed],
        told: &[Entry],
    ) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.envelope_rotate(old, new, resealed, told),
            Backend::Sql(db) => envelope_rotate(db, old, new, resealed, told).await,
        }
    }

    /// All signing keys, newest first.
    pub async fn signing_keys(&self) -> Result<Vec<SigningKey>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.signing_keys()),
            Backend::Sql(db) => signing_keys(db).await,
        }
    }

    /// Has `new` sign from now on. `old`, if one signed, verifies until it retires; a conflict if another one signs by now, or
    /// the data key of `new` seals no more. Those that retired or were withdrawn before `forget_before` are forgotten.
    pub async fn signing_key_rotate(
        &self,
        old: Option<(KeyId, UnixMicros)>,
        new: &SigningKey,
        forget_before: UnixMicros,
        told: &[Entry],
    ) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.signing_key_rotate(old, new, forget_before, told),
            Backend::Sql(db) => signing_key_rotate(db, old, new, forget_before, told).await,
        }
    }

    /// Withdraws a key; if it signs, `new` takes its place in the same transaction. A conflict if it signs and there is no
    /// `new`, or if another one signs and there is. One that was withdrawn before keeps its time.
    pub async fn signing_key_withdraw(
        &self,
        id: KeyId,
        now: UnixMicros,
        new: Option<&SigningKey>,
        told: &[Entry],
    ) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.signing_key_withdraw(id, now, new, told),
            Backend::Sql(db) => signing_key_withdraw(db, id, now, new, told).await,
        }
    }
}

queries! {
    of "key" in "data key";
    ENVELOPE_CURRENT = "select id, sealed, created_at from envelope_keys where seals = 1";
    ENVELOPE_CREATE = "insert into envelope_keys (id, sealed, created_at, seals) values ($1, $2, $3, 1)";
    ENVELOPE_RETIRE = "update envelope_keys set seals = null where id = $1 and seals = 1";
    /// Changes nothing, and has those who change who seals wait: on PostgreSQL who has read would not.
    ENVELOPE_HOLD = "update envelope_keys set seals = 1 where id = $1 and seals = 1";
    ENVELOPE_GET = "select id, sealed, created_at from envelope_keys where id = $1";
    ENVELOPES_RETIRED = "select id, sealed, created_at from envelope_keys where seals is null order by id limit $1 + 0";
    ENVELOPES_FORGET = "delete from envelope_keys where seals is null
        and not exists (select 1 from signing_keys where envelope_key = envelope_keys.id)
        and not exists (select 1 from secrets where envelope_key = envelope_keys.id)";
    SIGNING_KEY_SEALED_BY = "select id from signing_keys where envelope_key = $1 limit 1";
    SIGNING_KEYS = "select id, public_key, envelope_key, sealed, created_at, retires_at, withdrawn_at from signing_keys
        order by id desc limit $1 + 0";
    SIGNING_KEY_CREATE = "insert into signing_keys (id, public_key, envelope_key, sealed, created_at, signs)
        select $1, $2, $3, $4, $5, 1 where (select count(*) from signing_keys) < $6";
    SIGNING_KEY_RETIRE = "update signing_keys set signs = null, envelope_key = null, sealed = null, retires_at = $2
        where id = $1 and signs = 1";
    SIGNING_KEY_WITHDRAW = "update signing_keys set signs = null, envelope_key = null, sealed = null,
        withdrawn_at = $2 where id = $1 and withdrawn_at is null";
    SIGNING_KEY_IS_THERE = "select id from signing_keys where id = $1";
    SIGNING_KEY_SIGNS = "select id from signing_keys where signs = 1";
    SIGNING_KEY_RESEAL = "update signing_keys set envelope_key = $3, sealed = $4 where id = $1 and envelope_key = $2";
    SIGNING_KEYS_FORGET = "delete from signing_keys where coalesce(withdrawn_at, retires_at) < $1";
}

fn envelope(row: &Row) -> Result<EnvelopeKey> {
    let row = row.of("envelope_keys", "id")?;
    let sealed = row.bytes_if_any("sealed")?.ok_or_else(|| row.corrupt("nothing is sealed in it"))?;
    Ok(EnvelopeKey { id: row.parsed("id")?, sealed, created_at: row.at("created_at")? })
}

fn signing_key(row: &Row) -> Result<SigningKey> {
    let row = row.of("signing_keys", "id")?;
    let by = row.text_if_any("envelope_key")?;
    let private = match (by, row.bytes_if_any("sealed")?) {
        (Some(_), Some(bytes)) => Some(SealedSecret { by: row.parsed("envelope_key")?, bytes }),
        (None, None) => None,
        _ => return Err(row.corrupt("the private half and its data key are not there together")),
    };
    let times = KeyTimes {
        id: row.parsed("id")?,
        created_at: row.at("created_at")?,
        retires_at: row.at_if_any("retires_at")?,
        withdrawn_at: row.at_if_any("withdrawn_at")?,
    };
    Ok(SigningKey { times, public: row.digest("public_key")?, private })
}

async fn envelope_current(db: &Db) -> Result<Option<EnvelopeKey>> {
    db.row(ENVELOPE_CURRENT, args![]).await?.as_ref().map(envelope).transpose()
}

async fn envelope_get(db: &Db, id: EnvelopeId) -> Result<Option<EnvelopeKey>> {
    db.row(ENVELOPE_GET, args![id]).await?.as_ref().map(envelope).transpose()
}

async fn envelopes_retired(db: &Db) -> Result<Vec<EnvelopeKey>> {
    db.rows(ENVELOPES_RETIRED, args![ENVELOPES_RETIRED_MAX]).await?.iter().map(envelope).collect()
}

/// Has that data key seal until the transaction ends; a conflict if it seals no more. To be done first: whoever rotates waits
/// for the others in this order.
pub(crate) async fn seals_still(tx: &mut Tx, id: EnvelopeId) -> Result<()> {
    changed_one(tx.execute(ENVELOPE_HOLD, args![id]).await?, "data key")
}

async fn envelope_create(db: &Db, key: &EnvelopeKey) -> Result<()> {
    db.execute(ENVELOPE_CREATE, args![key.id, &key.sealed[..], key.created_at]).await.map(drop)
}

async fn envelope_rotate(
    db: &Db,
    old: EnvelopeId,
    new: &EnvelopeKey,
    resealed: &[Resealed],
    told: &[Entry],
) -> Result<()> {
    let mut tx = db.begin().await?;
    changed_one(tx.execute(ENVELOPE_RETIRE, args![old]).await?, "data key")?;
    tx.execute(ENVELOPE_CREATE, args![new.id, &new.sealed[..], new.created_at]).await?;
    for Resealed { id, sealed } in resealed {
        // One that signs no more has nothing that is sealed.
        tx.execute(SIGNING_KEY_RESEAL, args![*id, old, new.id, &sealed[..]]).await?;
    }
    if tx.row(SIGNING_KEY_SEALED_BY, args![old]).await?.is_some() {
        return Err(Error::Conflict { what: "key" });
    }
    audit::commit(tx, told).await
}

fn changed_one(changed: u64, what: &'static str) -> Result<()> {
    if changed == 1 { Ok(()) } else { Err(Error::Conflict { what }) }
}

async fn signing_keys(db: &Db) -> Result<Vec<SigningKey>> {
    db.rows(SIGNING_KEYS, args![WITHDRAWN_KEYS_MAX]).await?.iter().map(signing_key).collect()
}

/// What the private half of a new key is.
fn private(new: &SigningKey) -> Result<&SealedSecret> {
    new.private.as_ref().ok_or_else(|| Error::invalid("a signing key", "it has no private half"))
}

async fn signing_key_create(tx: &mut Tx, new: &SigningKey, most: u32) -> Result<()> {
    let (times, SealedSecret { by, bytes }) = (new.times, private(new)?);
    let values = args![times.id, &new.public, *by, &bytes[..], times.created_at, most];
    full_unless_one(tx.execute(SIGNING_KEY_CREATE, values).await?, "signing keys", most)
}

async fn signing_key_rotate(
    db: &Db,
    old: Option<(KeyId, UnixMicros)>,
    new: &SigningKey,
    forget_before: UnixMicros,
    told: &[Entry],
) -> Result<()> {
    let mut tx = db.begin().await?;
    seals_still(&mut tx, private(new)?.by).await?;
    if let Some((id, retires_at)) = old {
        changed_one(tx.execute(SIGNING_KEY_RETIRE, args![id, retires_at]).await?, "key")?;
    }
    tx.execute(SIGNING_KEYS_FORGET, args![forget_before]).await?;
    signing_key_create(&mut tx, new, SIGNING_KEYS_MAX).await?;
    audit::commit(tx, told).await
}

async fn signing_key_withdraw(
    db: &Db,
    id: KeyId,
    now: UnixMicros,
    new: Option<&SigningKey>,
    told: &[Entry],
) -> Result<()> {
    let mut tx = db.begin().await?;
    if let Some(new) = new {
        seals_still(&mut tx, private(new)?.by).await?;
    }
    let is_new = tx.execute(SIGNING_KEY_WITHDRAW, args![id, now]).await? > 0;
    if !is_new && tx.row(SIGNING_KEY_IS_THERE, args![id]).await?.is_none() {
        return Err(Error::NotFound { what: "key" });
    }
    match new {
        Some(new) => signing_key_create(&mut tx, new, WITHDRAWN_KEYS_MAX).await?,
        None if tx.row(SIGNING_KEY_SIGNS, args![]).await?.is_none() => return Err(Error::Conflict { what: "key" }),
        None => {}
    }
    audit::commit(tx, if is_new { told } else { &[] }).await
}
