//! API tokens: make, list, revoke.

use std::time::Duration;

use holm_api::tokens::CreateToken;
use holm_domain::{
    ErrorCode, OrgId, TokenId,
    access::{Role, Token},
    error::InvalidField,
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{app::App, auth, clock::Clock, ids, problem::Failure};
use holm_store::Store;

/// The longest name of a token, in characters.
pub const NAME_MAX: usize = 128;
/// The shortest life of a token, in seconds.
const LIFE_S_MIN: u64 = 60;
/// The longest life of a token that has an end, in seconds: ten years.
const LIFE_S_MAX: u64 = 10 * 366 * 24 * 3_600;

/// Makes a token of the org; the secret is nowhere but in the answer.
pub async fn token_create(app: &App, org: OrgId, body: CreateToken) -> Result<(Token, SecretString), Failure> {
    not_private(app)?;
    check_name("name", &body.name)?;
    let life = body.expires_in_s;
    if let Some(seconds) = life.filter(|seconds| !(LIFE_S_MIN..=LIFE_S_MAX).contains(seconds)) {
        let problem = format!("give {LIFE_S_MIN} to {LIFE_S_MAX} seconds, or leave it out");
        return Err(InvalidField::new("expires_in_s", seconds, problem).into());
    }
    let life = life.map(Duration::from_secs);
    Ok(token_issue(&app.store, &app.config.clock, org, body.role, body.name, life).await?)
}

/// Refuses what would let others in where nobody but the user may be.
pub(super) fn not_private(app: &App) -> Result<(), Failure> {
    if !app.config.private {
        return Ok(());
    }
    let detail = "this is the private server of its user: it lends the whole host to whoever has a token of it, so it \
                  makes no further ones; start `holm up` without --private for others";
    Err(Failure::new(ErrorCode::Forbidden, detail))
}

/// Draws a secret and stores its token.
pub(crate) async fn token_issue(
    store: &Store,
    clock: &Clock,
    org: OrgId,
    role: Role,
    name: String,
    life: Option<Duration>,
) -> holm_store::Result<(Token, SecretString)> {
    let (token, secret) = token_draw(clock, org, role, name, life);
    store.token_create(&token).await?;
    Ok((token, secret))
}

/// Draws a secret and makes its token, which nobody has stored yet.
pub(super) fn token_draw(
    clock: &Clock,
    org: OrgId,
    role: Role,
    name: String,
    life: Option<Duration>,
) -> (Token, SecretString) {
    let secret = ids::secret();
    let now = clock.now();
    let token = Token {
        id: ids::token(),
        org,
        role,
        name,
        hash: auth::hash(secret.expose_secret()),
        created_at: now,
        expires_at: life.map(|life| now.plus(life)),
        revoked_at: None,
    };
    (token, secret)
}

/// Refuses names that are empty, long, or that would confuse a terminal.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), InvalidField> {
    let length = name.chars().count();
    if (1..=NAME_MAX).contains(&length) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(InvalidField::new(field, name, format!("give 1 to {NAME_MAX} characters without control characters")))
}

/// Revokes a token of the org at once. Revoking again changes nothing.
pub async fn token_revoke(app: &App, org: OrgId, id: TokenId) -> Result<(), Failure> {
    let forget = app.tokens.forget_after(move |_, token| token.id == id);
    app.store.token_revoke(org, id, app.now()).await?;
    drop(forget);
    // Whoever waits with it is refused now.
    app.wakers.ring_agents(org);
    Ok(())
}
