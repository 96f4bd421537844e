//! Secrets of orgs and projects: keep, give another value, bind, list, remove, open, and seal anew. Who did what is in the log, and
//! never a value.
//!
//! What always holds: a value is checked before it is sealed, sealed for the version of its secret, and opened by the data key
//! that sealed it, whether that seals still or not. What a rotation of the data key left half done, the next one finishes.

use std::collections::BTreeMap;

use holm_api::secrets::{BindSecret, CreateSecret, DeleteSecret, RotateSecret, SecretValue, SecretView};
use holm_domain::{
    EnvelopeId, ErrorCode, OrgId, ProjectId,
    access::Token,
    audit::Action,
    egress::bound::Bound,
    error::InvalidField,
    secret::{SecretName, check_value},
};
use holm_store::{EnvelopeKey, Error, KeptSecret, Project, ResealedSecret, SECRETS_PAGE_MAX, SealedSecret, Secret};
use secrecy::SecretString;

use super::{
    audit,
    keys::{envelope, unless_meanwhile},
    project_named,
};
use crate::{
    app::App,
    auth::{
        keyring::data_key,
        sealing::{Kind, NotOpened, SealingKey},
    },
    config::SWAPS_MAX,
    ids,
    problem::{Failure, REDACTED},
};

/// A secret with its value.
#[derive(Debug)]
pub struct Opened {
    /// Its name.
    pub name: SecretName,
    /// How many values it has had, with this one.
    pub version: u64,
    /// To where it may be brought.
    pub bound: Bound,
    /// The value.
    pub value: SecretString,
}

/// Keeps a new secret of the org, or of one of its projects.
pub async fn secret_create(app: &App, by: &Token, body: CreateSecret) -> Result<SecretView, Failure> {
    let CreateSecret { name, value, bound, project } = body;
    let name: SecretName = name.parse().map_err(|bad| InvalidField::new("name", &name, format!("{bad}")))?;
    check(&value)?;
    let bound = read(&bound)?;
    let scope = Scope::of(app, by.org, project.as_deref()).await?;
    for _ in 0..SWAPS_MAX {
        if scope.own(app, &name).await?.is_some() {
            return Err(scope.is_there(&name));
        }
        let now = app.now();
        let secret = Secret {
            id: ids::secret_id(),
            org: by.org,
            project: scope.id(),
            name: name.clone(),
            version: 1,
            bound: bound.clone(),
            created_at: now,
            updated_at: now,
        };
        let kept = seal(app, secret, &value).await?;
        let told = audit::told(app, by, Action::SecretCreated, &name).with_any("project", project.as_ref());
        let told = told.with("version", 1).with("for", &bound);
        if unless_meanwhile(app.store.secret_create(&kept, &[told]).await)? {
            tracing::info!(org = %by.org, project, name = %name, version = 1, %bound, by = %by.id, "a secret was made");
            return Ok(view(kept.secret, project));
        }
    }
    Err(busy())
}

/// Gives a secret its next value, and binds it anew where that is given.
pub async fn secret_rotate(
    app: &App,
    by: &Token,
    name: &SecretName,
    body: RotateSecret,
) -> Result<SecretView, Failure> {
    let RotateSecret { value, bound, project } = body;
    check(&value)?;
    let bound = bound.as_deref().map(read).transpose()?;
    let scope = Scope::of(app, by.org, project.as_deref()).await?;
    for _ in 0..SWAPS_MAX {
        let Some(KeptSecret { secret, .. }) = scope.own(app, name).await? else { return Err(scope.is_missing(name)) };
        let version = secret.version + 1;
        let next = bound.clone().unwrap_or_else(|| secret.bound.clone());
        let kept = seal(app, Secret { version, bound: next, updated_at: app.now(), ..secret }, &value).await?;
        let told = audit::told(app, by, Action::SecretReplaced, name).with_any("project", project.as_ref());
        let told = told.with("version", version).with_any("for", bound.as_ref());
        match app.store.secret_replace(&kept, bound.as_ref(), &[told]).await {
            // Others changed it meanwhile, or removed it: look again.
            Err(Error::Conflict { .. } | Error::NotFound { .. }) => {}
            done => {
                done?;
                let bound = bound.map(|bound| bound.to_string());
                tracing::info!(org = %by.org, project, name = %name, version, bound, by = %by.id, "a secret was replaced");
                return Ok(view(kept.secret, project));
            }
        }
    }
    Err(busy())
}

/// Binds a secret to what is given, and to nothing else; its value stays.
pub async fn secret_bind(app: &App, by: &Token, name: &SecretName, body: BindSecret) -> Result<SecretView, Failure> {
    let BindSecret { bound, project } = body;
    let bound = read(&bound)?;
    let scope = Scope::of(app, by.org, project.as_deref()).await?;
    for _ in 0..SWAPS_MAX {
        let Some(KeptSecret { secret, .. }) = scope.own(app, name).await? else { return Err(scope.is_missing(name)) };
        let secret = Secret { bound: bound.clone(), ..secret };
        let told = audit::told(app, by, Action::SecretBound, name).with_any("project", project.as_ref());
        match app.store.secret_bind(&secret, &[told.with("for", &bound)]).await {
            // Others changed it meanwhile, or removed it: look again.
            Err(Error::Conflict { .. } | Error::NotFound { .. }) => {}
            done => {
                done?;
                let version = secret.version;
                tracing::info!(org = %by.org, project, name = %name, version, %bound, by = %by.id, "a secret was bound");
                return Ok(view(secret, project));
            }
        }
    }
    Err(busy())
}

/// All secrets of the org and of its projects, by name.
pub async fn secrets_list(app: &App, org: OrgId) -> Result<Vec<SecretView>, Failure> {
    let secrets = app.store.secrets(org).await?;
    let projects = match secrets.iter().any(|secret| secret.project.is_some()) {
        true => app.store.project_list(org).await?,
        false => Vec::new(),
    };
    let names: BTreeMap<ProjectId, String> = projects.into_iter().map(|project| (project.id, project.name)).collect();
    let named = |secret: Secret| {
        let project = secret.project.and_then(|id| names.get(&id).cloned());
        view(secret, project)
    };
    Ok(secrets.into_iter().map(named).collect())
}

/// Removes a secret, with all that is kept of its value.
pub async fn secret_delete(app: &App, by: &Token, name: &SecretName, of: DeleteSecret) -> Result<(), Failure> {
    let scope = Scope::of(app, by.org, of.project.as_deref()).await?;
    let told = audit::told(app, by, Action::SecretRemoved, name).with_any("project", of.project.as_ref());
    match app.store.secret_delete(by.org, scope.id(), name, &[told]).await {
        Ok(version) => {
            tracing::info!(org = %by.org, project = of.project, name = %name, version, by = %by.id, "a secret was removed");
            Ok(())
        }
        Err(Error::NotFound { .. }) => Err(scope.is_missing(name)),
        Err(error) => Err(error.into()),
    }
}

/// To where the secret may be brought that a name stands for in runs of the project; nothing if it stands for none.
pub async fn bound_of(app: &App, org: OrgId, project: ProjectId, name: &SecretName) -> Result<Option<Bound>, Failure> {
    Ok(app.store.secret_by_name(org, Some(project), name).await?.map(|kept| kept.secret.bound))
}

/// Opens the secrets that these names stand for in runs of the project, in their order.
pub async fn secrets_open(
    app: &App,
    org: OrgId,
    project: ProjectId,
    names: &[SecretName],
) -> Result<Vec<Opened>, Failure> {
    let (mut opened, mut keys) = (Vec::with_capacity(names.len()), BTreeMap::new());
    for name in names {
        opened.push(open_one(app, org, project, name, &mut keys).await?);
    }
    Ok(opened)
}

/// The secret that a name stands for in runs of the project.
async fn found(app: &App, org: OrgId, project: ProjectId, name: &SecretName) -> Result<KeptSecret, Failure> {
    let kept = app.store.secret_by_name(org, Some(project), name).await?;
    kept.ok_or_else(|| {
        let detail =
            format!("there is no secret `{name}`, of the project or of the org; `holm secret set {name}` keeps one");
        Failure::new(ErrorCode::NotFound, detail).at("secret", name)
    })
}

async fn open_one(
    app: &App,
    org: OrgId,
    project: ProjectId,
    name: &SecretName,
    keys: &mut BTreeMap<EnvelopeId, SealingKey>,
) -> Result<Opened, Failure> {
    for _ in 0..SWAPS_MAX {
        let KeptSecret { secret, sealed } = found(app, org, project, name).await?;
        // Otherwise it was sealed anew between the two looks.
        if let Some(data) = data_key_of(app, sealed.by, keys).await? {
            let value = open(&data, &secret, &sealed);
            let value = value.map_err(|error| Failure::internal(format!("the secret {}: {error}", secret.id)))?;
            return Ok(Opened { name: secret.name, version: secret.version, bound: secret.bound, value });
        }
    }
    Err(busy())
}

async fn data_key_of(
    app: &App,
    id: EnvelopeId,
    keys: &mut BTreeMap<EnvelopeId, SealingKey>,
) -> Result<Option<SealingKey>, Failure> {
    if let Some(known) = keys.get(&id) {
        return Ok(Some(known.clone()));
    }
    let Some(envelope) = app.store.envelope_get(id).await? else { return Ok(None) };
    let data = data_key(app.keys.root()?, &envelope);
    let data = data.map_err(|error| Failure::internal(format!("the data key {id}: {error}")))?;
    keys.insert(id, data.clone());
    Ok(Some(data))
}

/// For which row a value is sealed: a version that was put back is refused.
fn place(secret: &Secret) -> String {
    format!("{}.{}", secret.id, secret.version)
}

async fn seal(app: &App, secret: Secret, value: &SecretValue) -> Result<KeptSecret, Failure> {
    let (by, data) = envelope(app).await?;
    let bytes = data.seal(Kind::Secret, place(&secret), value.expose().as_bytes()).map_err(Failure::internal)?;
    Ok(KeptSecret { secret, sealed: SealedSecret { by: by.id, bytes } })
}

fn open(data: &SealingKey, secret: &Secret, sealed: &SealedSecret) -> Result<SecretString, NotOpened> {
    let value = data.open(Kind::Secret, place(secret), &sealed.bytes)?;
    std::str::from_utf8(&value).map(SecretString::from).map_err(|_| NotOpened)
}

/// Refuses what is no value of a secret, and does not tell it.
fn check(value: &SecretValue) -> Result<(), InvalidField> {
    check_value(value.expose()).map_err(|bad| InvalidField::new("value", REDACTED, bad.to_string()))
}

fn read(bound: &[String]) -> Result<Bound, InvalidField> {
    Bound::read(bound).map_err(|bad| InvalidField::new("for", bound.join(", "), bad.to_string()))
}

fn view(secret: Secret, project: Option<String>) -> SecretView {
    let Secret { id, name, version, bound, created_at, updated_at, .. } = secret;
    SecretView { id, name, project, version, bound, created_at, updated_at }
}

fn busy() -> Failure {
    let cause = format!("{SWAPS_MAX} attempts to change or open a secret found it changed by somebody else");
    Failure::unavailable("secrets or keys are being changed by many at once; try again", cause)
}

/// To whom a secret belongs: to the org, or to one of its projects.
struct Scope {
    org: OrgId,
    project: Option<Project>,
}

impl Scope {
    async fn of(app: &App, org: OrgId, project: Option<&str>) -> Result<Self, Failure> {
        let project = match project {
            Some(name) => Some(project_named(app, org, name).await?),
            None => None,
        };
        Ok(Self { org, project })
    }

    fn id(&self) -> Option<ProjectId> {
        self.project.as_ref().map(|project| project.id)
    }

    /// The secret of that name that belongs to it, not only is to be had in it.
    async fn own(&self, app: &App, name: &SecretName) -> Result<Option<KeptSecret>, Failure> {
        let kept = app.store.secret_by_name(self.org, self.id(), name).await?;
        Ok(kept.filter(|kept| kept.secret.project == self.id()))
    }

    fn is_there(&self, name: &SecretName) -> Failure {
        let (whose, flag) = self.told();
        let detail = format!(
            "there is a secret `{name}` of {whose} already; `holm secret rotate {name}{flag}` gives it another value"
        );
        Failure::new(ErrorCode::Conflict, detail).at("name", name)
    }

    fn is_missing(&self, name: &SecretName) -> Failure {
        let (whose, flag) = self.told();
        let detail = format!("there is no secret `{name}` of {whose}; `holm secret set {name}{flag}` keeps one");
        Failure::new(ErrorCode::NotFound, detail).at("name", name)
    }

    /// As people read it, and as the command line has it.
    fn told(&self) -> (String, String) {
        match &self.project {
            Some(Project { name, .. }) => (format!("the project `{name}`"), format!(" --project {name}")),
            None => ("the org".to_owned(), String::new()),
        }
    }
}

/// Seals anew, by the data key that seals, what others had sealed, of this rotation and of those that were cut off, and has the
/// store forget the others. Returns how many secrets were sealed anew.
pub(super) async fn secrets_reseal(app: &App) -> Result<u32, Failure> {
    let mut count = 0;
    for old in app.store.envelopes_retired().await? {
        match data_key(app.keys.root()?, &old) {
            Ok(data) => count += reseal_all(app, &old, &data).await?,
            Err(error) => tracing::error!(envelope = %old.id, %error, "a data key cannot be opened, and is left"),
        }
    }
    app.store.envelopes_forget().await?;
    Ok(count)
}

async fn reseal_all(app: &App, old: &EnvelopeKey, data: &SealingKey) -> Result<u32, Failure> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = app.store.secrets_sealed_by(old.id, after, SECRETS_PAGE_MAX).await?;
        let Some(last) = page.last() else { return Ok(count) };
        after = Some(last.secret.id);
        count += reseal_page(app, old, data, &page).await?;
    }
}

async fn reseal_page(app: &App, old: &EnvelopeKey, data: &SealingKey, page: &[KeptSecret]) -> Result<u32, Failure> {
    for _ in 0..SWAPS_MAX {
        let (new, new_data) = envelope(app).await?;
        let resealed: Vec<ResealedSecret> = page.iter().filter_map(|kept| reseal(kept, data, &new_data)).collect();
        match app.store.secrets_reseal(old.id, new.id, &resealed).await {
            // Another rotation was faster: by the key of that.
            Err(Error::Conflict { .. }) => {}
            done => return Ok(done?),
        }
    }
    Err(busy())
}

/// One that is damaged is told and left with its data key: it keeps no other from being sealed anew.
fn reseal(kept: &KeptSecret, data: &SealingKey, new: &SealingKey) -> Option<ResealedSecret> {
    let KeptSecret { secret, sealed } = kept;
    let opened = data.open(Kind::Secret, place(secret), &sealed.bytes);
    match opened.and_then(|value| new.seal(Kind::Secret, place(secret), &value)) {
        Ok(sealed) => Some(ResealedSecret { org: secret.org, id: secret.id, version: secret.version, sealed }),
        Err(error) => {
            tracing::error!(secret = %secret.id, org = %secret.org, %error, "a secret cannot be opened, and is left");
            None
        }
    }
}

#[cfg(test)]
mod tests;
