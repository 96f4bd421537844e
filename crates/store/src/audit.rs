//! The audit logs of orgs ([`holm_domain::audit`]): append, and read page by page. Nothing here changes or removes a record, and
//! the database refuses it.
//!
//! What always holds: what is told of a change is appended in the transaction of that change, so neither is there without the
//! other; the records of an org have numbers without gaps, however many servers append. Whoever appends has the head of the
//! org for itself until the end of its transaction. To be done last in it: then nobody who waits for a head has something
//! for which another waits who has that head.

use std::collections::BTreeMap;

use holm_domain::{
    OrgId,
    audit::{Digest, Entry, Head, Record},
};

use crate::{
    Backend, Result, Store,
    error::{limit, page},
    sql::{Args, Db, Query, Row, Tx, args, encode, queries},
};

/// The most records that are read, or appended, at once.
pub const AUDIT_PAGE_MAX: u32 = 500;

impl Store {
    /// Appends what there is to tell where no change of the store is told of.
    pub async fn audit_append(&self, told: &[Entry]) -> Result<()> {
        limit("audit records that are appended", told.len(), AUDIT_PAGE_MAX as usize)?;
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.audit_append(told),
            Backend::Sql(db) => commit(db.begin().await?, told).await,
        }
    }

    /// The records of the org after the number `after`, oldest first.
    pub async fn audit_page(&self, org: OrgId, after: u64, limit: u32) -> Result<Vec<Record>> {
        page(limit, AUDIT_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.audit_page(org, after, limit)),
            Backend::Sql(db) => db.rows(AUDIT_PAGE, args![org, after, limit]).await?.iter().map(read).collect(),
        }
    }

    /// The number and the digest of the last record of the org.
    pub async fn audit_head(&self, org: OrgId) -> Result<Head> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.audit_head(org)),
            Backend::Sql(db) => {
                db.row(AUDIT_HEAD, args![org]).await?.map_or(Ok(Head::default()), |row| head(&row, org))
            }
        }
    }
}

queries! {
    of "audit record" in "org";
    AUDIT_HEAD = "select seq, digest from audit_heads where org = $1";
    /// Waits for whoever else has it, until the end of the transaction; what is read is what that one has left.
    AUDIT_HEAD_HOLD = "insert into audit_heads (org, seq, digest) values ($1, $2, $3)
        on conflict (org) do update set seq = audit_heads.seq returning seq, digest";
    AUDIT_HEAD_MOVE = "update audit_heads set seq = $2, digest = $3 where org = $1";
    AUDIT_APPEND = "insert into audit (org, seq, at, actor, action, subject, details, previous, digest)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    AUDIT_PAGE = "select org, seq, at, actor, action, subject, details, previous, digest from audit
        where org = $1 and seq > $2 order by seq limit $3 + 0";
}

fn head(row: &Row, org: OrgId) -> Result<Head> {
    let row = row.under("audit_heads", org);
    Ok(Head { seq: row.number("seq")?, digest: Digest(row.digest("digest")?) })
}

fn read(row: &Row) -> Result<Record> {
    let org = row.of("audit", "org")?.parsed("org")?;
    let seq = row.under("audit", org).number("seq")?;
    let row = row.under("audit", format!("{org} {seq}"));
    Ok(Record {
        org,
        seq,
        at: row.at("at")?,
        actor: row.text("actor")?,
        action: row.text("action")?,
        subject: row.text("subject")?,
        details: row.body("details")?,
        previous: Digest(row.digest("previous")?),
        digest: Digest(row.digest("digest")?),
    })
}

/// Appends what is told of the change that this transaction makes.
async fn append(tx: &mut Tx, told: &[Entry]) -> Result<()> {
    let mut orgs: BTreeMap<OrgId, Vec<&Entry>> = BTreeMap::new();
    told.iter().for_each(|entry| orgs.entry(entry.org).or_default().push(entry));
    // In the order of the orgs: nobody waits for two heads in another.
    for (org, entries) in orgs {
        append_to(tx, org, &entries).await?;
    }
    Ok(())
}

async fn append_to(tx: &mut Tx, org: OrgId, entries: &[&Entry]) -> Result<()> {
    let none = Head::default();
    let held = tx.row(AUDIT_HEAD_HOLD, args![org, none.seq, &none.digest.0]).await?;
    let mut at = held.map_or(Ok(none), |row| head(&row, org))?;
    for entry in entries {
        let record = entry.after(at);
        at = record.head();
        let details = encode("details of an audit record", &record.details)?;
        let Record { org, seq, at, actor, action, subject, details: _, previous, digest } = record;
        let values = args![org, seq, at, actor, action, subject, details, &previous.0, &digest.0];
        tx.execute(AUDIT_APPEND, values).await?;
    }
    tx.execute(AUDIT_HEAD_MOVE, args![org, at.seq, &at.digest.0]).await.map(drop)
}

/// Appends what is told of the change, as the last of a transaction, and makes all of it durable.
pub(crate) async fn commit(mut tx: Tx, told: &[Entry]) -> Result<()> {
    append(&mut tx, told).await?;
    tx.commit().await
}

/// Executes one statement that may change one row, and tells of it if it did; returns how many rows it changed.
pub(crate) async fn execute(db: &Db, (query, values): (Query, Args), told: &[Entry]) -> Result<u64> {
    let mut tx = db.begin().await?;
    let changed = tx.execute(query, values).await?;
    commit(tx, if changed > 0 { told } else { &[] }).await?;
    Ok(changed)
}
