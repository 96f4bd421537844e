//! No route that writes is forgotten; rates hold over several servers on one store, and over their restarts.

use std::collections::BTreeSet;

use holm_api::{
    agent::{Poll, Polled, Renew, Renewed},
    hosts::{HostKeyView, NewJoin},
    identity::Enrolled,
    problem::Problem,
};
use holm_domain::RunId;
use http::{Method, StatusCode, header::RETRY_AFTER};
use serde_json::json;

use super::*;
use crate::{
    auth::speaker::ANSWERED_EVERY,
    testing::{Caller, World, batch, own_key::OwnKey},
};

/// All requests of the description that change something.
fn described() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (path, item) in crate::openapi().paths.paths {
        let methods = [
            (Method::PUT, item.put),
            (Method::POST, item.post),
            (Method::DELETE, item.delete),
            (Method::PATCH, item.patch),
        ];
        for (method, operation) in methods {
            found.extend(operation.map(|_| (method.to_string(), path.clone())));
        }
    }
    found
}

/// Rates so small that the eleventh request of a kind is too many.
async fn slow() -> World {
    let limits = OrgLimits {
        submits_per_minute: 1,
        api_writes_per_minute: 1,
        agent_writes_per_minute: 1,
        appends_per_minute: 1,
        lease_requests_per_minute: 1,
        renewals_per_minute: 1,
        log_bytes_per_second: 4_096,
        ..OrgLimits::default()
    };
    World::with_config(|config| config.org_limits = Some(limits)).await
}

async fn refused(caller: Caller, path: &str) -> Problem {
    let answer = caller.post(path, &json!({})).await;
    let wait: u64 = answer.headers[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    let problem = answer.problem(ErrorCode::TooMany);
    assert_eq!(problem.retry_after_s, Some(wait));
    problem
}

#[tokio::test]
async fn every_request_that_changes_something_is_kept_by_its_limit() {
    let listed: BTreeSet<(String, String)> =
        WRITES.iter().map(|(method, path, _)| (method.to_string(), (*path).to_owned())).collect();
    let described = described();
    assert!(described.len() >= 16 && listed.len() == WRITES.len());
    assert_eq!(listed, described, "each request that changes something stands in `WRITES` once");
    for (method, path, kept) in WRITES {
        // A world of its own: what is used up is used up for all that share the limit.
        let world = slow().await;
        let caller = match *path {
            "/agent/v1/enrol" => world.with_secret(&world.join_secret().await),
            path if path.starts_with("/agent") => world.agent(),
            _ => world.admin(),
        };
        let path = path.replace("{id}", "run_00000000000000000000000000").replace("{org}", "default");
        let mut codes = Vec::new();
        for _ in 0..3 {
            let answer = caller.send(method.as_str(), &path, "application/json", b"{}".to_vec()).await;
            codes.push(answer.status == StatusCode::TOO_MANY_REQUESTS);
        }
        let is_by_rate = matches!(kept, Kept::By(_));
        assert_eq!(codes.contains(&true), is_by_rate, "{method} {path}: {codes:?}");
        assert!(is_by_rate || !codes[2]);
    }
    assert!(kept(&Method::POST, "/v1/new").is_err() && kept(&Method::GET, "/v1/new").unwrap().is_none());
}

#[tokio::test]
async fn who_is_refused_is_told_which_limit_and_when_to_come_back() {
    let world = slow().await;
    world.admin().post("/v1/runs", &json!({})).await.problem(ErrorCode::InvalidField);
    let problem = refused(world.admin(), "/v1/runs").await;
    assert_eq!((problem.field.as_deref(), problem.value.as_deref()), (Some("submits_per_minute"), Some("1")));
    assert_eq!(problem.retry_after_s, Some(60));
    assert!(problem.detail.contains("holm org limits set"), "{problem}");
    // Another limit, and another org, are not touched.
    world.admin().post("/v1/tokens", &json!({})).await.problem(ErrorCode::InvalidField);
    world.other_org().post("/v1/runs", &json!({})).await.problem(ErrorCode::InvalidField);
    let metrics = world.app().metrics.text(&crate::metrics::Census::default()).unwrap();
    assert!(metrics.contains("holm_limited_total{limit=\"submits_per_minute\"} 1"), "{metrics}");
    assert!(metrics.contains("holm_limited_total{limit=\"log_bytes_per_second\"} 0"), "{metrics}");
    world.clock.advance(Duration::from_secs(60));
    world.admin().post("/v1/runs", &json!({})).await.problem(ErrorCode::InvalidField);
}

#[tokio::test]
async fn polls_and_appends_without_end_keep_no_lease_from_being_renewed() {
    let limits = OrgLimits { lease_requests_per_minute: 60, appends_per_minute: 60, ..OrgLimits::default() };
    let world = World::with_config(|config| config.org_limits = Some(limits)).await;
    let held = world.claim_run().await;
    let logs = world.fenced(held, "logs");
    for (path, body) in [("/agent/v1/poll", json!({})), (logs.as_str(), json!({}))] {
        let mut answers = Vec::new();
        for _ in 0..20 {
            answers.push(world.agent().post(path, &body).await.status);
        }
        assert_eq!(answers.last(), Some(&StatusCode::TOO_MANY_REQUESTS), "{path}: {answers:?}");
    }
    let Poll { agent, instance, .. } = world.poll();
    let renew = Renew { agent, instance, leases: vec![held.into()] };
    let renewed: Renewed = world.agent().post("/agent/v1/renew", &renew).await.json(StatusCode::OK);
    assert!(renewed.leases[0].ttl_ms.is_some());
}

#[tokio::test]
async fn credentials_that_do_not_work_any_more_use_nothing_up() {
    let limits = OrgLimits { agent_writes_per_minute: 1, ..OrgLimits::default() };
    let world = World::with_config(|config| config.org_limits = Some(limits)).await;
    // What the registration of the world's own agent has used up.
    world.clock.advance(Duration::from_secs(120));
    let (host, thief) = (OwnKey::new(40, 1), OwnKey::new(41, 2));
    let used = world.join_secret().await;
    world.with_secret(&used).post("/agent/v1/enrol", &host.enrolment(&used)).await.json::<Enrolled>(StatusCode::OK);
    let session = host.session(&world, &format!("holm:{}", world.org)).await;
    let short = world.admin().post("/v1/hosts/joins", &json!({"name": "x", "expires_in_s": 60})).await;
    let short: NewJoin = short.json(StatusCode::CREATED);
    let revoked = world.admin().post("/v1/hosts/joins", &json!({"name": "x"})).await;
    let revoked: NewJoin = revoked.json(StatusCode::CREATED);
    let revoke = world.admin().delete(&format!("/v1/hosts/joins/{}", revoked.join.id)).await;
    assert_eq!(revoke.status, StatusCode::NO_CONTENT);
    world.admin().post(&format!("/v1/hosts/{}/revoke", host.agent), &()).await.json::<HostKeyView>(StatusCode::OK);
    // What the enrolment has used up is there again.
    world.clock.advance(Duration::from_secs(120));
    for _ in 0..5 {
        tokio::time::sleep(ANSWERED_EVERY).await;
        for (secret, code) in [
            (&used, ErrorCode::JoinTokenUsed),
            (&short.secret, ErrorCode::Unauthenticated),
            (&revoked.secret, ErrorCode::Unauthenticated),
        ] {
            world.with_secret(secret).post("/agent/v1/enrol", &thief.enrolment(secret)).await.problem(code);
        }
        let events = "/agent/v1/runs/run_00000000000000000000000000/events";
        world.with_secret(session.token.expose()).post(events, &json!({})).await.problem(ErrorCode::HostRevoked);
    }
    thief.enrol(&world).await;
    let secret = world.join_secret().await;
    let more = world.with_secret(&secret).post("/agent/v1/enrol", &OwnKey::new(42, 3).enrolment(&secret)).await;
    more.problem(ErrorCode::TooMany);
}

#[tokio::test]
async fn several_servers_and_restarts_give_no_more_than_one() {
    let limits = OrgLimits { submits_per_minute: 600, ..OrgLimits::default() };
    let mut first = World::with_config(|config| config.org_limits = Some(limits)).await;
    let (org, store) = (first.org, first.app().store.clone());
    let apps = || {
        let config = crate::Config { org_limits: Some(limits), clock: first.clock.clone(), ..crate::Config::default() };
        [(); 2].map(|()| App::new(config.clone(), store.clone()))
    };
    let mut granted = 0;
    for _ in 0..5 {
        // Each is a server of its own, which knows nothing of those before.
        let apps = apps();
        for app in apps.iter().cycle().take(60) {
            granted += u64::from(app.limiter.spend(app, org, OrgLimit::Submits, 1).await.is_ok());
        }
    }
    // Ten seconds' worth; what a server had taken ahead when it ended is lost.
    assert!((90..=100).contains(&granted), "{granted}");
    first.clock.advance(Duration::from_secs(1));
    let apps = apps();
    let mut more = 0;
    for app in apps.iter().cycle().take(60) {
        more += u64::from(app.limiter.spend(app, org, OrgLimit::Submits, 1).await.is_ok());
    }
    assert!((1..=10).contains(&more), "{more}");
    first.restart();
}

#[tokio::test]
async fn logs_wait_and_are_complete() {
    let world = World::with_config(|config| {
        config.limits.log_body_bytes_max = 8_192;
        config.org_limits = Some(OrgLimits { log_bytes_per_second: 4_096, ..OrgLimits::default() });
    })
    .await;
    let held = world.claim_run().await;
    let (path, mut next, mut refusals) = (world.fenced(held, "logs"), 1, 0);
    for number in 0..60 {
        let line = format!("{number:04} {}\n", "x".repeat(1_500));
        let body = batch(next, &[&line]);
        while world.agent().send("POST", &path, holm_api::LOG_BATCH, body.clone()).await.status != StatusCode::OK {
            refusals += 1;
            assert!(refusals < 100, "after a wait there is room");
            world.clock.advance(Duration::from_secs(1));
        }
        next += 1;
    }
    assert!(refusals > 2, "{refusals}");
    let page: holm_api::logs::LogPage =
        world.member().get(&format!("/v1/runs/{}/logs", held.run)).await.json(StatusCode::OK);
    let numbers: Vec<String> = page.entries.iter().map(|entry| entry.text.clone().unwrap()[..4].to_owned()).collect();
    assert_eq!(numbers, (0..60).map(|number| format!("{number:04}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn runs_wait_for_others_of_their_org_to_end() {
    let limits = OrgLimits { runs_running_max: 2, runs_queued_max: 3, ..OrgLimits::default() };
    let world = World::with_config(|config| config.org_limits = Some(limits)).await;
    let queued = [world.queue_run().await, world.queue_run().await, world.queue_run().await];
    let spec = json!({"spec": {"root": {"kind": "host"}, "argv": ["true"]}});
    let problem = world.member().post("/v1/runs", &spec).await.problem(ErrorCode::TooMany);
    assert_eq!((problem.field.as_deref(), problem.value.as_deref()), (Some("runs_queued_max"), Some("3")));
    let poll = async || {
        let polled: Polled = world.agent().post("/agent/v1/poll", &world.poll()).await.json(StatusCode::OK);
        polled.claimed
    };
    let first = poll().await;
    let ids: Vec<RunId> = first.iter().map(|claimed| claimed.run).collect();
    assert_eq!(ids, queued[..2]);
    // It is counted anew after a moment.
    let mut tries = 0;
    while world.member().post("/v1/runs", &spec).await.status != StatusCode::CREATED {
        tries += 1;
        assert!(tries < 1_000, "there is room again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!poll().await.iter().any(|claimed| claimed.run == queued[2]), "two run");
    let of = &first[0];
    world.finish(holm_api::agent::HeldLease { run: of.run, fence: of.fence, cancel: None }, 1).await;
    let next: Vec<RunId> = poll().await.iter().map(|claimed| claimed.run).filter(|run| !ids.contains(run)).collect();
    assert_eq!(next, queued[2..], "one has ended");
}

#[tokio::test]
async fn a_turn_that_nobody_ends_is_over_by_itself() {
    let limits = OrgLimits { runs_running_max: 1, ..OrgLimits::default() };
    let world = World::with_config(|config| config.org_limits = Some(limits)).await;
    let app = world.app();
    let turn = app.limiter.turn(app, world.org, 4).await.unwrap();
    assert_eq!(turn.claims, 1);
    // As if its server had died: nobody but time ends it.
    drop(turn);
    assert_eq!(app.limiter.turn(app, world.org, 4).await.unwrap().claims, 0);
    world.clock.advance(TURN_MAX);
    let turn = app.limiter.turn(app, world.org, 4).await.unwrap();
    assert_eq!(turn.claims, 1);
    turn.end(app).await;
    assert_eq!(app.limiter.turn(app, world.org, 4).await.unwrap().claims, 1);
}
