//! Secrets of orgs and projects, whose values were sealed before they came here; nothing in this crate can open them.
//!
//! What always holds: a value is sealed by the data key that seals when it is stored, and that key is there for as long as the
//! value is; a name stands once for the whole org and once for each project; a version is never given twice to one secret,
//! so what was sealed for one is never taken for another. What is sealed anew by a new data key is found by the key, whichever
//! org it is of: data keys belong to the deployment.

use holm_domain::{
    EnvelopeId, OrgId, ProjectId, SecretId, UnixMicros,
    audit::Entry,
    egress::bound::Bound,
    secret::{SECRETS_MAX, SecretName},
};

use crate::{
    Backend, Error, Result, SealedSecret, Store, audit,
    error::{full_unless_one, limit, page},
    keys::seals_still,
    sql::{Db, Row, Tx, args, encode, queries},
};

/// The most secrets that are read, or sealed anew, at once.
pub const SECRETS_PAGE_MAX: u32 = 100;

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Its identity.
    pub id: SecretId,
    /// The org it belongs to.
    pub org: OrgId,
    /// The project whose runs may have it; nothing where all of the org may.
    pub project: Option<ProjectId>,
    /// Its name, unique within the project, or within what belongs to the whole org.
    pub name: SecretName,
    /// How many values it has had, with this one.
    pub version: u64,
    /// To where it may be brought.
    pub bound: Bound,
    /// When it was made.
    pub created_at: UnixMicros,
    /// When it was given its value.
    pub updated_at: UnixMicros,
}

/// A secret with its value, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSecret {
    /// The secret.
    pub secret: Secret,
    /// Its value.
    pub sealed: SealedSecret,
}

/// A value that was sealed anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResealedSecret {
    /// The org of the secret.
    pub org: OrgId,
    /// The secret.
    pub id: SecretId,
    /// The version of the value.
    pub version: u64,
    /// The value, sealed by the new data key.
    pub sealed: Vec<u8>,
}

impl Store {
    /// Stores a new secret; a conflict if its name is taken, or if its data key seals no more. Not found if there is no such
    /// org or project.
    pub async fn secret_create(&self, new: &KeptSecret, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.secret_create(new, told),
            Backend::Sql(db) => secret_create(db, new, told).await,
        }
    }

    /// Gives a secret its next value: `new.secret.version` is one more than the version that is stored. A conflict if it is
    /// not, or if the data key of the value seals no more. What it is bound to stays what is stored where `bound` is nothing:
    /// somebody may have bound it anew since it was read.
    pub async fn secret_replace(&self, new: &KeptSecret, bound: Option<&Bound>, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.secret_replace(new, bound, told),
            Backend::Sql(db) => secret_replace(db, new, bound, told).await,
        }
    }

    /// Binds a secret to what `new` says and changes nothing else of it; a conflict if its version is not that of `new`.
    pub async fn secret_bind(&self, new: &Secret, told: &[Entry]) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.secret_bind(new, told),
            Backend::Sql(db) => secret_bind(db, new, told).await,
        }
    }

    /// Removes the secret of that name, of the project itself or of the whole org; returns the version that it had.
    pub async fn secret_delete(
        &self,
        org: OrgId,
        project: Option<ProjectId>,
        name: &SecretName,
        told: &[Entry],
    ) -> Result<u64> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.secret_delete(org, project, name, told),
            Backend::Sql(db) => secret_delete(db, org, project, name, told).await,
        }
    }

    /// All secrets of the org, by name; that of the whole org before those of projects.
    pub async fn secrets(&self, org: OrgId) -> Result<Vec<Secret>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.secrets(org)),
            Backend::Sql(db) => secrets(db, org).await,
        }
    }

    /// The secret that a name stands for: the project's own if there is one, otherwise that of the whole org.
    pub async fn secret_by_name(
        &self,
        org: OrgId,
        project: Option<ProjectId>,
        name: &SecretName,
    ) -> Result<Option<KeptSecret>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.secret_by_name(org, project, name)),
            Backend::Sql(db) => secret_by_name(db, org, project, name).await,
        }
    }

    /// Secrets of whichever org that a data key sealed, those after `after`, by identity.
    pub async fn secrets_sealed_by(
        &self,
        by: EnvelopeId,
        after: Option<SecretId>,
        limit: u32,
    ) -> Result<Vec<KeptSecret>> {
        page(limit, SECRETS_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.secrets_sealed_by(by, after, limit)),
            Backend::Sql(db) => secrets_sealed_by(db, by, after, limit).await,
        }
    }

    /// Puts values that `new` sealed in the place of the same ones that `old` had sealed; one that was changed or removed since
    /// it was read stays as it is. Returns how many were replaced; a conflict if `new` seals no more.
    pub async fn secrets_reseal(&self, old: EnvelopeId, new: EnvelopeId, resealed: &[ResealedSecret]) -> Result<u32> {
        limit("secrets that are sealed anew", resealed.len(), SECRETS_PAGE_MAX as usize)?;
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.secrets_reseal(old, new, resealed),
            Backend::Sql(db) => secrets_reseal(db, old, new, resealed).await,
        }
    }
}

queries! {
    of "secret" in "org or project";
    SECRET_CREATE = "insert into secrets
        (id, org, project, scope, name, version, bound, envelope_key, sealed, created_at, updated_at)
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 where (select count(*) from secrets where org = $2) < $12";
    SECRET_REPLACE = "update secrets set version = $4, envelope_key = $5, sealed = $6, updated_at = $7,
        bound = coalesce($8, bound) where org = $1 and id = $2 and version = $3";
    SECRET_BIND = "update secrets set bound = $4 where org = $1 and id = $2 and version = $3";
    SECRET_VERSION = "select version from secrets where org = $1 and id = $2";
    SECRET_DELETE = "delete from secrets where org = $1 and name = $2 and scope = $3 returning version";
    SECRETS = "select id, org, project, name, version, bound, created_at, updated_at from secrets where org = $1
        order by name, scope limit $2 + 0";
    SECRET_BY_NAME = "select id, org, project, name, version, bound, envelope_key, sealed, created_at, updated_at from secrets
        where org = $1 and name = $2 and scope in ('', $3) order by scope desc limit 1";
    SECRETS_SEALED_BY = "select id, org, project, name, version, bound, envelope_key, sealed, created_at, updated_at
        from secrets where envelope_key = $1 and id > $2 order by id limit $3 + 0";
    SECRET_RESEAL = "update secrets set envelope_key = $5, sealed = $6
        where org = $1 and id = $2 and version = $3 and envelope_key = $4";
}

fn read(row: &Row) -> Result<Secret> {
    let row = row.of("secrets", "id")?;
    let project = row.text_if_any("project")?.map(|_| row.parsed("project")).transpose()?;
    Ok(Secret {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        project,
        name: row.parsed("name")?,
        version: row.number("version")?,
        bound: row.body("bound")?,
        created_at: row.at("created_at")?,
        updated_at: row.at("updated_at")?,
    })
}

fn kept(row: &Row) -> Result<KeptSecret> {
    let secret = read(row)?;
    let row = row.of("secrets", "id")?;
    let bytes = row.bytes_if_any("sealed")?.ok_or_else(|| row.corrupt("nothing is sealed in it"))?;
    Ok(KeptSecret { secret, sealed: SealedSecret { by: row.parsed("envelope_key")?, bytes } })
}

/// The column by which what belongs to the whole org is told from what belongs to a project.
fn scope(project: Option<ProjectId>) -> String {
    project.map(|project| project.to_string()).unwrap_or_default()
}

async fn secret_create(db: &Db, new: &KeptSecret, told: &[Entry]) -> Result<()> {
    let KeptSecret { secret, sealed } = new;
    let Secret { id, org, project, name, version, bound, created_at, updated_at } = secret;
    let mut tx = db.begin().await?;
    // Whoever creates waits for whoever does, so that the count holds.
    seals_still(&mut tx, sealed.by).await?;
    let values = args![
        *id,
        *org,
        project.map(|project| project.to_string()),
        scope(*project),
        name.as_str(),
        *version,
        encode("a binding", bound)?,
        sealed.by,
        &sealed.bytes[..],
        *created_at,
        *updated_at,
        SECRETS_MAX,
    ];
    full_unless_one(tx.execute(SECRET_CREATE, values).await?, "secrets of an org", SECRETS_MAX)?;
    audit::commit(tx, told).await
}

async fn secret_replace(db: &Db, new: &KeptSecret, bound: Option<&Bound>, told: &[Entry]) -> Result<()> {
    let KeptSecret { secret, sealed } = new;
    let before = secret.version.saturating_sub(1);
    let bound = bound.map(|bound| encode("a binding", bound)).transpose()?;
    let mut tx = db.begin().await?;
    seals_still(&mut tx, sealed.by).await?;
    let values =
        args![secret.org, secret.id, before, secret.version, sealed.by, &sealed.bytes[..], secret.updated_at, bound];
    if tx.execute(SECRET_REPLACE, values).await? == 0 {
        return Err(changed_or_gone(&mut tx, secret).await?);
    }
    audit::commit(tx, told).await
}

async fn secret_bind(db: &Db, new: &Secret, told: &[Entry]) -> Result<()> {
    let mut tx = db.begin().await?;
    let values = args![new.org, new.id, new.version, encode("a binding", &new.bound)?];
    if tx.execute(SECRET_BIND, values).await? == 0 {
        return Err(changed_or_gone(&mut tx, new).await?);
    }
    audit::commit(tx, told).await
}

async fn changed_or_gone(tx: &mut Tx, secret: &Secret) -> Result<Error> {
    let found = tx.row(SECRET_VERSION, args![secret.org, secret.id]).await?;
    Ok(match found {
        Some(_) => Error::Conflict { what: "secret" },
        None => Error::NotFound { what: "secret" },
    })
}

async fn secret_delete(
    db: &Db,
    org: OrgId,
    project: Option<ProjectId>,
    name: &SecretName,
    told: &[Entry],
) -> Result<u64> {
    let mut tx = db.begin().await?;
    let deleted = tx.row(SECRET_DELETE, args![org, name.as_str(), scope(project)]).await?;
    let version = deleted.ok_or(Error::NotFound { what: "secret" })?.under("secrets", name).number("version")?;
    audit::commit(tx, told).await?;
    Ok(version)
}

async fn secrets(db: &Db, org: OrgId) -> Result<Vec<Secret>> {
    db.rows(SECRETS, args![org, SECRETS_MAX]).await?.iter().map(read).collect()
}

async fn secret_by_name(
    db: &Db,
    org: OrgId,
    project: Option<ProjectId>,
    name: &SecretName,
) -> Result<Option<KeptSecret>> {
    db.row(SECRET_BY_NAME, args![org, name.as_str(), scope(project)]).await?.as_ref().map(kept).transpose()
}

async fn secrets_sealed_by(db: &Db, by: EnvelopeId, after: Option<SecretId>, limit: u32) -> Result<Vec<KeptSecret>> {
    let after = after.map(|id| id.to_string()).unwrap_or_default();
    db.rows(SECRETS_SEALED_BY, args![by, after, limit]).await?.iter().map(kept).collect()
}

async fn secrets_reseal(db: &Db, old: EnvelopeId, new: EnvelopeId, resealed: &[ResealedSecret]) -> Result<u32> {
    let mut tx = db.begin().await?;
    seals_still(&mut tx, new).await?;
    let mut count = 0;
    for ResealedSecret { org, id, version, sealed } in resealed {
        let changed = tx.execute(SECRET_RESEAL, args![*org, *id, *version, old, new, &sealed[..]]).await?;
        count += u32::from(changed == 1);
    }
    tx.commit().await?;
    Ok(count)
}
