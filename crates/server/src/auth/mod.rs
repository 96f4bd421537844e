//! Who asks, and whether they may.
//!
//! Every request but those for health, the API's description and the keys that verify bears a token (RFC 6750 §2.1): an opaque
//! one (`Authorization: Bearer holm_…`), or, where a route says so, a signed one; which it is shows in its form. The store knows only the SHA-256 of the secret, so the look-up compares digests of 256 random bits and leaks nothing by its
//! timing. What a route needs stands in the type of its handler's argument: [`May<Read>`](May), [`May<Run>`](May), …; a
//! handler without one does not know the caller's org and can read nothing.

pub mod bootstrap;
pub mod jose;
pub mod keyring;
pub mod known;
pub mod run_token;
pub mod sealing;
pub mod speaker;

use std::{marker::PhantomData, sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use holm_domain::{
    ErrorCode, OrgId,
    access::{Action, Token},
};
use http::{HeaderMap, header::AUTHORIZATION};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use self::{
    jose::Kind,
    keyring::Keys,
    speaker::{Opened, Speaker},
};
use crate::{
    account::Account,
    app::App,
    gate::Party,
    ids::{JOIN_PREFIX, SECRET_PREFIX},
    limited,
    problem::Failure,
    serve::Seat,
};

/// A kind of action, as a type.
pub trait Permission: Send + 'static {
    /// The action.
    const ACTION: Action;
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident;)+) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub enum $name {}

            impl Permission for $name {
                const ACTION: Action = Action::$name;
            }
        )+
    };
}

permissions! {
    /// See runs, logs, events and hosts.
    Read;
    /// Create, cancel and delete runs.
    Run;
    /// Create, list and revoke tokens; say which hosts take new runs; read the audit log.
    Administer;
    /// Speak the agent protocol.
    Serve;
    /// Read the metrics of the server.
    Observe;
}

/// A caller whose token allows `P`.
#[derive(Debug)]
pub struct May<P> {
    /// The token that was shown.
    pub token: Token,
    permission: PhantomData<P>,
}

impl<P> May<P> {
    /// The org of the caller: the only one that this request can touch.
    pub fn org(&self) -> OrgId {
        self.token.org
    }
}

impl<P: Permission> FromRequestParts<Arc<App>> for May<P> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let token = authenticate(parts, app).await?;
        if token.role.allows(P::ACTION) {
            limited::charge(app, parts, token.org).await?;
            return Ok(Self { token, permission: PhantomData });
        }
        let role = token.role.as_str();
        Err(Failure::new(ErrorCode::Forbidden, format!("a token with the role `{role}` may not do this")))
    }
}

/// A caller with any token that works.
#[derive(Debug)]
pub struct Known {
    /// The token that was shown.
    pub token: Token,
}

impl FromRequestParts<Arc<App>> for Known {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        authenticate(parts, app).await.map(|token| Self { token })
    }
}

/// The token of a request; what the request holds from now on is on its account.
async fn authenticate(parts: &Parts, app: &App) -> Result<Token, Failure> {
    let secret = match shown(&parts.headers) {
        Some(Shown::Opaque(secret)) if secret.starts_with(JOIN_PREFIX) => {
            return Err(refused(
                "this is a join token: it enrols a host (`holm agent --join-token-file`), and does nothing else",
            ));
        }
        Some(Shown::Opaque(secret)) => secret,
        Some(Shown::Signed(_)) => return Err(refused("this takes a token `holm_…`, and no signed one")),
        None => return Err(refused("send the header `authorization: Bearer holm_…`")),
    };
    let token = token_of(app, &hash(secret)).await?;
    let token = token.filter(|token| token.is_live(app.now()));
    let token = token.ok_or_else(|| refused("the token is unknown, revoked or expired"))?;
    seated(parts, Party::of(&token))?;
    Ok(token)
}

/// The claims of a token of `kind` that a key of the deployment signed, and the keys; what they say is still to be looked at.
async fn verified<C: DeserializeOwned>(app: &App, token: &str, kind: Kind) -> Result<(C, Arc<Keys>), Failure> {
    let now = app.now();
    let of = |keys: &Keys| jose::verify(token, kind, |id| keys.verifying(id, now));
    let mut keys = app.keys.keys(&app.store).await?;
    let mut claims = of(&keys);
    if matches!(claims, Err(jose::Refused::Key)) {
        keys = app.keys.keys_again(&app.store).await?;
        claims = of(&keys);
    }
    Ok((claims?, keys))
}

fn refused(detail: &str) -> Failure {
    Failure::new(ErrorCode::Unauthenticated, detail)
}

/// What the request holds from now on is on the account of `party`.
fn seated(parts: &Parts, party: Party) -> Result<(), Failure> {
    Account::of(&parts.extensions)?.open(party);
    // One that is called in process has no connection.
    match parts.extensions.get::<Arc<Seat>>() {
        Some(seat) => seat.take(party),
        None => Ok(()),
    }
}

async fn token_of(app: &App, hash: &[u8; 32]) -> Result<Option<Token>, Failure> {
    let look_up = match app.tokens.get(hash) {
        Ok(token) => return Ok(Some(token)),
        Err(look_up) => look_up,
    };
    let token = app.store.token_by_hash(hash).await?;
    if let Some(token) = &token {
        app.tokens.remember(token.hash, token.clone(), look_up);
    }
    Ok(token)
}

/// How often a token is looked at again while something goes on that it opened.
const RECHECK_EVERY: Duration = Duration::from_secs(1);

/// What opened something that goes on for long: a stream, a wait, a transfer. It is looked at again, on whichever server it
/// was revoked, at most once in [`RECHECK_EVERY`].
#[derive(Debug)]
pub struct Lasting {
    by: Opened,
    looked_at: Instant,
}

impl Lasting {
    /// The token was looked at when the request came, or a moment before.
    pub fn new(app: &App, token: &Token) -> Self {
        let looked_at = app.tokens.looked_up_at(&token.hash);
        // One that is not remembered may have been revoked since.
        let looked_at = looked_at.or_else(|| Instant::now().checked_sub(RECHECK_EVERY)).unwrap_or_else(Instant::now);
        Self { by: Opened::Token { org: token.org, id: token.id }, looked_at }
    }

    /// The same for who speaks for an agent.
    pub fn of(app: &App, speaker: &Speaker) -> Self {
        let looked_at = speaker.hash.and_then(|hash| app.tokens.looked_up_at(&hash));
        let looked_at = looked_at.or_else(|| Instant::now().checked_sub(RECHECK_EVERY)).unwrap_or_else(Instant::now);
        Self { by: speaker.opened, looked_at }
    }

    /// Refuses to go on once the token does not work any more.
    pub async fn check(&mut self, app: &App) -> Result<(), Failure> {
        if self.looked_at.elapsed() < RECHECK_EVERY {
            return Ok(());
        }
        let begun = Instant::now();
        self.looked_at = match self.by {
            Opened::Token { org, id } => {
                let token = app.store.token_get(org, id).await?;
                if !token.is_some_and(|token| token.is_live(app.now())) {
                    return Err(refused("the token was revoked or has expired"));
                }
                begun
            }
            // When it ends says what may begin; what has begun ends with the key of the host, or with that of the server.
            Opened::Session { agent, key, signed_by } => {
                let keys = app.keys.keys(&app.store).await?;
                speaker::key_that_counts(app, agent, key).await?;
                keys.verifying(signed_by, app.now()).ok_or(jose::Refused::Key)?;
                // They may have been read by another a moment ago.
                keys.read_at.min(begun)
            }
        };
        Ok(())
    }

    /// What `future` yields, unless the token does not work any more before.
    pub async fn guard<T>(&mut self, app: &App, future: impl Future<Output = T>) -> Result<T, Failure> {
        let mut future = std::pin::pin!(future);
        loop {
            self.check(app).await?;
            let left = RECHECK_EVERY.saturating_sub(self.looked_at.elapsed());
            match tokio::time::timeout(left, &mut future).await {
                Ok(yielded) => return Ok(yielded),
                Err(_) => continue,
            }
        }
    }
}

/// What somebody shows, by its form alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown<'a> {
    /// A secret of which the store knows the digest.
    Opaque(&'a str),
    /// A signed token ([`jose`]).
    Signed(&'a str),
}

fn shown(headers: &HeaderMap) -> Option<Shown<'_>> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    if token.starts_with(SECRET_PREFIX) {
        return Some(Shown::Opaque(token));
    }
    jose::is_signed(token).then_some(Shown::Signed(token))
}

/// What the store knows of a secret.
pub fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_of_the_form_are_looked_up() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            shown(&headers).map(|shown| format!("{shown:?}"))
        };
        assert_eq!(of("Bearer holm_abc").as_deref(), Some("Opaque(\"holm_abc\")"));
        assert_eq!(of("bearer  holm_abc ").as_deref(), Some("Opaque(\"holm_abc\")"));
        assert_eq!(of("Bearer holm_eyJ.b.c").as_deref(), Some("Opaque(\"holm_eyJ.b.c\")"));
        assert_eq!(of("Bearer eyJa.b.c").as_deref(), Some("Signed(\"eyJa.b.c\")"));
        for value in ["", "Bearer", "Bearer ", "Basic holm_abc", "holm_abc", "Bearer ghp_abc"] {
            assert_eq!(of(value), None, "{value:?}");
        }
    }
}
