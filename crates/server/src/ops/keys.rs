//! The keys of the deployment: list, rotate, withdraw, seal anew. Who did what is in the log.
//!
//! The data key is rotated in two steps: the new one seals from the first on, with the signing keys in its transaction, and in
//! the second what the old one sealed of secrets is sealed anew, page by page ([`super::secrets`]).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_api::keys::{EnvelopeRotated, KeySet, KeyView, PublicKey};
use holm_domain::{
    EnvelopeId, ErrorCode, KeyId, UnixMicros,
    access::Token,
    audit::{Action, Actor, Entry},
    keys,
};
use holm_store::{EnvelopeKey, Error, Resealed, SigningKey};

use super::{audit, secrets::secrets_reseal};
use crate::{
    app::App,
    auth::{
        bootstrap::DEFAULT_ORG,
        keyring::{data_key, envelope_draw, signing, signing_key_draw},
        sealing::{Kind, SealingKey},
    },
    config::SWAPS_MAX,
    problem::Failure,
};

/// How long a key stands in the list after it retired or was withdrawn.
const SHOWN_FOR: Duration = Duration::from_secs(90 * 24 * 3_600);

/// Keys belong to the deployment and not to an org, so only those who administer the deployment's own org may touch them.
async fn deployment_admin(app: &App, by: &Token) -> Result<(), Failure> {
    let keys = app.keys.keys(&app.store).await?;
    if by.org == keys.deployment {
        return Ok(());
    }
    let detail = format!(
        "keys sign for all orgs of this deployment, so only an admin of its org `{DEFAULT_ORG}` may see and change them; \
         this token is one of another org"
    );
    Err(Failure::new(ErrorCode::Forbidden, detail))
}

fn view(key: &SigningKey, now: UnixMicros) -> KeyView {
    let times = key.times;
    KeyView {
        id: times.id,
        state: times.state(now),
        created_at: times.created_at,
        retires_at: times.retires_at,
        withdrawn_at: times.withdrawn_at,
    }
}

/// All signing keys, newest first.
pub async fn key_list(app: &App, by: &Token) -> Result<Vec<KeyView>, Failure> {
    deployment_admin(app, by).await?;
    let now = app.now();
    Ok(app.store.signing_keys().await?.iter().map(|key| view(key, now)).collect())
}

/// The keys that verify, for everybody.
pub async fn key_set(app: &App) -> Result<KeySet, Failure> {
    let (keys, now) = (app.keys.keys(&app.store).await?, app.now());
    let public = |key: &SigningKey| PublicKey {
        kty: "OKP".to_owned(),
        crv: "Ed25519".to_owned(),
        alg: "EdDSA".to_owned(),
        used_for: "sig".to_owned(),
        kid: key.times.id,
        x: URL_SAFE_NO_PAD.encode(key.public),
    };
    Ok(KeySet { keys: keys.all.iter().filter(|key| key.times.verifies(now)).map(public).collect() })
}

/// The data key that seals, and opened.
pub(super) async fn envelope(app: &App) -> Result<(EnvelopeKey, SealingKey), Failure> {
    let envelope = app.store.envelope_current().await?;
    let envelope = envelope.ok_or_else(|| Failure::internal("no data key seals; a start of the server makes one"))?;
    let data = data_key(app.keys.root()?, &envelope).map_err(Failure::internal)?;
    Ok((envelope, data))
}

async fn drawn(app: &App) -> Result<SigningKey, Failure> {
    let (envelope, data) = envelope(app).await?;
    signing_key_draw(&envelope, &data, app.now()).map_err(Failure::internal)
}

/// Others changed the keys meanwhile: look again. What was made in vain is forgotten.
pub(super) fn unless_meanwhile(done: holm_store::Result<()>) -> Result<bool, Failure> {
    match done {
        Ok(()) => Ok(true),
        Err(Error::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn busy() -> Failure {
    let cause = format!("{SWAPS_MAX} attempts to change the keys found them changed by somebody else");
    Failure::unavailable("the keys are being changed by many at once; try again", cause)
}

/// Has a new key sign from now on. Those of before verify until what they signed has expired.
pub async fn key_rotate(app: &App, by: &Token) -> Result<KeyView, Failure> {
    deployment_admin(app, by).await?;
    for _ in 0..SWAPS_MAX {
        let (all, new, now) = (app.store.signing_keys().await?, drawn(app).await?, app.now());
        let retires_at = keys::retires_at(now, app.config.lease.margin);
        let old = signing(&all).map(|key| (key.times.id, retires_at));
        let before = old.map(|(id, _)| id.to_string());
        let told = audit::told(app, by, Action::KeyRotated, new.times.id).with_any("before", before.as_ref());
        let forget = app.keys.forget_after();
        let done = app.store.signing_key_rotate(old, &new, now.minus(SHOWN_FOR), &[told]).await;
        drop(forget);
        if unless_meanwhile(done)? {
            tracing::info!(key = %new.times.id, before, by = %by.id, "a new key signs");
            return Ok(view(&new, now));
        }
    }
    Err(busy())
}

/// Has what the key signed be refused: here at once, elsewhere within a second. If it signs, a new one signs in its place.
pub async fn key_withdraw(app: &App, by: &Token, id: KeyId) -> Result<KeyView, Failure> {
    deployment_admin(app, by).await?;
    withdraw(app, id, audit::told(app, by, Action::KeyWithdrawn, id)).await
}

/// Withdraws every key that verifies: of a copy that was restored nobody knows which were withdrawn since it was made.
pub(crate) async fn keys_withdraw_all(app: &App) -> Result<(), Failure> {
    if !app.keys.signs() {
        return Ok(());
    }
    let (deployment, now) = (app.keys.keys(&app.store).await?.deployment, app.now());
    for key in app.store.signing_keys().await?.iter().filter(|key| key.times.verifies(now)) {
        let told = Entry::new(deployment, now, Actor::Server, Action::KeyWithdrawn, key.times.id);
        withdraw(app, key.times.id, told.with("why", "a restore")).await?;
    }
    Ok(())
}

async fn withdraw(app: &App, id: KeyId, told: Entry) -> Result<KeyView, Failure> {
    for _ in 0..SWAPS_MAX {
        let (all, now) = (app.store.signing_keys().await?, app.now());
        let key = all.iter().find(|key| key.times.id == id).ok_or_else(|| Failure::not_found("key", id))?;
        let new = match signing(&all).is_some_and(|signs| signs.times.id == id) {
            true => Some(drawn(app).await?),
            false => None,
        };
        let in_its_place = new.as_ref().map(|new| new.times.id.to_string());
        let told = told.clone().with_any("in_its_place", in_its_place.as_ref());
        let forget = app.keys.forget_after();
        let done = app.store.signing_key_withdraw(id, now, new.as_ref(), &[told]).await;
        drop(forget);
        if unless_meanwhile(done)? {
            tracing::warn!(key = %id, in_its_place, "a key was withdrawn");
            let mut shown = view(key, now);
            shown.withdrawn_at.get_or_insert(now);
            return Ok(KeyView { state: keys::KeyState::Withdrawn, ..shown });
        }
    }
    Err(busy())
}

/// Puts a new data key in the place of the one that seals, and seals anew what that had sealed, and what was left of rotations
/// that were cut off.
pub async fn envelope_rotate(app: &App, by: &Token) -> Result<EnvelopeRotated, Failure> {
    deployment_admin(app, by).await?;
    let (id, keys) = envelope_replace(app, by).await?;
    let secrets = secrets_reseal(app).await?;
    tracing::info!(envelope = %id, keys, secrets, "what other data keys had sealed was sealed anew");
    Ok(EnvelopeRotated { id, resealed: keys + secrets })
}

/// Has a new data key seal; returns it, and how many signing keys were sealed anew by it.
pub(super) async fn envelope_replace(app: &App, by: &Token) -> Result<(EnvelopeId, u32), Failure> {
    for _ in 0..SWAPS_MAX {
        let (old, old_data) = envelope(app).await?;
        let (new, new_data) = envelope_draw(app.keys.root()?, app.now()).map_err(Failure::internal)?;
        let all = app.store.signing_keys().await?;
        let sealed = all.iter().filter_map(|key| Some((key.times.id, key.private.as_ref()?)));
        let mut resealed = Vec::new();
        for (id, private) in sealed.filter(|(_, private)| private.by == old.id) {
            let secret = old_data.open(Kind::SigningKey, id, &private.bytes).map_err(Failure::internal)?;
            let sealed = new_data.seal(Kind::SigningKey, id, &secret).map_err(Failure::internal)?;
            resealed.push(Resealed { id, sealed });
        }
        let told = audit::told(app, by, Action::EnvelopeRotated, new.id).with("before", old.id);
        if unless_meanwhile(app.store.envelope_rotate(old.id, &new, &resealed, &[told]).await)? {
            tracing::info!(envelope = %new.id, before = %old.id, by = %by.id, "a new data key seals");
            return Ok((new.id, u32::try_from(resealed.len()).unwrap_or(u32::MAX)));
        }
    }
    Err(busy())
}
