//! Who speaks the agent protocol: the holder of a token with the role `agent`, or of a session that a host was given for its
//! key (SPEC K2).
//!
//! What always holds: a session is verified by the public keys alone, and opens nothing but what agents ask; whether the key
//! for which it was given still counts, the record of the host says, which every operation reads; what a host signs to be
//! given one is for this deployment, was signed a moment ago, and by the key that is stored; who shows what does not work any
//! more uses up nothing of its org.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{extract::FromRequestParts, http::request::Parts};
use holm_api::{
    agent::AGENT_FIELD,
    identity::{HostClaims, Session},
    signed_token::SignedToken,
};
use holm_domain::{
    AgentId, ErrorCode, KeyId, OrgId, SignedTokenId, TokenId,
    access::Token,
    enrol::{Enrolled, HostKey, HostPublicKey, Join, SESSION_LIFE},
    host::{NotHeard, Voice, speaks},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    May, Serve, Shown, hash,
    jose::{self, Kind, Refused, Standard},
    refused, seated, shown, verified,
};
use crate::{app::App, gate::Party, ids, limited, problem::Failure};

/// How soon after one session an agent is given another, and after one answer a join token that was used. The next session is
/// due after minutes, and a lost answer is asked for once.
pub(crate) const ANSWERED_EVERY: Duration = Duration::from_millis(250);
/// Of how many agents, and of how many join tokens, it is remembered when they were answered; beyond it, more are.
const PACED_MAX: usize = 4_096;

/// When this server has last answered those who are answered so often and no oftener.
#[derive(Debug)]
pub struct Pace<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Pace<K> {
    /// Notes that `who` is answered; or how long that one has to wait for it.
    fn take(&self, who: K) -> Result<(), Duration> {
        let mut answered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = answered.get(&who).map_or(Duration::ZERO, |at| ANSWERED_EVERY.saturating_sub(at.elapsed()));
        if !wait.is_zero() {
            return Err(wait);
        }
        if answered.len() >= PACED_MAX {
            answered.retain(|_, at| at.elapsed() < ANSWERED_EVERY);
        }
        if answered.len() < PACED_MAX {
            answered.insert(who, Instant::now());
        }
        Ok(())
    }
}

/// Who speaks for an agent.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// The org of the caller: the only one that this request can touch.
    pub org: OrgId,
    /// With what it speaks.
    pub voice: Voice,
    /// What opened the request.
    pub(super) opened: Opened,
    /// The digest of the secret, where a token did.
    pub(super) hash: Option<[u8; 32]>,
}

/// What opens a request, as far as it may stop doing so.
#[derive(Debug, Clone, Copy)]
pub(super) enum Opened {
    /// A token.
    Token { org: OrgId, id: TokenId },
    /// A session of a host.
    Session { agent: AgentId, key: HostPublicKey, signed_by: KeyId },
}

impl Speaker {
    /// The holder of a token.
    pub fn of(token: &Token) -> Self {
        let opened = Opened::Token { org: token.org, id: token.id };
        Self { org: token.org, voice: Voice::Token(token.id), opened, hash: Some(token.hash) }
    }
}

/// The claims of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionClaims {
    iss: String,
    aud: String,
    /// The agent.
    sub: AgentId,
    /// Its org.
    org: OrgId,
    /// The key for which it was given.
    key: HostPublicKey,
    iat: i64,
    exp: i64,
    jti: SignedTokenId,
}

impl FromRequestParts<Arc<App>> for Speaker {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let Some(Shown::Signed(token)) = shown(&parts.headers) else {
            let caller = May::<Serve>::from_request_parts(parts, app).await?;
            return Ok(Self::of(&caller.token));
        };
        let now = app.now();
        let (claims, keys) = verified::<SessionClaims>(app, token, Kind::Session).await?;
        let SessionClaims { iss, aud, sub, org, key, iat, exp, .. } = claims;
        let standard = Standard { iss: &iss, aud: &aud, iat, exp };
        standard.check(Kind::Session, &keys.issuer(), now, app.config.lease.margin)?;
        let signed_by = jose::key_named(token, Kind::Session)?;
        counts(app, org, sub, key).await?;
        seated(parts, Party { org, is_agent: true })?;
        limited::charge(app, parts, org).await?;
        let opened = Opened::Session { agent: sub, key, signed_by };
        Ok(Self { org, voice: Voice::Key(sub, key), opened, hash: None })
    }
}

/// Refuses who speaks with a key of an agent that does not count any more. It may have been revoked a moment ago: what is asked
/// for looks at the record of the host.
async fn counts(app: &App, org: OrgId, agent: AgentId, key: HostPublicKey) -> Result<(), Failure> {
    let heard = |(of, known): (OrgId, HostKey)| {
        let known = (of == org).then_some(&known);
        speaks(agent, known, Voice::Key(agent, key))
    };
    let look_up = match app.host_keys.get(&agent) {
        Ok(known) if heard(known).is_ok() => return Ok(()),
        // It may have enrolled anew since.
        Ok(_) => None,
        Err(look_up) => Some(look_up),
    };
    let found = key_that_counts(app, agent, key).await?;
    if found.0 != org {
        return Err(NotHeard::OtherKey(agent).into());
    }
    if let Some(look_up) = look_up {
        app.host_keys.remember(agent, found, look_up);
    }
    Ok(())
}

/// The key `key` of `agent` and its org, if it counts. One after which another was enrolled had been revoked before, and whoever
/// speaks with it is told so.
pub(crate) async fn key_that_counts(
    app: &App,
    agent: AgentId,
    key: HostPublicKey,
) -> Result<(OrgId, HostKey), Failure> {
    let found = app.store.host_key_get(key).await?.filter(|known| known.agent == agent);
    let found = found.ok_or(NotHeard::OtherKey(agent))?;
    speaks(agent, Some(&found.key), Voice::Key(agent, key))?;
    Ok((found.org, found.key))
}

/// A host that has proved, by what it signed, that it holds the key of an agent.
#[derive(Debug)]
pub struct HostBearer {
    org: OrgId,
    agent: AgentId,
    key: HostPublicKey,
}

impl FromRequestParts<Arc<App>> for HostBearer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let Some(Shown::Signed(token)) = shown(&parts.headers) else {
            return Err(refused("send the header `authorization: Bearer …` with what the host has signed"));
        };
        let public: HostPublicKey = jose::key_named(token, Kind::Host)?;
        let found = app.store.host_key_get(public).await?;
        let Enrolled { agent, org, key } = found.ok_or_else(|| {
            refused(
                "the key of this host is not enrolled here; bring the one of before back to `agent/key` in its state folder, \
                 or remove `agent/enrolled` there and start the agent with a join token (`holm hosts join NAME`)",
            )
        })?;
        let claims: HostClaims =
            jose::verify(token, Kind::Host, |id: HostPublicKey| (id == public).then_some(public.0))?;
        let HostClaims { iss, aud, deployment, iat, exp } = claims;
        let issuer = app.keys.keys(&app.store).await?.issuer();
        // The host signs by the time of day, which the clock of the server does not follow at once.
        let now = app.config.clock.time_of_day();
        Standard { iss: &deployment, aud: &aud, iat, exp }.check_of_host(&issuer, now)?;
        if iss != agent {
            return Err(Refused::Audience.into());
        }
        speaks(agent, Some(&key), Voice::Key(agent, key.public))?;
        app.session_pace.take(agent).map_err(|wait| {
            let detail = "this host was given a session just now; it is to use that one";
            Failure::new(ErrorCode::TooMany, detail).at(AGENT_FIELD, agent).after(wait)
        })?;
        seated(parts, Party { org, is_agent: true })?;
        Ok(Self { org, agent, key: key.public })
    }
}

/// Gives a host a session.
pub async fn session_open(app: &App, host: HostBearer) -> Result<Session, Failure> {
    let (HostBearer { org, agent, key }, keys, now) = (host, app.keys.keys(&app.store).await?, app.now());
    let claims = SessionClaims {
        iss: keys.issuer(),
        aud: Kind::Session.audience().to_owned(),
        sub: agent,
        org,
        key,
        iat: jose::seconds(now),
        exp: jose::seconds(now.plus(SESSION_LIFE)),
        jti: ids::signed_token(),
    };
    let token: SignedToken = keys.signer().sign(Kind::Session, &claims).map_err(Failure::internal)?;
    Ok(Session { token, life_ms: u64::try_from(SESSION_LIFE.as_millis()).unwrap_or(u64::MAX) })
}

/// A caller with the secret of a join token, which may not work any more.
#[derive(Debug)]
pub struct JoinBearer(pub Join);

impl FromRequestParts<Arc<App>> for JoinBearer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let secret = match shown(&parts.headers) {
            Some(Shown::Opaque(secret)) if secret.starts_with(ids::JOIN_PREFIX) => secret,
            _ => return Err(refused("this takes a join token `holm_join_…` (`holm hosts join NAME` makes one)")),
        };
        let join = app.store.join_by_hash(&hash(secret)).await?;
        let join = join.ok_or_else(|| {
            refused("the join token is unknown, or expired long ago; make another: `holm hosts join NAME`")
        })?;
        // One that was used changes nothing any more: who shows it is told so, or what it was told before. That uses up nothing
        // of its org, and little of this server.
        if join.used.is_some() {
            app.join_pace.take(join.id).map_err(|wait| {
                let detail = format!("{} was used, and was answered just now; ask more slowly", join.id);
                Failure::new(ErrorCode::TooMany, detail).after(wait)
            })?;
            return Ok(Self(join));
        }
        join.works(app.now())?;
        seated(parts, Party { org: join.org, is_agent: true })?;
        limited::charge(app, parts, join.org).await?;
        Ok(Self(join))
    }
}

/// What somebody is told whose key was revoked.
pub fn revoked(agent: AgentId) -> Failure {
    let detail = format!(
        "{}; to take the host in again, remove `agent/key` and `agent/enrolled` in its state folder and give its agent a new \
         join token (`holm hosts join NAME`)",
        NotHeard::Revoked(agent)
    );
    Failure::new(ErrorCode::HostRevoked, detail).at(AGENT_FIELD, agent)
}
