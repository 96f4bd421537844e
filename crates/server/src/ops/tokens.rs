//! API tokens: make, list, revoke.

use std::time::Duration;

use holm_api::tokens::CreateToken;
use holm_domain::{
    ErrorCode, OrgId, TokenId,
    access::{Role, Token},
    audit::{Action, Actor, Entry},
    error::InvalidField,
};
use secrecy::{ExposeSecret as _, SecretString};

use super::audit;
use crate::{app::App, auth, clock::Clock, ids, problem::Failure};
use holm_store::Store;

/// The longest name of a token, in characters.
pub const NAME_MAX: usize = 128;
/// The shortest life of a token, in seconds.
const LIFE_S_MIN: u64 = 60;
/// The longest life of a token that has an end, in seconds: ten years.
const LIFE_S_MAX: u64 = 10 * 366 * 24 * 3_600;

/// Makes a token of the org of `by`; the secret is nowhere but in the answer.
pub async fn token_create(app: &App, by: &Token, body: CreateToken) -> Result<(Token, SecretString), Failure> {
    not_private(app)?;
    check_name("name", &body.name)?;
    let life = body.expires_in_s;
    if let Some(seconds) = life.filter(|seconds| !(LIFE_S_MIN..=LIFE_S_MAX).contains(seconds)) {
        let problem = format!("give {LIFE_S_MIN} to {LIFE_S_MAX} seconds, or leave it out");
        return Err(InvalidField::new("expires_in_s", seconds, problem).into());
    }
    let life = life.map(Duration::from_secs);
    let (token, secret) = token_draw(&app.config.clock, by.org, body.role, body.name, life);
    let told = token_told(audit::told(app, by, Action::TokenCreated, token.id), &token);
    app.store.token_create(&token, &[told]).await?;
    Ok((token, secret))
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

/// What is told of a token that is made.
pub(super) fn token_told(told: Entry, token: &Token) -> Entry {
    let expires_at = token.expires_at.map(|at| at.0);
    told.with("name", &token.name).with("role", token.role.as_str()).with_any("expires_at", expires_at)
}

/// Draws a secret and stores its token, for whoever starts the server.
pub(crate) async fn token_issue(
    store: &Store,
    clock: &Clock,
    org: OrgId,
    role: Role,
    name: String,
    life: Option<Duration>,
) -> holm_store::Result<(Token, SecretString)> {
    let (token, secret) = token_draw(clock, org, role, name, life);
    let told = Entry::new(org, token.created_at, Actor::Server, Action::TokenCreated, token.id);
    store.token_create(&token, &[token_told(told, &token)]).await?;
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
pub async fn token_revoke(app: &App, by: &Token, id: TokenId) -> Result<(), Failure> {
    let forget = app.tokens.forget_after(move |_, token| token.id == id);
    let told = audit::told(app, by, Action::TokenRevoked, id);
    app.store.token_revoke(by.org, id, app.now(), &[told]).await?;
    drop(forget);
    // Whoever waits with it is refused now.
    app.wakers.ring_agents(by.org);
    Ok(())
}
