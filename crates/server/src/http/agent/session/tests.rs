//! Sessions: who is given one, what it opens, and when it ends.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use holm_api::{
    TAR,
    agent::{HeldLease, Poll, Polled, Registered},
    hosts::{HostKeyView, NewJoin},
    identity::{Enrolled, HostClaims},
    keys::{KeyList, KeyView},
};
use holm_domain::{ErrorCode, enrol::SESSION_LIFE, keys::KEYS_TRUSTED_FOR, lease::Claimant};
use http::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::{
    Server,
    testing::{Caller, World, own_key::OwnKey},
};

async fn ask(world: &World, signed: &str) -> crate::testing::Answer {
    world.with_secret(signed).post("/agent/v1/session", &()).await
}

async fn poll(world: &World, caller: &Caller, host: &OwnKey) -> crate::testing::Answer {
    caller.post("/agent/v1/poll", &Poll { agent: host.agent, ..world.poll() }).await
}

#[tokio::test]
async fn a_session_speaks_for_its_agent_and_a_new_one_comes_for_its_key() {
    let world = World::new().await;
    let host = OwnKey::new(40, 1);
    let (caller, issuer) = host.begin(&world).await;
    let run = world.queue_run().await;
    let polled: Polled = poll(&world, &caller, &host).await.json(StatusCode::OK);
    assert_eq!((polled.claimed[0].run, polled.claimed[0].org), (run, world.org));
    let session = host.session(&world, &issuer).await;
    assert_eq!(session.life_ms, 900_000);
    world.clock.advance(SESSION_LIFE - Duration::from_secs(1));
    poll(&world, &caller, &host).await.json::<Polled>(StatusCode::OK);
    world.clock.advance(Duration::from_secs(1));
    assert!(poll(&world, &caller, &host).await.problem(ErrorCode::Unauthenticated).detail.contains("has expired"));
    let fresh = world.with_secret(host.session(&world, &issuer).await.token.expose());
    poll(&world, &fresh, &host).await.json::<Polled>(StatusCode::OK);
}

#[tokio::test]
async fn a_session_speaks_for_no_other_agent_and_opens_nothing_else() {
    let world = World::new().await;
    let (host, other) = (OwnKey::new(40, 1), OwnKey::new(41, 2));
    let (caller, _) = host.begin(&world).await;
    other.begin(&world).await;
    for agent in [other.agent, world.agent_id] {
        let body = Poll { agent, ..world.poll() };
        caller.post("/agent/v1/poll", &body).await.problem(ErrorCode::Forbidden);
        let body = holm_api::agent::Register { agent, ..world.registration() };
        caller.post("/agent/v1/register", &body).await.problem(ErrorCode::Forbidden);
    }
    poll(&world, &world.agent(), &host).await.problem(ErrorCode::Forbidden);
    let by_token = world.agent().post("/agent/v1/register", &host.registration(&world)).await;
    let refused = by_token.problem(ErrorCode::Forbidden);
    assert!(refused.detail.contains("key with which it has enrolled"), "{refused}");
    for path in ["/v1/runs", "/v1/whoami", "/v1/run-token"] {
        caller.get(path).await.problem(ErrorCode::Unauthenticated);
    }
    let run_token = world.claim_token().await;
    poll(&world, &world.with_secret(&run_token), &host).await.problem(ErrorCode::Unauthenticated);
    ask(&world, &run_token).await.problem(ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn what_was_not_signed_by_the_stored_key_a_moment_ago_for_this_deployment_is_refused() {
    let world = World::new().await;
    let host = OwnKey::new(40, 1);
    let issuer = host.enrol(&world).await;
    let good = host.claims(&world, &issuer);
    let signed_for = |claims: HostClaims| host.signed(&claims);
    let stranger = OwnKey::new(40, 2);
    let elsewhere = format!("holm:{}", crate::ids::org());
    for (signed, why) in [
        (stranger.signed(&good), "is not enrolled here"),
        (host.signed(&OwnKey::new(41, 1).claims(&world, &issuer)), "somebody else"),
        (signed_for(HostClaims { deployment: elsewhere, ..good.clone() }), "somebody else"),
        (signed_for(HostClaims { aud: "holm:agent".into(), ..good.clone() }), "somebody else"),
        (signed_for(HostClaims { iat: good.iat - 31, exp: good.iat + 29, ..good.clone() }), "clocks are 31 s apart"),
        (signed_for(HostClaims { iat: good.iat + 31, exp: good.iat + 91, ..good.clone() }), "clocks are 31 s apart"),
        (signed_for(HostClaims { iat: good.iat - 9, exp: good.iat, ..good.clone() }), "has expired"),
        (signed_for(HostClaims { exp: good.iat + 61, ..good.clone() }), "is for 61 s"),
        (signed_for(HostClaims { exp: good.iat - 1, ..good.clone() }), "is for -1 s"),
        (signed_for(good.clone()) + "A", "signature"),
    ] {
        let problem = ask(&world, &signed).await.problem(ErrorCode::Unauthenticated);
        assert!(problem.detail.contains(why), "{why}: {problem}");
    }
    for caller in [world.nobody(), world.agent()] {
        caller.post("/agent/v1/session", &()).await.problem(ErrorCode::Unauthenticated);
    }
    let signed = host.signed(&good);
    poll(&world, &world.with_secret(&signed), &host).await.problem(ErrorCode::Unauthenticated);
    ask(&world, &signed).await.json::<Session>(StatusCode::OK);
}

#[tokio::test]
async fn what_was_signed_for_one_deployment_is_refused_by_another() {
    let (one, other) = (World::new().await, World::new().await);
    let host = OwnKey::new(40, 1);
    let issuers = [host.enrol(&one).await, host.enrol(&other).await];
    let signed = host.signed(&host.claims(&one, &issuers[0]));
    ask(&one, &signed).await.json::<Session>(StatusCode::OK);
    assert!(ask(&other, &signed).await.problem(ErrorCode::Unauthenticated).detail.contains("somebody else"));
    let session = host.session(&one, &issuers[0]).await;
    let answer = other.with_secret(session.token.expose()).post("/agent/v1/register", &host.registration(&other)).await;
    answer.problem(ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_in_every_operation_and_on_every_server() {
    let world = World::new().await;
    let there = Server::new(world.app().config.clone(), world.app().store.clone()).unwrap();
    let host = OwnKey::new(40, 1);
    let (caller, issuer) = host.begin(&world).await;
    let session = host.session(&world, &issuer).await;
    let far = world.with_secret_at(&there, session.token.expose());
    world.queue_keeping_run().await;
    let polled: Polled = poll(&world, &far, &host).await.json(StatusCode::OK);
    let held = HeldLease { run: polled.claimed[0].run, fence: polled.claimed[0].fence, cancel: None };
    let path = format!("/v1/hosts/{}/revoke", host.agent);
    for caller in [world.member(), world.agent()] {
        caller.post(&path, &()).await.problem(ErrorCode::Forbidden);
    }
    let waiting = Poll { agent: host.agent, wait_ms: 60_000, ..world.poll() };
    let begun = Instant::now();
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.admin().post(&path, &()).await.json::<HostKeyView>(StatusCode::OK)
    };
    let (waited, revoked) = tokio::join!(caller.post("/agent/v1/poll", &waiting), revoke);
    let problem = waited.problem(ErrorCode::HostRevoked);
    assert!(begun.elapsed() < Duration::from_secs(10) && problem.detail.contains("agent/key"), "{problem}");
    assert_eq!((revoked.key, revoked.revoked_at), (host.public(), Some(world.app().now())));
    assert_eq!(world.admin().post(&path, &()).await.json::<HostKeyView>(StatusCode::OK), revoked, "again");
    let by = Claimant { agent: host.agent, instance: world.instance };
    // The one that is far has looked the key up a moment ago, when it was good.
    for caller in [&far, &caller] {
        world.every_operation(caller, by, held, ErrorCode::HostRevoked).await;
        caller.post("/agent/v1/register", &host.registration(&world)).await.problem(ErrorCode::HostRevoked);
    }
    ask(&world, &host.signed(&host.claims(&world, &issuer))).await.problem(ErrorCode::HostRevoked);

    let secret = world.join_secret().await;
    let enrol = async |key: &OwnKey| world.with_secret(&secret).post("/agent/v1/enrol", &key.enrolment(&secret)).await;
    enrol(&host).await.problem(ErrorCode::HostRevoked);
    let anew = OwnKey::new(40, 2);
    let issuer = enrol(&anew).await.json::<Enrolled>(StatusCode::OK).issuer;
    let fresh = world.with_secret(anew.session(&world, &issuer).await.token.expose());
    fresh.post("/agent/v1/register", &anew.registration(&world)).await.json::<Registered>(StatusCode::OK);
    // What still speaks with the key of before is told for good, and not only that it is another one.
    for caller in [&far, &caller] {
        poll(&world, caller, &host).await.problem(ErrorCode::HostRevoked);
        caller.post("/agent/v1/register", &host.registration(&world)).await.problem(ErrorCode::HostRevoked);
    }
    ask(&world, &host.signed(&host.claims(&world, &issuer))).await.problem(ErrorCode::HostRevoked);
    // Nor does a revocation that is repeated mean the new one, where it names the key.
    let named = format!("{path}?key={}", host.public());
    assert_eq!(world.admin().post(&named, &()).await.json::<HostKeyView>(StatusCode::OK), revoked);
    let stranger = world.admin().post(&format!("{path}?key={}", OwnKey::new(41, 9).public()), &()).await;
    let problem = stranger.problem(ErrorCode::Conflict);
    assert!(problem.detail.contains(&anew.public().to_string()), "{problem}");
    world.admin().post(&format!("{path}?key=x"), &()).await.problem(ErrorCode::InvalidField);
    let polled = poll(&world, &fresh, &anew).await;
    assert_eq!(polled.status, StatusCode::OK, "the new one is heard");
}

/// An upload by `host` of two pieces, which does `between` after the first, and is looked at again before the second comes.
async fn upload(
    world: &World,
    host: &OwnKey,
    caller: &Caller,
    between: impl Future<Output = ()> + Send + 'static,
) -> crate::testing::Answer {
    world.queue_keeping_run().await;
    let polled: Polled = poll(world, caller, host).await.json(StatusCode::OK);
    let held = HeldLease { run: polled.claimed[0].run, fence: polled.claimed[0].fence, cancel: None };
    let path = world.fenced(held, "changes").replace(&world.agent_id.to_string(), &host.agent.to_string());
    let piece = |bytes: &'static [u8]| Ok::<_, std::io::Error>(Bytes::from_static(bytes));
    let last = async move {
        between.await;
        tokio::time::sleep(KEYS_TRUSTED_FOR * 2).await;
        piece(b"def")
    };
    let body = Body::from_stream(stream::iter([piece(b"abc")]).chain(stream::once(last)));
    caller.send_body("PUT", &path, TAR, body).await
}

#[tokio::test]
async fn an_upload_outlasts_its_session_and_ends_with_either_key() {
    let world = World::new().await;
    let host = OwnKey::new(40, 1);
    let (caller, issuer) = host.begin(&world).await;
    let clock = world.clock.clone();
    let stored = upload(&world, &host, &caller, async move { clock.advance(SESSION_LIFE * 2) }).await;
    assert_eq!(stored.status, StatusCode::NO_CONTENT);
    let begun = poll(&world, &caller, &host).await.problem(ErrorCode::Unauthenticated);
    assert!(begun.detail.contains("has expired"), "nothing new begins with it: {begun}");

    let next = async || world.with_secret(host.session(&world, &issuer).await.token.expose());
    let old = world.admin().get("/v1/keys").await.json::<KeyList>(StatusCode::OK).keys[0].id;
    let (admin, caller) = (world.admin(), next().await);
    let withdraw = async move {
        admin.post(&format!("/v1/keys/{old}/withdraw"), &()).await.json::<KeyView>(StatusCode::OK);
    };
    upload(&world, &host, &caller, withdraw).await.problem(ErrorCode::Unauthenticated);
    let (admin, caller) = (world.admin(), next().await);
    let path = format!("/v1/hosts/{}/revoke", host.agent);
    let revoke = async move {
        admin.post(&path, &()).await.json::<HostKeyView>(StatusCode::OK);
    };
    upload(&world, &host, &caller, revoke).await.problem(ErrorCode::HostRevoked);
}

#[tokio::test]
async fn a_host_is_given_its_next_session_no_sooner_than_it_can_need_one() {
    let world = World::new().await;
    let (host, other) = (OwnKey::new(40, 1), OwnKey::new(41, 2));
    let (issuer, _) = (host.enrol(&world).await, other.enrol(&world).await);
    let signed = host.signed(&host.claims(&world, &issuer));
    let begun = Instant::now();
    ask(&world, &signed).await.json::<Session>(StatusCode::OK);
    let again = ask(&world, &signed).await.problem(ErrorCode::TooMany);
    assert_eq!((again.field.as_deref(), again.retry_after_s), (Some("agent"), Some(1)), "{again}");
    ask(&world, &other.signed(&other.claims(&world, &issuer))).await.json::<Session>(StatusCode::OK);
    host.session(&world, &issuer).await;
    assert!(begun.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_host_that_speaks_with_a_token_has_no_key_to_revoke() {
    let world = World::new().await;
    let path = format!("/v1/hosts/{}/revoke", world.agent_id);
    let problem = world.admin().post(&path, &()).await.problem(ErrorCode::Conflict);
    assert!(problem.detail.contains("holm token revoke tok_"), "{problem}");
    let unknown = format!("/v1/hosts/{}/revoke", OwnKey::new(99, 1).agent);
    world.admin().post(&unknown, &()).await.problem(ErrorCode::NotFound);
}

#[tokio::test]
async fn sessions_outlive_a_rotation_and_die_with_a_withdrawal_within_a_second() {
    let world = World::new().await;
    let there = Server::new(world.app().config.clone(), world.app().store.clone()).unwrap();
    let host = OwnKey::new(40, 1);
    let (caller, issuer) = host.begin(&world).await;
    let session = host.session(&world, &issuer).await;
    let far = world.with_secret_at(&there, session.token.expose());
    poll(&world, &far, &host).await.json::<Polled>(StatusCode::OK);
    let old = world.admin().get("/v1/keys").await.json::<KeyList>(StatusCode::OK).keys[0].id;
    world.admin().post("/v1/keys/rotate", &()).await.json::<KeyView>(StatusCode::OK);
    for caller in [&caller, &far] {
        poll(&world, caller, &host).await.json::<Polled>(StatusCode::OK);
    }
    let fresh = world.with_secret(host.session(&world, &issuer).await.token.expose());
    let waiting = Poll { agent: host.agent, wait_ms: 60_000, ..world.poll() };
    let begun = Instant::now();
    let withdraw = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.admin().post(&format!("/v1/keys/{old}/withdraw"), &()).await.json::<KeyView>(StatusCode::OK)
    };
    let (waited, _) = tokio::join!(far.post("/agent/v1/poll", &waiting), withdraw);
    waited.problem(ErrorCode::Unauthenticated);
    assert!(begun.elapsed() < Duration::from_secs(10), "a poll that waits hears of it too");
    poll(&world, &caller, &host).await.problem(ErrorCode::Unauthenticated);
    tokio::time::sleep(KEYS_TRUSTED_FOR).await;
    poll(&world, &far, &host).await.problem(ErrorCode::Unauthenticated);
    poll(&world, &fresh, &host).await.json::<Polled>(StatusCode::OK);
}

#[tokio::test]
async fn what_waits_hears_of_a_withdrawal_within_a_second_of_the_look_at_the_keys() {
    let world = World::new().await;
    let there = Server::new(world.app().config.clone(), world.app().store.clone()).unwrap();
    let host = OwnKey::new(40, 1);
    let (_, issuer) = host.begin(&world).await;
    let session = host.session(&world, &issuer).await;
    let far = world.with_secret_at(&there, session.token.expose());
    // The other server knows the keys from here on, and each poll looks at the token by what it knows.
    poll(&world, &far, &host).await.json::<Polled>(StatusCode::OK);
    let read_at = Instant::now();
    let old = world.admin().get("/v1/keys").await.json::<KeyList>(StatusCode::OK).keys[0].id;
    world.admin().post("/v1/keys/rotate", &()).await.json::<KeyView>(StatusCode::OK);
    world.admin().post(&format!("/v1/keys/{old}/withdraw"), &()).await.json::<KeyView>(StatusCode::OK);
    tokio::time::sleep_until(read_at + KEYS_TRUSTED_FOR * 4 / 5).await;
    let waiting = Poll { agent: host.agent, wait_ms: 60_000, ..world.poll() };
    let ring = async {
        // Once the keys are old: whoever is woken now has to look at them anew.
        tokio::time::sleep_until(read_at + KEYS_TRUSTED_FOR * 6 / 5).await;
        world.queue_run().await;
        there.app.wakers.ring_queue(world.org);
    };
    let (waited, ()) = tokio::join!(far.post("/agent/v1/poll", &waiting), ring);
    waited.problem(ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_server_without_a_root_key_gives_no_session_and_says_so() {
    let world = World::with_config(|config| config.root_key = None).await;
    let made = world.admin().post("/v1/hosts/joins", &json!({"name": "x"})).await;
    let NewJoin { secret, .. } = made.json(StatusCode::CREATED);
    let host = OwnKey::new(40, 1);
    let answer = world.with_secret(&secret).post("/agent/v1/enrol", &host.enrolment(&secret)).await;
    answer.problem(ErrorCode::Unavailable);
}
