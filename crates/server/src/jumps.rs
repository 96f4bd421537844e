//! What holds when the time of day jumps, while a server lives and between two that follow each other: nothing is taken
//! away early, and nothing is kept for ever.

use std::time::Duration;

use holm_api::{
    agent::{HeldLease, Renew, Renewed, StartRun},
    hosts::HostList,
    runs::{EventPage, RunView},
};
use holm_domain::{
    ErrorCode, RunId, UnixMicros,
    limits::{CLOCK_FOLLOWS_ONE_IN, LEASE_TTL_MAX},
    run::{Reason, RunState, SandboxInfo},
};
use http::StatusCode;
use serde_json::json;

use crate::{
    auth::known::TRUSTED_FOR,
    tasks::{
        expire::expire,
        reap::{bring_nearer, reap},
    },
    testing::{World, own_key::OwnKey},
    told::Told,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

/// Forward and back, by an hour and by days.
const JUMPS: [i64; 4] = [HOUR_US, -HOUR_US, 3 * DAY_US, -3 * DAY_US];

/// The shortest and the longest time that may really pass while a server counts `span`.
fn about(span: Duration) -> (Duration, Duration) {
    // The clock strays by a part of what passes, not of what it shows; and what it shows is rounded.
    let stray = span / (CLOCK_FOLLOWS_ONE_IN - 1) + Duration::from_millis(1);
    (span - stray, span + stray)
}

async fn view(world: &World, run: RunId) -> RunView {
    world.member().get(&format!("/v1/runs/{run}")).await.json(StatusCode::OK)
}

async fn start(world: &World, held: HeldLease) {
    let sandbox =
        SandboxInfo { agent: world.agent_id, runtime: "process".into(), image_digest: None, unenforced: Vec::new() };
    let body = StartRun { instance: world.instance, fence: held.fence, sandbox };
    let path = format!("/agent/v1/runs/{}/start", held.run);
    assert_eq!(world.agent().post(&path, &body).await.status, StatusCode::NO_CONTENT);
}

/// For how long the lease was renewed, if it was.
async fn renew(world: &World, held: HeldLease) -> Option<u64> {
    let body = Renew { agent: world.agent_id, instance: world.instance, leases: vec![held.into()] };
    let renewed: Renewed = world.agent().post("/agent/v1/renew", &body).await.json(StatusCode::OK);
    renewed.leases[0].ttl_ms
}

#[tokio::test]
async fn a_live_lease_goes_on_and_one_that_is_not_renewed_expires_in_its_time() {
    for jump in JUMPS {
        let world = World::new().await;
        let held = world.claim_run().await;
        start(&world, held).await;
        world.clock.set_by(jump);
        assert_eq!(reap(world.app()).await.unwrap(), 0, "{jump}: taken from an agent that has it");
        world.clock.advance(10 * SECOND);
        assert_eq!(renew(&world, held).await, Some(30_000), "{jump}: the time limit of the run is not over");
        let (least, most) = about(35 * SECOND);
        world.clock.advance(least);
        assert_eq!(reap(world.app()).await.unwrap(), 0, "{jump}: granted anew while its agent may have it");
        world.clock.advance(most - least);
        assert_eq!(reap(world.app()).await.unwrap(), 1, "{jump}: kept for an agent that is gone");
        let again = world.claim().await;
        assert_eq!((again.run, again.fence), (held.run, 2));
    }
}

#[tokio::test]
async fn a_run_waits_in_the_queue_for_as_long_as_it_may() {
    for jump in JUMPS {
        let world = World::new().await;
        let waiting = world.queue_run().await;
        world.clock.advance(60 * SECOND);
        world.clock.set_by(jump);
        let (least, most) = about(DAY);
        world.clock.advance(least - 60 * SECOND);
        assert_eq!(reap(world.app()).await.unwrap(), 0, "{jump}: given up early");
        world.clock.advance(most - least + 60 * SECOND);
        assert_eq!(reap(world.app()).await.unwrap(), 1, "{jump}: never given up");
        let outcome = view(&world, waiting).await.outcome.unwrap();
        assert_eq!(outcome.reason, Some(Reason::QueueDeadline));
    }
}

#[tokio::test]
async fn logs_are_kept_for_their_time_and_no_longer() {
    for jump in JUMPS {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.append_log(held, 1, &["a\n"]).await;
        world.finish(held, 2).await;
        world.clock.set_by(jump);
        let expired = || async { expire(world.app(), 2 * DAY, &mut Told::default()).await.unwrap() };
        let (least, most) = about(2 * DAY);
        assert_eq!(expired().await, 0, "{jump}");
        world.clock.advance(least);
        assert_eq!(expired().await, 0, "{jump}: deleted early");
        world.clock.advance(most - least);
        assert_eq!(expired().await, 1, "{jump}: kept for ever");
    }
}

#[tokio::test]
async fn tokens_live_as_long_as_they_were_given() {
    for jump in JUMPS {
        let world = World::new().await;
        let body = json!({ "name": "ci", "role": "member", "expires_in_s": 3_600 });
        let made: serde_json::Value = world.admin().post("/v1/tokens", &body).await.json(StatusCode::CREATED);
        let caller = world.with_secret(made["secret"].as_str().unwrap());
        world.clock.set_by(jump);
        let (least, most) = about(HOUR);
        world.clock.advance(least);
        assert_eq!(caller.get("/v1/runs").await.status, StatusCode::OK, "{jump}: ended early");
        world.clock.advance(most - least);
        caller.get("/v1/runs").await.problem(ErrorCode::Unauthenticated);
    }
}

#[tokio::test]
async fn a_token_is_trusted_for_a_moment_whatever_the_clock_shows() {
    let world = World::new().await;
    assert_eq!(world.member().get("/v1/runs").await.status, StatusCode::OK);
    world.clock.set_by(-3 * DAY_US);
    world.revoke_member_token().await;
    tokio::time::sleep(TRUSTED_FOR).await;
    world.member().get("/v1/runs").await.problem(ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn the_times_of_a_run_and_of_its_events_never_go_back() {
    for jump in [-HOUR_US, -3 * DAY_US] {
        let world = World::new().await;
        let run = world.queue_run().await;
        world.clock.set_by(jump);
        let held = world.claim().await;
        world.clock.set_by(jump);
        start(&world, held).await;
        world.clock.set_by(jump);
        world.finish(held, 1).await;
        let shown = view(&world, run).await;
        let times = [Some(shown.queued_at), shown.claimed_at, shown.started_at, shown.ended_at];
        assert!(times.is_sorted(), "{jump}: {times:?}");
        let page: EventPage = world.member().get(&format!("/v1/runs/{run}/events")).await.json(StatusCode::OK);
        assert_eq!(page.events.len(), 4);
        assert!(page.events.is_sorted_by_key(|event| (event.at, event.seq)), "{jump}: {:?}", page.events);
    }
}

#[tokio::test]
async fn the_time_by_which_the_server_decides_is_told() {
    let world = World::new().await;
    world.clock.set_by(-3 * DAY_US);
    let answer = world.nobody().get("/healthz").await;
    assert_eq!(answer.headers[http::header::DATE], "Tue, 14 Nov 2023 22:13:20 GMT");
}

#[tokio::test]
async fn a_log_is_followed_by_its_numbers_whatever_its_times_are() {
    let world = World::new().await;
    let held = world.claim_run().await;
    // As the clock of its host had it.
    for (first, at, line) in [(1, 5 * DAY_US, "a\n"), (2, 2 * DAY_US, "b\n"), (3, 9 * DAY_US, "c\n")] {
        world.append_log_at(held, first, at, &[line]).await;
    }
    let path = format!("/v1/runs/{}/logs/follow", held.run);
    let mut whole = world.member().follow(&path).await;
    assert_eq!(whole.events(3).await, ["1 log a\n", "2 log b\n", "3 log c\n"]);
    let mut rest = world.member().header(holm_api::LAST_EVENT_ID, "1").follow(&path).await;
    assert_eq!(rest.events(2).await, ["2 log b\n", "3 log c\n"]);
    world.append_log_at(held, 4, DAY_US, &["d\n"]).await;
    world.finish(held, 5).await;
    for stream in [whole, rest] {
        assert_eq!(stream.rest().await, ["4 log d\n", "- end {\"last_seq\":4}"]);
    }
}

#[tokio::test]
async fn a_server_that_finds_its_clock_ahead_grants_nothing_anew_that_somebody_may_hold() {
    // By days, the time limit of every run is over as far as the server can tell, and its agent is told to stop.
    for (jump, renewed) in [(HOUR_US, Some(30_000)), (3 * DAY_US, None)] {
        let mut world = World::new().await;
        let (kept, left) = (world.claim_run().await, world.claim_run().await);
        world.clock.set_by(jump);
        world.restart();
        assert_eq!(reap(world.app()).await.unwrap(), 0, "{jump}: a sandbox may be alive");
        world.clock.advance(Duration::from_millis(34_999));
        assert_eq!(renew(&world, kept).await, renewed, "{jump}");
        assert_eq!(reap(world.app()).await.unwrap(), 0, "{jump}: a sandbox may be alive");
        world.clock.advance(Duration::from_millis(1));
        assert_eq!(reap(world.app()).await.unwrap(), if renewed.is_some() { 1 } else { 2 }, "{jump}");
        let expected = if renewed.is_some() { RunState::Claimed } else { RunState::Queued };
        assert_eq!(view(&world, kept.run).await.state, expected);
        assert_eq!(view(&world, left.run).await.state, RunState::Queued);
    }
}

#[tokio::test]
async fn a_server_that_finds_its_clock_back_keeps_nothing_for_those_who_are_gone() {
    for jump in [-2 * HOUR_US, -3 * DAY_US] {
        let mut world = World::new().await;
        let (held, waiting) = (world.claim_run().await, world.queue_run().await);
        world.clock.set_by(jump);
        world.restart();
        let brought = bring_nearer(world.app(), &mut Told::default()).await.unwrap();
        let again = bring_nearer(world.app(), &mut Told::default()).await.unwrap();
        assert_eq!((brought, again), (2, 0), "{jump}: the lease and the wait, once");
        assert_eq!(renew(&world, held).await, Some(30_000), "{jump}: who is alive goes on");
        world.clock.advance(LEASE_TTL_MAX + 5 * SECOND);
        assert_eq!(reap(world.app()).await.unwrap(), 1, "{jump}");
        assert_eq!(view(&world, held.run).await.state, RunState::Queued);
        assert_eq!(view(&world, waiting).await.state, RunState::Queued);
        world.clock.advance(DAY);
        assert_eq!(reap(world.app()).await.unwrap(), 2, "{jump}: nobody claims them");
    }
}

#[tokio::test]
async fn what_an_agreeing_clock_wrote_is_left_as_it_is() {
    let mut world = World::new().await;
    world.claim_run().await;
    world.queue_run().await;
    for moved in [0, -5_000_000, HOUR_US] {
        world.clock.set_by(moved);
        world.restart();
        let brought = bring_nearer(world.app(), &mut Told::default()).await.unwrap();
        // The queued run was submitted in the future of the second; its wait is shortened by as much.
        assert_eq!(brought, usize::from(moved < 0), "{moved}");
    }
}

#[tokio::test]
async fn a_host_that_was_heard_in_the_future_is_not_alive_for_ever() {
    let mut world = World::new().await;
    let alive = |world: &World| {
        let member = world.member();
        async move { member.get("/v1/hosts").await.json::<HostList>(StatusCode::OK).hosts[0].alive }
    };
    world.clock.set_by(-3 * DAY_US);
    world.restart();
    assert!(!alive(&world).await, "it was not heard since");
    world.claim_run().await;
    assert!(alive(&world).await);
    let heard = world.app().store.host_get(world.org, world.agent_id).await.unwrap().unwrap().seen_at;
    assert_eq!(heard, world.clock.now(), "each time of the host is one of this clock");
    assert!(heard < UnixMicros(1_700_000_000_000_000));
}

/// The clocks of hosts follow theirs at once, and so does what they sign by them.
#[tokio::test]
async fn a_host_is_given_sessions_by_the_time_of_day_wherever_it_jumps() {
    for jump in JUMPS {
        let world = World::new().await;
        let host = OwnKey::new(40, 1);
        let (caller, issuer) = host.begin(&world).await;
        let before = host.signed(&host.claims(&world, &issuer));
        let counted = world.app().now();
        world.clock.set_by(jump);
        assert_eq!(world.app().now(), counted, "the server counts on");
        let fresh = world.with_secret(host.session(&world, &issuer).await.token.expose());
        for caller in [&caller, &fresh] {
            let body = holm_api::agent::Poll { agent: host.agent, ..world.poll() };
            assert_eq!(caller.post("/agent/v1/poll", &body).await.status, StatusCode::OK, "{jump}");
        }
        let late = world.with_secret(&before).post("/agent/v1/session", &()).await;
        let told = late.problem(ErrorCode::Unauthenticated);
        assert!(told.detail.contains(&format!("clocks are {} s apart", jump.abs() / 1_000_000)), "{told}");
    }
}
