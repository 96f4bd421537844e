//! A host with a key of its own, as its agent would speak for it.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_api::{
    agent::Register,
    hosts::NewJoin,
    identity::{Enrol, Enrolled, HostClaims, SESSION_AUDIENCE, Session, assertion, assertion_text, enrol_text},
};
use holm_domain::{AgentId, enrol::HostPublicKey};
use http::StatusCode;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;
use uuid::Uuid;

use super::{Caller, World};
use crate::auth::{hash, jose};

/// The key of a host.
pub struct OwnKey {
    pub agent: AgentId,
    pair: Ed25519KeyPair,
}

impl OwnKey {
    /// That of the agent of this number; `seed` makes it another.
    pub fn new(agent: u128, seed: u8) -> Self {
        let agent = AgentId::from_uuid(Uuid::from_u128(agent));
        Self { agent, pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap() }
    }

    pub fn public(&self) -> HostPublicKey {
        HostPublicKey(self.pair.public_key().as_ref().try_into().unwrap())
    }

    /// What it sends to enrol with the join token `secret`.
    pub fn enrolment(&self, secret: &str) -> Enrol {
        let text = enrol_text(self.agent, self.public(), &hash(secret));
        let proof = URL_SAFE_NO_PAD.encode(self.pair.sign(text.as_bytes()));
        Enrol { agent: self.agent, key: self.public(), proof }
    }

    /// What it claims to be given a session, now.
    pub fn claims(&self, world: &World, issuer: &str) -> HostClaims {
        let now = jose::seconds(world.clock.time_of_day());
        HostClaims {
            iss: self.agent,
            aud: SESSION_AUDIENCE.to_owned(),
            deployment: issuer.to_owned(),
            iat: now,
            exp: now + 60,
        }
    }

    pub fn signed(&self, claims: &HostClaims) -> String {
        let text = assertion_text(self.public(), claims).unwrap();
        assertion(&text, self.pair.sign(text.as_bytes()).as_ref())
    }

    /// Makes a join token and enrols with it; returns the issuer.
    pub async fn enrol(&self, world: &World) -> String {
        let secret = world.join_secret().await;
        let answer = world.with_secret(&secret).post("/agent/v1/enrol", &self.enrolment(&secret)).await;
        answer.json::<Enrolled>(StatusCode::OK).issuer
    }

    /// A session for `issuer`.
    pub async fn session(&self, world: &World, issuer: &str) -> Session {
        let signed = self.signed(&self.claims(world, issuer));
        loop {
            let answer = world.with_secret(&signed).post("/agent/v1/session", &()).await;
            if answer.status != StatusCode::TOO_MANY_REQUESTS {
                return answer.json(StatusCode::OK);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Enrols, begins a session and registers; returns what speaks for it then, and the issuer.
    pub async fn begin(&self, world: &World) -> (Caller, String) {
        let issuer = self.enrol(world).await;
        let caller = world.with_secret(self.session(world, &issuer).await.token.expose());
        assert_eq!(caller.post("/agent/v1/register", &self.registration(world)).await.status, StatusCode::OK);
        (caller, issuer)
    }

    pub fn registration(&self, world: &World) -> Register {
        Register { agent: self.agent, name: "own-key".into(), ..world.registration() }
    }
}

impl World {
    /// The secret of a new join token.
    pub async fn join_secret(&self) -> String {
        let made = self.admin().post("/v1/hosts/joins", &json!({"name": "host-7"})).await;
        made.json::<NewJoin>(StatusCode::CREATED).secret
    }
}
