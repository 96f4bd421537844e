//! Join tokens: what they enrol, and what they do not.

use std::time::Duration;

use holm_api::hosts::{HostIdentity, HostList, JoinList, JoinView, NewJoin};
use holm_domain::{
    ErrorCode,
    enrol::{JOIN_LIFE_DEFAULT, Join},
};
use holm_store::JOIN_TOKENS_MAX;
use http::StatusCode;
use serde_json::json;
use tracing::Level;

use super::*;
use crate::testing::{Answer, World, log::Log, own_key::OwnKey};

/// The answer to an enrolment; one with a token that was used waits for its turn.
async fn send(world: &World, secret: &str, body: &Enrol) -> Answer {
    loop {
        let answer = world.with_secret(secret).post("/agent/v1/enrol", body).await;
        if answer.status != StatusCode::TOO_MANY_REQUESTS {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn made(world: &World, body: serde_json::Value) -> NewJoin {
    world.admin().post("/v1/hosts/joins", &body).await.json(StatusCode::CREATED)
}

async fn listed(world: &World) -> Vec<JoinView> {
    world.admin().get("/v1/hosts/joins").await.json::<JoinList>(StatusCode::OK).joins
}

#[tokio::test]
async fn a_join_token_enrols_one_host_once_and_a_lost_answer_is_told_again() {
    let world = World::new().await;
    let NewJoin { join, secret } = made(&world, json!({"name": "host-7"})).await;
    assert!(secret.starts_with("holm_join_") && secret.len() == 53);
    assert_eq!(join.expires_at, world.app().now().plus(JOIN_LIFE_DEFAULT));
    let host = OwnKey::new(40, 1);
    let first: Enrolled = send(&world, &secret, &host.enrolment(&secret)).await.json(StatusCode::OK);
    assert_eq!(first.issuer, format!("holm:{}", world.org));
    world.clock.advance(JOIN_LIFE_DEFAULT * 2);
    let again: Enrolled = send(&world, &secret, &host.enrolment(&secret)).await.json(StatusCode::OK);
    assert_eq!(again, first, "although the token has expired since");
    for other in [OwnKey::new(40, 2), OwnKey::new(41, 1)] {
        let problem = send(&world, &secret, &other.enrolment(&secret)).await.problem(ErrorCode::JoinTokenUsed);
        assert!(problem.detail.contains(&host.agent.to_string()) && problem.detail.contains("hosts join"), "{problem}");
    }
    let [shown] = &listed(&world).await[..] else { panic!("one") };
    assert_eq!((shown.id, shown.agent), (join.id, Some(host.agent)));
}

#[tokio::test]
async fn one_that_was_used_is_answered_no_oftener_than_a_host_can_need() {
    let world = World::new().await;
    let (secret, host) = (world.join_secret().await, OwnKey::new(40, 1));
    send(&world, &secret, &host.enrolment(&secret)).await.json::<Enrolled>(StatusCode::OK);
    let ask = async || world.with_secret(&secret).post("/agent/v1/enrol", &host.enrolment(&secret)).await;
    let begun = tokio::time::Instant::now();
    ask().await.json::<Enrolled>(StatusCode::OK);
    let again = ask().await.problem(ErrorCode::TooMany);
    assert_eq!(again.retry_after_s, Some(1), "{again}");
    let (other, theirs) = (world.join_secret().await, OwnKey::new(41, 2));
    for _ in 0..2 {
        let answer = world.with_secret(&other).post("/agent/v1/enrol", &theirs.enrolment(&other)).await;
        answer.json::<Enrolled>(StatusCode::OK);
    }
    send(&world, &secret, &host.enrolment(&secret)).await.json::<Enrolled>(StatusCode::OK);
    assert!(begun.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn as_many_join_tokens_as_there_may_be_are_refused_with_the_ways_out() {
    let world = World::new().await;
    let first = made(&world, json!({"name": "first", "expires_in_s": 600})).await.join;
    let template = world.app().store.join_get(world.org, first.id).await.unwrap().unwrap();
    for number in 1..JOIN_TOKENS_MAX {
        let mut join = Join { id: crate::ids::token(), ..template.clone() };
        join.expires_at = join.expires_at.plus(Duration::from_secs(60));
        join.hash[..4].copy_from_slice(&number.to_le_bytes());
        world.app().store.join_create(&join, template.created_at, &[]).await.unwrap();
    }
    let another = async || world.admin().post("/v1/hosts/joins", &json!({"name": "x"})).await;
    let problem = another().await.problem(ErrorCode::TooMany);
    for part in ["4000 join tokens", "holm hosts joins", "holm hosts revoke TOKEN", "expires in 601 s"] {
        assert!(problem.detail.contains(part), "{part}: {problem}");
    }
    assert!(problem.detail.contains(&first.id.to_string()), "{problem}");
    assert_eq!(world.admin().delete(&format!("/v1/hosts/joins/{}", first.id)).await.status, StatusCode::NO_CONTENT);
    another().await.json::<NewJoin>(StatusCode::CREATED);
    another().await.problem(ErrorCode::TooMany);
}

#[tokio::test]
async fn one_that_has_expired_or_was_revoked_enrols_nobody_and_says_why() {
    let world = World::new().await;
    let host = OwnKey::new(40, 1);
    let short = made(&world, json!({"name": "short", "expires_in_s": 60})).await;
    let revoked = made(&world, json!({"name": "revoked"})).await;
    let path = format!("/v1/hosts/joins/{}", revoked.join.id);
    world.other_org().delete(&path).await.problem(ErrorCode::NotFound);
    for _ in 0..2 {
        assert_eq!(world.admin().delete(&path).await.status, StatusCode::NO_CONTENT);
    }
    world.clock.advance(Duration::from_secs(60));
    for (secret, why) in [(&short.secret, "has expired"), (&revoked.secret, "was revoked")] {
        let problem = send(&world, secret, &host.enrolment(secret)).await.problem(ErrorCode::Unauthenticated);
        assert!(problem.detail.contains(why) && problem.detail.contains("make another"), "{problem}");
    }
    let unknown = format!("holm_join_{}", "A".repeat(43));
    send(&world, &unknown, &host.enrolment(&unknown)).await.problem(ErrorCode::Unauthenticated);
    for other in [world.agent(), world.admin(), world.nobody()] {
        let refused = other.post("/agent/v1/enrol", &host.enrolment("x")).await.problem(ErrorCode::Unauthenticated);
        assert!(refused.detail.contains("holm_join_"), "{refused}");
    }
    assert_eq!(world.app().store.host_key_of(host.agent).await.unwrap(), None);
    world.clock.advance(Duration::from_secs(24 * 3_600 + 3_600));
    made(&world, json!({"name": "later"})).await;
    assert_eq!(listed(&world).await.len(), 1, "what ended long ago is forgotten");
}

#[tokio::test]
async fn a_join_token_opens_nothing_else_and_its_secret_is_shown_once() {
    let log = Log::default();
    let world = World::new().await;
    let _kept = log.keep(Level::TRACE);
    let secret = world.join_secret().await;
    let caller = world.with_secret(&secret);
    for path in ["/v1/runs", "/v1/whoami", "/v1/hosts/joins", "/metrics"] {
        assert!(caller.get(path).await.problem(ErrorCode::Unauthenticated).detail.contains("join token"), "{path}");
    }
    let polled = caller.post("/agent/v1/poll", &world.poll()).await.problem(ErrorCode::Unauthenticated);
    assert!(polled.detail.contains("join token"), "{polled}");
    let shown = world.admin().get("/v1/hosts/joins").await.body;
    assert!(!String::from_utf8_lossy(&shown).contains("holm_join_"));
    assert_eq!(world.app().store.token_list(world.org).await.unwrap().len(), 3, "it is not among the other tokens");
    let host = OwnKey::new(40, 1);
    send(&world, &secret, &host.enrolment(&secret)).await.json::<Enrolled>(StatusCode::OK);
    assert_eq!(log.lines_with("a host was enrolled"), 1);
    assert_eq!(log.lines_with(&secret) + log.lines_with(secret.trim_start_matches("holm_join_")), 0);
    for caller in [world.member(), world.agent()] {
        caller.post("/v1/hosts/joins", &json!({"name": "x"})).await.problem(ErrorCode::Forbidden);
    }
    for (body, field) in [
        (json!({"name": ""}), "name"),
        (json!({"name": "x", "expires_in_s": 59}), "expires_in_s"),
        (json!({"name": "x", "expires_in_s": 7 * 24 * 3_600 + 1}), "expires_in_s"),
    ] {
        let problem = world.admin().post("/v1/hosts/joins", &body).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some(field));
    }
    let private = World::with_config(|config| config.private = true).await;
    private.admin().post("/v1/hosts/joins", &json!({"name": "x"})).await.problem(ErrorCode::Forbidden);
}

#[tokio::test]
async fn a_proof_is_for_this_agent_this_key_and_this_token() {
    let world = World::new().await;
    let (secret, another) = (world.join_secret().await, world.join_secret().await);
    let (host, thief) = (OwnKey::new(40, 1), OwnKey::new(41, 2));
    let good = host.enrolment(&secret);
    for body in [
        Enrol { agent: thief.agent, ..good.clone() },
        Enrol { key: thief.public(), ..good.clone() },
        Enrol { proof: thief.enrolment(&secret).proof, ..good.clone() },
        host.enrolment(&another),
        Enrol { proof: String::new(), ..good.clone() },
        Enrol { proof: format!("{}=", good.proof), ..good.clone() },
    ] {
        let problem = send(&world, &secret, &body).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some("proof"));
    }
    assert!(listed(&world).await.iter().all(|join| join.used_at.is_none()), "nothing was used up");
    send(&world, &secret, &good).await.json::<Enrolled>(StatusCode::OK);
}

#[tokio::test]
async fn an_agent_for_whom_somebody_speaks_is_not_taken_over() {
    let world = World::new().await;
    let secret = world.join_secret().await;
    // That of the world registered with its token.
    let thief = OwnKey::new(7, 1);
    assert_eq!(thief.agent, world.agent_id);
    let problem = send(&world, &secret, &thief.enrolment(&secret)).await.problem(ErrorCode::Conflict);
    assert!(problem.detail.contains("still works") && problem.detail.contains("token revoke"), "{problem}");
    let host = OwnKey::new(40, 2);
    host.begin(&world).await;
    let thief = OwnKey::new(40, 3);
    let problem = send(&world, &secret, &thief.enrolment(&secret)).await.problem(ErrorCode::Conflict);
    assert!(problem.detail.contains("another key"), "{problem}");
    world.revoke_agent_token().await;
    let mover = OwnKey::new(7, 1);
    send(&world, &secret, &mover.enrolment(&secret)).await.json::<Enrolled>(StatusCode::OK);
    let hosts: HostList = world.member().get("/v1/hosts").await.json(StatusCode::OK);
    let of = |agent| hosts.hosts.iter().find(|host| host.id == agent).unwrap().identity.clone().unwrap();
    assert!(matches!(of(mover.agent), HostIdentity::Key { key, revoked_at: None, .. } if key == mover.public()));
    assert!(matches!(of(host.agent), HostIdentity::Key { key, .. } if key == host.public()));
}

#[tokio::test]
async fn a_lost_answer_is_told_again_with_another_token_too_which_stays_unused() {
    let world = World::new().await;
    let host = OwnKey::new(40, 1);
    let issuer = host.enrol(&world).await;
    let fresh = world.join_secret().await;
    let told: Enrolled = send(&world, &fresh, &host.enrolment(&fresh)).await.json(StatusCode::OK);
    assert_eq!(told.issuer, issuer);
    assert_eq!(listed(&world).await.iter().filter(|join| join.used_at.is_some()).count(), 1, "that of before");
    let another = OwnKey::new(41, 2);
    send(&world, &fresh, &another.enrolment(&fresh)).await.json::<Enrolled>(StatusCode::OK);
}

#[tokio::test]
async fn a_key_that_was_enrolled_once_enrols_no_more_for_whichever_agent() {
    let world = World::new().await;
    let (first, second) = (OwnKey::new(40, 1), OwnKey::new(40, 2));
    for host in [&first, &second] {
        host.enrol(&world).await;
        let clone = OwnKey::new(41, if host.public() == first.public() { 1 } else { 2 });
        let secret = world.join_secret().await;
        let problem = send(&world, &secret, &clone.enrolment(&secret)).await.problem(ErrorCode::Conflict);
        assert!(problem.detail.contains("copied folder") && problem.detail.contains("agent/key"), "{problem}");
        let revoke = world.admin().post(&format!("/v1/hosts/{}/revoke", host.agent), &()).await;
        assert_eq!(revoke.status, StatusCode::OK);
        send(&world, &secret, &clone.enrolment(&secret)).await.problem(ErrorCode::Conflict);
    }
    let secret = world.join_secret().await;
    for host in [&first, &second] {
        send(&world, &secret, &host.enrolment(&secret)).await.problem(ErrorCode::HostRevoked);
    }
    send(&world, &secret, &OwnKey::new(40, 3).enrolment(&secret)).await.json::<Enrolled>(StatusCode::OK);
}

#[tokio::test]
async fn a_used_join_token_is_not_revoked_and_says_whom_it_enrolled() {
    let world = World::new().await;
    let NewJoin { join, secret } = made(&world, json!({"name": "x"})).await;
    let host = OwnKey::new(40, 1);
    send(&world, &secret, &host.enrolment(&secret)).await.json::<Enrolled>(StatusCode::OK);
    let path = format!("/v1/hosts/joins/{}", join.id);
    let problem = world.admin().delete(&path).await.problem(ErrorCode::Conflict);
    assert!(problem.detail.contains(&format!("holm hosts revoke {}", host.agent)), "{problem}");
    assert_eq!(problem.value, Some(host.agent.to_string()));
    assert_eq!(listed(&world).await[0].revoked_at, None);
    world.other_org().delete(&path).await.problem(ErrorCode::NotFound);
}

#[tokio::test]
async fn of_an_enrolment_and_registrations_that_race_one_is_heard() {
    for round in 0..8_u8 {
        let world = World::new().await;
        let (secret, host) = (world.join_secret().await, OwnKey::new(40, 1));
        let (enrolment, registration) = (host.enrolment(&secret), host.registration(&world));
        let (enrols, registers) = (world.with_secret(&secret), world.agent());
        let enrols = tokio::spawn(async move { enrols.post("/agent/v1/enrol", &enrolment).await });
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        let registered = registers.post("/agent/v1/register", &registration).await;
        let enrolled = enrols.await.unwrap();
        let key = world.app().store.host_key_of(host.agent).await.unwrap();
        let is_there = world.app().store.host_get(world.org, host.agent).await.unwrap().is_some();
        match (enrolled.status, registered.status) {
            (StatusCode::OK, StatusCode::OK) => panic!("both speak for it"),
            (StatusCode::OK, _) => {
                registered.problem(ErrorCode::Forbidden);
                assert!(key.is_some() && !is_there);
            }
            (_, StatusCode::OK) => {
                enrolled.problem(ErrorCode::Conflict);
                assert!(key.is_none() && is_there);
            }
            (enrolled, registered) => panic!("nobody speaks for it: {enrolled}, {registered}"),
        }
    }
}

#[tokio::test]
async fn of_enrolments_that_race_with_one_token_one_wins() {
    let world = World::new().await;
    let secret = world.join_secret().await;
    let hosts: Vec<OwnKey> = (0..6).map(|n| OwnKey::new(50 + u128::from(n), n + 1)).collect();
    let bodies: Vec<Enrol> = hosts.iter().map(|host| host.enrolment(&secret)).collect();
    let answers = futures_util::future::join_all(bodies.iter().map(|body| send(&world, &secret, body))).await;
    let (won, lost): (Vec<Answer>, Vec<Answer>) = answers.into_iter().partition(|it| it.status == StatusCode::OK);
    assert_eq!((won.len(), lost.len()), (1, 5));
    for answer in lost {
        answer.problem(ErrorCode::JoinTokenUsed);
    }
}

#[tokio::test]
async fn a_host_of_another_org_is_not_told_of() {
    let world = World::new().await;
    let theirs = world.other_org().post("/v1/hosts/joins", &json!({"name": "x"})).await;
    let theirs: NewJoin = theirs.json(StatusCode::CREATED);
    OwnKey::new(40, 1).enrol(&world).await;
    for thief in [OwnKey::new(7, 9), OwnKey::new(40, 9)] {
        let problem = send(&world, &theirs.secret, &thief.enrolment(&theirs.secret)).await.problem(ErrorCode::Conflict);
        assert!(problem.detail.contains("cannot be used here"), "{problem}");
    }
    // Nor does anybody of another org register as one of which there is a key.
    let body = OwnKey::new(40, 1).registration(&world);
    let problem = world.other_org_agent().post("/agent/v1/register", &body).await.problem(ErrorCode::Conflict);
    assert!(problem.detail.contains("cannot be used here"), "{problem}");
    let revoke = format!("/v1/hosts/{}/revoke", OwnKey::new(40, 1).agent);
    world.other_org().post(&revoke, &()).await.problem(ErrorCode::NotFound);
}
