//! Run tokens as an agent is given them, and what is refused in their place.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_api::agent::{HeldLease, Poll, Polled, Renew, Renewed};
use holm_domain::{ErrorCode, SignedTokenId};
use http::StatusCode;
use serde_json::{Value, json};
use tracing::Level;

use super::*;
use crate::{
    auth::jose,
    tasks::reap::reap,
    testing::{World, log::Log},
};

async fn view(world: &World, token: &str) -> RunTokenView {
    world.with_secret(token).get("/v1/run-token").await.json(StatusCode::OK)
}

async fn refused(world: &World, token: &str) -> Problem {
    world.with_secret(token).get("/v1/run-token").await.problem(ErrorCode::Unauthenticated)
}

async fn renewed(world: &World, held: HeldLease) -> Option<String> {
    let body = Renew { agent: world.agent_id, instance: world.instance, leases: vec![held.into()] };
    let renewed: Renewed = world.agent().post("/agent/v1/renew", &body).await.json(StatusCode::OK);
    renewed.leases[0].run_token.as_ref().map(|token| token.expose().to_owned())
}

/// A claimed run with its token.
async fn claimed(world: &World) -> (HeldLease, String) {
    let run = world.queue_run().await;
    let poll = Poll { claims_max: 1, ..world.poll() };
    let polled: Polled = world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
    let claimed = &polled.claimed[0];
    assert_eq!(claimed.run, run);
    let token = claimed.run_token.as_ref().unwrap().expose().to_owned();
    (HeldLease { run, fence: claimed.fence, cancel: None }, token)
}

#[tokio::test]
async fn a_token_stands_for_its_lease_and_is_renewed_with_it() {
    let world = World::new().await;
    let (held, first) = claimed(&world).await;
    let seen = view(&world, &first).await;
    assert_eq!((seen.run, seen.org, seen.fence, seen.agent), (held.run, world.org, 1, world.agent_id));
    assert_eq!(seen.expires_at, world.app().now().plus(Duration::from_secs(60)), "twice the lease");
    let mut token = first.clone();
    for _ in 0..12 {
        world.clock.advance(Duration::from_secs(10));
        view(&world, &token).await;
        token = renewed(&world, held).await.unwrap();
    }
    assert!(refused(&world, &first).await.detail.contains("has expired"));
    view(&world, &token).await;
}

#[tokio::test]
async fn an_older_fence_is_stale_and_an_ended_run_says_so() {
    let world = World::new().await;
    let (held, first) = claimed(&world).await;
    world.clock.advance(Duration::from_secs(30));
    let gone = world.with_secret(&first).get("/v1/run-token").await.problem(ErrorCode::StaleFence);
    assert_eq!(gone.value.as_deref(), Some("1"), "the lease is over before anybody has noticed");
    world.clock.advance(Duration::from_secs(6));
    reap(world.app()).await.unwrap();
    let polled: Polled = world.agent().post("/agent/v1/poll", &world.poll()).await.json(StatusCode::OK);
    let second = polled.claimed[0].run_token.as_ref().unwrap().expose().to_owned();
    world.with_secret(&first).get("/v1/run-token").await.problem(ErrorCode::StaleFence);
    assert_eq!(view(&world, &second).await.fence, 2);
    world.finish(HeldLease { fence: 2, ..held }, 1).await;
    let ended = world.with_secret(&second).get("/v1/run-token").await.problem(ErrorCode::Conflict);
    assert!(ended.detail.contains("has ended"), "{ended}");
    assert_eq!(renewed(&world, HeldLease { fence: 2, ..held }).await, None, "no lease, no token");
}

#[tokio::test]
async fn signed_and_opaque_tokens_open_only_what_is_theirs() {
    let world = World::new().await;
    let (_, token) = claimed(&world).await;
    for path in ["/v1/runs", "/v1/whoami", "/v1/tokens", "/metrics"] {
        let problem = world.with_secret(&token).get(path).await.problem(ErrorCode::Unauthenticated);
        assert!(problem.detail.contains("signed"), "{problem}");
    }
    let polled = world.with_secret(&token).post("/agent/v1/poll", &world.poll()).await;
    polled.problem(ErrorCode::Unauthenticated);
    for caller in [world.admin(), world.agent(), world.nobody()] {
        caller.get("/v1/run-token").await.problem(ErrorCode::Unauthenticated);
    }
}

/// The claims of a token, to be changed.
fn claims_of(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn changed_claims_are_refused_and_so_are_absurd_ones_that_are_signed() {
    let world = World::new().await;
    let (_, token) = claimed(&world).await;
    let claims = claims_of(&token);
    let parts: Vec<&str> = token.split('.').collect();
    let mut richer = claims.clone();
    richer["fence"] = 2.into();
    let forged = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(richer.to_string()), parts[2]);
    assert!(refused(&world, &forged).await.detail.contains("signature"));
    let keys = world.app().keys.keys(&world.app().store).await.unwrap();
    let (now, kind) = (jose::seconds(world.app().now()), jose::Kind::Run);
    for (member, value, why) in [
        ("iss", json!("holm:org_00000000000000000000000001"), "somebody else"),
        ("aud", json!("holm:host"), "somebody else"),
        ("exp", json!(now), "expired"),
        ("iat", json!(now + 6), "in the future"),
        ("exp", json!(now + 1_000_000), "longer than any"),
        ("sub", json!("run_x"), "form"),
        ("nbf", json!(0), "form"),
        ("fence", json!("1"), "form"),
    ] {
        let mut changed = claims.clone();
        changed[member] = value;
        let signed = keys.signer().sign(kind, &changed).unwrap();
        let problem = refused(&world, signed.expose()).await;
        assert!(problem.detail.contains(why), "{member}: {problem}");
    }
    let same = keys.signer().sign(kind, &claims).unwrap();
    view(&world, same.expose()).await;
    assert!(refused(&world, &format!("{token}{}", "A".repeat(4_000))).await.detail.contains("longer than"));
}

#[tokio::test]
async fn another_orgs_run_is_not_there() {
    let world = World::new().await;
    let (_, token) = claimed(&world).await;
    let keys = world.app().keys.keys(&world.app().store).await.unwrap();
    let mut claims = claims_of(&token);
    claims["org"] = json!(crate::ids::org());
    let signed = keys.signer().sign(jose::Kind::Run, &claims).unwrap();
    world.with_secret(signed.expose()).get("/v1/run-token").await.problem(ErrorCode::NotFound);
}

#[tokio::test]
async fn each_token_is_another_and_none_is_logged() {
    let log = Log::default();
    let world = World::new().await;
    let _kept = log.keep(Level::TRACE);
    let (held, first) = claimed(&world).await;
    let second = renewed(&world, held).await.unwrap();
    view(&world, &second).await;
    let id = |token: &str| serde_json::from_value::<SignedTokenId>(claims_of(token)["jti"].clone()).unwrap();
    assert_ne!(id(&first), id(&second));
    assert!(log.lines_with("claimed") > 0);
    for token in [&first, &second] {
        let signature = token.rsplit('.').next().unwrap();
        assert_eq!(log.lines_with(signature), 0);
    }
}

#[tokio::test]
async fn a_server_without_a_root_key_grants_without_tokens() {
    let world = World::with_config(|config| config.root_key = None).await;
    world.queue_run().await;
    let polled: Polled = world.agent().post("/agent/v1/poll", &world.poll()).await.json(StatusCode::OK);
    assert_eq!(polled.claimed[0].run_token, None);
    world.admin().get("/v1/keys").await.problem(ErrorCode::Unavailable);
}
