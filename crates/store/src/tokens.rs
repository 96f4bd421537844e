//! API tokens: only the digest of a secret is stored.

use holm_domain::{
    OrgId, TokenId, UnixMicros,
    access::{Role, Token},
    audit::Entry,
};

use crate::{
    Backend, Error, Result, Store, audit,
    error::full_unless_one,
    sql::{Args, Db, Query, Row, args, queries},
};

/// The largest number of tokens of an org that are not revoked, and the most that are listed.
pub const TOKENS_MAX: u32 = 1_000;

impl Store {
    /// Stores a new token; a conflict if its id or its hash is taken, not found if there is no such org.
    pub async fn token_create(&self, token: &Token, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.token_create(token, told),
            Backend::Sql(db) => token_create(db, token, told).await,
        }
    }

    /// The token whose secret has that SHA-256, of whichever org: this is how a request finds its org. It may be expired or
    /// revoked.
    pub async fn token_by_hash(&self, hash: &[u8; 32]) -> Result<Option<Token>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.token_by_hash(hash)),
            Backend::Sql(db) => token_by_hash(db, hash).await,
        }
    }

    /// The token, if the org has it. It may be expired or revoked.
    pub async fn token_get(&self, org: OrgId, id: TokenId) -> Result<Option<Token>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.token_get(org, id)),
            Backend::Sql(db) => token_get(db, org, id).await,
        }
    }

    /// The newest [`TOKENS_MAX`] tokens of the org: first those that are not revoked, each group newest first.
    pub async fn token_list(&self, org: OrgId) -> Result<Vec<Token>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.token_list(org)),
            Backend::Sql(db) => token_list(db, org).await,
        }
    }

    /// Revokes a token. One that was revoked before keeps its time.
    pub async fn token_revoke(&self, org: OrgId, id: TokenId, now: UnixMicros, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.token_revoke(org, id, now, told),
            Backend::Sql(db) => token_revoke(db, org, id, now, told).await,
        }
    }
}

queries! {
    of "token" in "org";
    TOKEN_CREATE = "insert into tokens (id, org, role, name, hash, created_at, expires_at, revoked_at)
        select $1, $2, $3, $4, $5, $6, $7, $8
        where (select count(*) from tokens where org = $2 and revoked_at is null) < $9";
    TOKEN_BY_HASH = "select id, org, role, name, hash, created_at, expires_at, revoked_at from tokens where hash = $1";
    TOKEN_GET = "select id, org, role, name, hash, created_at, expires_at, revoked_at from tokens
        where org = $1 and id = $2";
    TOKEN_LIST = "select id, org, role, name, hash, created_at, expires_at, revoked_at from tokens where org = $1
        order by case when revoked_at is null then 0 else 1 end, id desc limit $2 + 0";
    TOKEN_REVOKE = "update tokens set revoked_at = $3 where org = $1 and id = $2 and revoked_at is null";
}

fn read(row: &Row) -> Result<Token> {
    let row = row.of("tokens", "id")?;
    let role = row.text("role")?;
    Ok(Token {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        role: Role::parse(&role).ok_or_else(|| row.corrupt(format!("`{role}` is no role")))?,
        name: row.text("name")?,
        hash: row.digest("hash")?,
        created_at: row.at("created_at")?,
        expires_at: row.at_if_any("expires_at")?,
        revoked_at: row.at_if_any("revoked_at")?,
    })
}

/// By which a token is stored.
pub(crate) fn creation(token: &Token) -> (Query, Args) {
    let Token { id, org, role, name, hash, created_at, expires_at, revoked_at } = token;
    let values =
        args![*id, *org, role.as_str(), name.as_str(), hash, *created_at, *expires_at, *revoked_at, TOKENS_MAX];
    (TOKEN_CREATE, values)
}

async fn token_create(db: &Db, token: &Token, told: &[Entry]) -> Result<()> {
    let (query, values) = creation(token);
    let mut tx = db.begin().await?;
    full_unless_one(tx.execute(query, values).await?, "tokens of an org", TOKENS_MAX)?;
    audit::commit(tx, told).await
}

async fn token_by_hash(db: &Db, hash: &[u8; 32]) -> Result<Option<Token>> {
    db.row(TOKEN_BY_HASH, args![hash]).await?.as_ref().map(read).transpose()
}

async fn token_get(db: &Db, org: OrgId, id: TokenId) -> Result<Option<Token>> {
    db.row(TOKEN_GET, args![org, id]).await?.as_ref().map(read).transpose()
}

async fn token_list(db: &Db, org: OrgId) -> Result<Vec<Token>> {
    db.rows(TOKEN_LIST, args![org, TOKENS_MAX]).await?.iter().map(read).collect()
}

async fn token_revoke(db: &Db, org: OrgId, id: TokenId, now: UnixMicros, told: &[Entry]) -> Result<()> {
    match audit::execute(db, (TOKEN_REVOKE, args![org, id, now]), told).await? {
        0 if token_get(db, org, id).await?.is_some() => Ok(()),
        0 => Err(Error::NotFound { what: "token" }),
        _ => Ok(()),
    }
}
