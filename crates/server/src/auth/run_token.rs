//! Run tokens: what stands for one run under one lease (SPEC K2, N1).
//!
//! What always holds: a run token is given to the agent that holds the lease and to nobody else, lives for at most twice the
//! time of a lease, and stands for something only while that very lease lives; it opens nothing but what takes run tokens.

use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};
use holm_api::signed_token::SignedToken;
use holm_domain::{AgentId, OrgId, RunId, SignedTokenId, UnixMicros};
use serde::{Deserialize, Serialize};

use super::{
    Shown,
    jose::{self, Kind, Standard},
    keyring::Keys,
    refused, seated, shown, verified,
};
use crate::{app::App, gate::Party, ids, problem::Failure};

/// The claims of a run token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunClaims {
    iss: String,
    aud: String,
    /// The run.
    pub sub: RunId,
    /// Its org.
    pub org: OrgId,
    /// The agent that holds the lease.
    pub agent: AgentId,
    /// The number of the lease.
    pub fence: u64,
    iat: i64,
    exp: i64,
    jti: SignedTokenId,
}

impl RunClaims {
    /// When the token expires.
    pub fn expires_at(&self) -> UnixMicros {
        jose::instant(self.exp)
    }

    fn standard(&self) -> Standard<'_> {
        Standard { iss: &self.iss, aud: &self.aud, iat: self.iat, exp: self.exp }
    }
}

/// For what a run token stands.
#[derive(Debug, Clone, Copy)]
pub struct Leased {
    /// The run.
    pub run: RunId,
    /// Its org.
    pub org: OrgId,
    /// The agent that holds the lease.
    pub agent: AgentId,
    /// The number of the lease.
    pub fence: u64,
}

/// Signs a token for a lease that was granted or renewed at `now`.
pub fn sign(app: &App, keys: &Keys, leased: Leased, now: UnixMicros) -> Result<SignedToken, Failure> {
    let Leased { run, org, agent, fence } = leased;
    let claims = RunClaims {
        iss: keys.issuer(),
        aud: Kind::Run.audience().to_owned(),
        sub: run,
        org,
        agent,
        fence,
        iat: jose::seconds(now),
        exp: jose::seconds(now.plus(app.config.lease.ttl * 2)),
        jti: ids::signed_token(),
    };
    keys.signer().sign(Kind::Run, &claims).map_err(Failure::internal)
}

/// A caller with a run token that is signed by a key that verifies, and has not expired. Whether its lease lives is another
/// question.
#[derive(Debug)]
pub struct RunBearer(pub RunClaims);

impl FromRequestParts<Arc<App>> for RunBearer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let token = match shown(&parts.headers) {
            Some(Shown::Signed(token)) => token,
            _ => return Err(refused("send the header `authorization: Bearer …` with a run token")),
        };
        let now = app.now();
        let (claims, keys) = verified::<RunClaims>(app, token, Kind::Run).await?;
        claims.standard().check(Kind::Run, &keys.issuer(), now, app.config.lease.margin)?;
        seated(parts, Party { org: claims.org, is_agent: false })?;
        Ok(Self(claims))
    }
}
