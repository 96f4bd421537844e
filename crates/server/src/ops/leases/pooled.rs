//! A host that several orgs share.

use std::{collections::BTreeMap, time::Duration};

use holm_api::{
    agent::{FinishRun, HeldLease, Poll, Polled, Register, Renew, Renewed},
    hosts::HostList,
    orgs::PoolView,
    runs::RunView,
};
use holm_domain::{
    AgentId, ErrorCode, InstanceId, OrgId, RunId,
    host::Capacity,
    lease::Claimant,
    limits::ROOM_KEPT_AFTER,
    org_limits::OrgLimit,
    run::{ExitStatus, Outcome, RunState},
};
use http::StatusCode;
use serde_json::json;

use crate::testing::{Caller, World};

const GIB: u64 = 1 << 30;
const SMALL: u64 = 8 << 20;

/// Nothing is looked at again by itself.
async fn unshared() -> World {
    let world = World::with_limits(|limits| limits.reread_every = Duration::from_secs(3_600)).await;
    pool(&world, world.agent_id).await;
    world
}

/// Puts a host of the default org into the pool `ci`.
async fn pool(world: &World, agent: AgentId) {
    let view: PoolView = world.admin().post(&format!("/v1/pools/ci/hosts/{agent}"), &()).await.json(StatusCode::OK);
    assert!(view.hosts > 0, "{view:?}");
}

/// Its host is in the pool `ci`, which is shared with the other org.
async fn world() -> World {
    let world = unshared().await;
    assert_eq!(world.admin().post("/v1/pools/ci/orgs/other", &()).await.status, StatusCode::OK);
    world
}

async fn org_of(world: &World, run: RunId) -> OrgId {
    let other = world.app().store.org_by_name("other").await.unwrap().unwrap().id;
    assert!(world.app().store.run_get(other, run).await.unwrap().is_some());
    other
}

/// A run of that size.
async fn sized(caller: &Caller, memory_bytes: u64) -> RunId {
    let limits = json!({ "memory_bytes": memory_bytes });
    let body = json!({"spec": {"root": {"kind": "host"}, "argv": ["true"], "limits": limits}});
    caller.post("/v1/runs", &body).await.json::<RunView>(StatusCode::CREATED).id
}

/// What a host is granted that has a GiB left.
async fn given(world: &World, agent: AgentId, held: &[HeldLease]) -> Vec<RunId> {
    let free = Capacity { memory_bytes: GIB, ..world.poll().free };
    let poll = Poll { agent, free, claims_max: 1, held: held.to_vec(), ..world.poll() };
    let polled: Polled = world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
    polled.claimed.into_iter().map(|claimed| claimed.run).collect()
}

async fn limit_running(world: &World, org: OrgId, most: u64) {
    world.app().store.org_limit_set(org, OrgLimit::RunsRunning, Some(most), &[]).await.unwrap();
    world.app().limiter.forget(org);
}

async fn yielded() {
    for _ in 0..2_000 {
        tokio::task::yield_now().await;
    }
}

async fn queue(caller: &Caller, count: usize) -> Vec<RunId> {
    let mut runs = Vec::new();
    for _ in 0..count {
        let body = json!({"spec": {"root": {"kind": "host"}, "argv": ["true"]}});
        runs.push(caller.post("/v1/runs", &body).await.json::<RunView>(StatusCode::CREATED).id);
    }
    runs
}

async fn claimed(world: &World, claims_max: u32, held: &[HeldLease]) -> Vec<(OrgId, HeldLease)> {
    let poll = Poll { claims_max, held: held.to_vec(), ..world.poll() };
    let polled: Polled = world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
    let held = |run: &holm_api::agent::ClaimedRun| HeldLease { run: run.run, fence: run.fence, cancel: None };
    polled.claimed.iter().map(|run| (run.org, held(run))).collect()
}

#[tokio::test]
async fn a_run_of_another_org_goes_its_whole_way_on_a_shared_host() {
    let world = world().await;
    let other = world.other_org();
    let run = queue(&other, 1).await[0];
    let (org, held) = claimed(&world, 1, &[]).await[0];
    assert_eq!(held.run, run);
    assert_ne!(org, world.org);
    let (agent, instance, fence) = (world.agent_id, world.instance, held.fence);
    let host = world.agent();
    let sandbox = json!({"agent": agent, "runtime": "process", "image_digest": null, "unenforced": []});
    let start = json!({"instance": instance, "fence": fence, "sandbox": sandbox});
    assert_eq!(host.post(&format!("/agent/v1/runs/{run}/start"), &start).await.status, StatusCode::NO_CONTENT);
    world.append_log(held, 1, &["a line"]).await;
    let renew = Renew { agent, instance, leases: vec![held.into()] };
    let renewed: Renewed = host.post("/agent/v1/renew", &renew).await.json(StatusCode::OK);
    assert!(renewed.leases[0].ttl_ms.is_some());
    let hosts: HostList = other.get("/v1/hosts").await.json(StatusCode::OK);
    let seen = &hosts.hosts[0];
    assert!(seen.is_shared && seen.identity.is_none() && seen.runs_held == 1, "{seen:?}");
    world.member().get(&format!("/v1/runs/{run}")).await.problem(ErrorCode::NotFound);
    // Word of a cancellation reaches the host, whichever org the run is of.
    let cancel = json!({"kill": false});
    assert!(other.post(&format!("/v1/runs/{run}/cancel"), &cancel).await.status.is_success());
    let poll = Poll { claims_max: 0, held: vec![held], ..world.poll() };
    let told: Polled = host.post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
    assert_eq!(told.directives.len(), 1);
    let outcome = Outcome::exited(ExitStatus::Code(0));
    let end = FinishRun { agent, instance, fence, outcome, usage: None, result: None, next_log_seq: 2 };
    for _ in 0..2 {
        let finish = host.post(&format!("/agent/v1/runs/{run}/finish"), &end).await;
        assert_eq!(finish.status, StatusCode::NO_CONTENT, "also when it is said again, without a lease");
    }
    let view: RunView = other.get(&format!("/v1/runs/{run}")).await.json(StatusCode::OK);
    assert_eq!(view.state, RunState::Ended);
}

#[tokio::test]
async fn orgs_come_by_turns_however_many_runs_one_has() {
    let world = world().await;
    let (many, few) = (queue(&world.member(), 20).await, queue(&world.other_org(), 3).await);
    let mut granted = Vec::new();
    for _ in 0..8 {
        let held: Vec<HeldLease> = granted.iter().map(|(_, held)| *held).collect();
        granted.extend(claimed(&world, 1, &held).await);
    }
    let count = |runs: &[RunId]| granted.iter().filter(|(_, held)| runs.contains(&held.run)).count();
    assert_eq!((count(&many), count(&few)), (5, 3), "{granted:?}");
    let first: BTreeMap<OrgId, usize> = granted[..6].iter().fold(BTreeMap::new(), |mut counts, (org, _)| {
        *counts.entry(*org).or_default() += 1;
        counts
    });
    assert!(first.values().all(|count| *count == 3), "{first:?}");
}

#[tokio::test]
async fn an_org_at_its_limit_keeps_no_other_from_the_host() {
    let world = world().await;
    limit_running(&world, world.org, 0).await;
    queue(&world.member(), 3).await;
    let runs = queue(&world.other_org(), 2).await;
    let granted: Vec<RunId> = claimed(&world, 64, &[]).await.into_iter().map(|(_, held)| held.run).collect();
    assert_eq!(granted, runs);
}

#[tokio::test]
async fn what_is_shared_no_longer_is_granted_no_more_and_what_runs_goes_on() {
    let world = world().await;
    let other = world.other_org();
    let runs = queue(&other, 2).await;
    let (_, held) = claimed(&world, 1, &[]).await[0];
    assert_eq!(held.run, runs[0]);
    assert_eq!(world.admin().delete("/v1/pools/ci/orgs/other").await.status, StatusCode::OK);
    assert_eq!(claimed(&world, 64, &[held]).await, []);
    world.finish(held, 1).await;
    let view: RunView = other.get(&format!("/v1/runs/{}", runs[0])).await.json(StatusCode::OK);
    assert_eq!(view.state, RunState::Ended);
    let hosts: HostList = other.get("/v1/hosts").await.json(StatusCode::OK);
    assert_eq!(hosts.hosts, []);
}

#[tokio::test]
async fn only_admins_of_the_default_org_share_and_only_its_hosts_are_shared() {
    let world = World::new().await;
    let path = "/v1/pools/ci/orgs/other";
    world.other_org().post(path, &()).await.problem(ErrorCode::Forbidden);
    world.other_org().get("/v1/pools").await.problem(ErrorCode::Forbidden);
    world.admin().post("/v1/pools/ci/orgs/nobody", &()).await.problem(ErrorCode::NotFound);
    world.admin().post("/v1/pools/ci/orgs/default", &()).await.problem(ErrorCode::InvalidField);
    world.admin().post("/v1/pools/a%20b/orgs/other", &()).await.problem(ErrorCode::InvalidField);
    // Its own hosts are none of the pool.
    let agent = AgentId::from_uuid(uuid::Uuid::from_u128(12));
    let body = Register { agent, ..world.registration() };
    assert_eq!(world.other_org_agent().post("/agent/v1/register", &body).await.status, StatusCode::OK);
    let foreign = format!("/v1/pools/ci/hosts/{agent}");
    world.admin().post(&foreign, &()).await.problem(ErrorCode::NotFound);
    world.other_org().post(&foreign, &()).await.problem(ErrorCode::Forbidden);
    // A host is in one pool at most.
    pool(&world, world.agent_id).await;
    pool(&world, world.agent_id).await;
    let elsewhere = format!("/v1/pools/gpu/hosts/{}", world.agent_id);
    world.admin().post(&elsewhere, &()).await.problem(ErrorCode::Conflict);
    let view: PoolView = world.admin().delete(&elsewhere).await.json(StatusCode::OK);
    assert_eq!(view.hosts, 0);
    let own = format!("/v1/pools/ci/hosts/{}", world.agent_id);
    let view: PoolView = world.admin().delete(&own).await.json(StatusCode::OK);
    assert_eq!(view.hosts, 0);
}

#[tokio::test]
async fn a_host_serves_its_own_org_and_those_with_which_its_pool_is_shared_and_no_other() {
    let world = world().await;
    let [third, _] = world.third_org_secrets().await;
    let (not_shared, shared) = (queue(&world.with_secret(&third), 1).await, queue(&world.other_org(), 1).await);
    let own = world.queue_run().await;
    let mut granted: Vec<RunId> = claimed(&world, 64, &[]).await.into_iter().map(|(_, held)| held.run).collect();
    granted.sort_unstable();
    let mut expected = vec![shared[0], own];
    expected.sort_unstable();
    assert_eq!(granted, expected);
    assert!(!granted.contains(&not_shared[0]));
    // Nor may its agent say anything of a run of that org, or of one of a guest that it does not hold.
    let waiting = queue(&world.other_org(), 1).await[0];
    let renew = Renew {
        agent: world.agent_id,
        instance: world.instance,
        leases: vec![HeldLease { run: waiting, fence: 1, cancel: None }.into()],
    };
    let renewed: Renewed = world.agent().post("/agent/v1/renew", &renew).await.json(StatusCode::OK);
    assert_eq!(renewed.leases[0].ttl_ms, None);
    let by = Claimant { agent: world.agent_id, instance: world.instance };
    for run in [not_shared[0], waiting] {
        let held = HeldLease { run, fence: 1, cancel: None };
        world.every_word(&world.agent(), by, held, ErrorCode::StaleFence).await;
    }
}

#[tokio::test]
async fn a_host_that_is_in_its_pool_no_more_keeps_the_leases_of_others_that_it_has() {
    let world = world().await;
    queue(&world.other_org(), 2).await;
    let held: Vec<HeldLease> = claimed(&world, 2, &[]).await.into_iter().map(|(_, held)| held).collect();
    let own = format!("/v1/pools/ci/hosts/{}", world.agent_id);
    assert_eq!(world.admin().delete(&own).await.status, StatusCode::OK);
    for leases in [&held[..1], &held[..]] {
        let (agent, instance) = (world.agent_id, world.instance);
        let body = Renew { agent, instance, leases: leases.iter().map(|held| (*held).into()).collect() };
        let renewed: Renewed = world.agent().post("/agent/v1/renew", &body).await.json(StatusCode::OK);
        assert!(renewed.leases.iter().all(|lease| lease.ttl_ms.is_some()), "{renewed:?}");
    }
    for lease in held {
        world.append_log(lease, 1, &["a line"]).await;
        world.finish(lease, 2).await;
        let view: RunView = world.other_org().get(&format!("/v1/runs/{}", lease.run)).await.json(StatusCode::OK);
        assert_eq!(view.state, RunState::Ended);
    }
}

#[tokio::test]
async fn what_speaks_for_a_host_with_another_token_is_in_no_pool() {
    let world = world().await;
    let run = queue(&world.other_org(), 1).await[0];
    world.revoke_agent_token().await;
    let second = world.second_agent().await;
    let body = Register {
        instance: InstanceId::from_uuid(uuid::Uuid::from_u128(77)),
        after: Some(world.instance),
        ..world.registration()
    };
    assert_eq!(second.post("/agent/v1/register", &body).await.status, StatusCode::OK);
    let poll = Poll { instance: body.instance, ..world.poll() };
    let polled: Polled = second.post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
    assert_eq!(polled.claimed, []);
    pool(&world, world.agent_id).await;
    let polled: Polled = second.post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
    assert_eq!(polled.claimed[0].run, run, "once an admin says so");
}

#[tokio::test]
async fn a_host_that_keeps_room_goes_on_with_an_org_whose_turn_it_is() {
    let world = world().await;
    let first = queue(&world.other_org(), 1).await;
    let held: Vec<HeldLease> = claimed(&world, 1, &[]).await.into_iter().map(|(_, held)| held).collect();
    assert_eq!(held[0].run, first[0]);
    let large = sized(&world.other_org(), 4 * GIB).await;
    world.clock.advance(ROOM_KEPT_AFTER);
    let free = Capacity { memory_bytes: GIB, ..world.poll().free };
    let poll = Poll { wait_ms: 60_000, claims_max: 1, free, held, ..world.poll() };
    let agent = world.agent();
    let submit = async {
        yielded().await;
        let other = org_of(&world, large).await;
        assert!(world.app().store.run_get(other, large).await.unwrap().unwrap().room_kept.is_some());
        sized(&world.member(), SMALL).await
    };
    let (polled, small) = tokio::join!(agent.post("/agent/v1/poll", &poll), submit);
    let polled: Polled = polled.json(StatusCode::OK);
    assert_eq!(polled.claimed[0].run, small);
}

#[tokio::test]
async fn a_poll_that_waits_hears_that_its_host_serves_another_org() {
    let world = unshared().await;
    let runs = queue(&world.other_org(), 2).await;
    let wait = Poll { wait_ms: 60_000, claims_max: 1, ..world.poll() };
    for change in ["/v1/pools/ci/orgs/other".to_owned(), format!("/v1/pools/ci/hosts/{}", world.agent_id)] {
        let changed = async {
            yielded().await;
            assert_eq!(world.admin().post(&change, &()).await.status, StatusCode::OK);
        };
        let agent = world.agent();
        let (polled, ()) = tokio::join!(agent.post("/agent/v1/poll", &wait), changed);
        let polled: Polled = polled.json(StatusCode::OK);
        assert!(runs.contains(&polled.claimed[0].run), "{polled:?}");
        assert_eq!(world.admin().delete(&change).await.status, StatusCode::OK);
        let none = Poll { wait_ms: 0, ..wait.clone() };
        let polled: Polled = agent.post("/agent/v1/poll", &none).await.json(StatusCode::OK);
        assert!(polled.claimed.iter().all(|claimed| claimed.run != runs[1]), "{polled:?}");
        if change.contains("orgs") {
            // Shared again, and the host is not in it.
            let own = format!("/v1/pools/ci/hosts/{}", world.agent_id);
            assert_eq!(world.admin().delete(&own).await.status, StatusCode::OK);
            assert_eq!(world.admin().post(&change, &()).await.status, StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn a_poll_whose_host_keeps_room_for_one_org_waits_for_nothing_of_another() {
    let world = world().await;
    let first = world.queue_run().await;
    let held: Vec<HeldLease> = claimed(&world, 1, &[]).await.into_iter().map(|(_, held)| held).collect();
    assert_eq!(held[0].run, first);
    // The other org, whose turn it is, wants more room than there is.
    let large = sized(&world.other_org(), 4 * GIB).await;
    world.clock.advance(ROOM_KEPT_AFTER);
    let small = sized(&world.member(), SMALL).await;
    let free = Capacity { memory_bytes: GIB, ..world.poll().free };
    let poll = Poll { wait_ms: 60_000, claims_max: 1, free, held, ..world.poll() };
    let agent = world.agent();
    let watch = async {
        yielded().await;
        let other = org_of(&world, large).await;
        let kept = world.app().store.run_get(other, large).await.unwrap().unwrap().room_kept;
        assert_eq!(kept.map(|kept| kept.agent), Some(world.agent_id));
        let desk = world.app().queues.desk(&world.app().wakers, world.org);
        world.app().wakers.ring_queue(world.org);
        yielded().await;
        let before = desk.news();
        yielded().await;
        assert_eq!(desk.news(), before, "it goes round without a pause");
        world.app().shutdown.cancel();
    };
    let (polled, ()) = tokio::join!(agent.post("/agent/v1/poll", &poll), watch);
    let polled: Polled = polled.json(StatusCode::OK);
    assert_eq!(polled.claimed.len(), 0, "{small}");
}

#[tokio::test]
async fn an_org_that_comes_after_one_with_as_much_is_not_waited_for_either() {
    let world = world().await;
    // Neither has anything there, and was granted nothing.
    let large = sized(&world.member(), 4 * GIB).await;
    world.clock.advance(ROOM_KEPT_AFTER);
    let free = Capacity { memory_bytes: GIB, ..world.poll().free };
    let poll = Poll { wait_ms: 60_000, claims_max: 1, free, ..world.poll() };
    let agent = world.agent();
    let watch = async {
        yielded().await;
        assert!(world.app().store.run_get(world.org, large).await.unwrap().unwrap().room_kept.is_some());
        let small = sized(&world.other_org(), SMALL).await;
        let desk = world.app().queues.desk(&world.app().wakers, org_of(&world, small).await);
        yielded().await;
        let before = desk.news();
        yielded().await;
        assert_eq!(desk.news(), before, "it goes round without a pause");
        world.app().shutdown.cancel();
    };
    let (polled, ()) = tokio::join!(agent.post("/agent/v1/poll", &poll), watch);
    let polled: Polled = polled.json(StatusCode::OK);
    assert_eq!(polled.claimed.len(), 0);
}

#[tokio::test]
async fn no_room_is_kept_for_an_org_that_is_granted_nothing() {
    let world = world().await;
    world.queue_run().await;
    let held: Vec<HeldLease> = claimed(&world, 1, &[]).await.into_iter().map(|(_, held)| held).collect();
    let large = sized(&world.other_org(), 4 * GIB).await;
    let other = org_of(&world, large).await;
    world.clock.advance(ROOM_KEPT_AFTER);
    let small = [sized(&world.member(), SMALL).await, sized(&world.member(), SMALL).await];
    limit_running(&world, other, 0).await;
    assert_eq!(given(&world, world.agent_id, &held).await, small[..1], "its turn, and at its limit");
    limit_running(&world, other, 9).await;
    assert_eq!(given(&world, world.agent_id, &held).await, []);
    limit_running(&world, other, 0).await;
    assert_eq!(given(&world, world.agent_id, &held).await, small[1..], "nor is room that was kept before");
}

#[tokio::test]
async fn an_org_has_room_kept_by_one_host_of_another_at_a_time() {
    let world = world().await;
    let second = world.another_agent().await;
    pool(&world, second).await;
    world.queue_run().await;
    let held: Vec<HeldLease> = claimed(&world, 1, &[]).await.into_iter().map(|(_, held)| held).collect();
    for _ in 0..2 {
        sized(&world.other_org(), 4 * GIB).await;
    }
    world.clock.advance(ROOM_KEPT_AFTER);
    let small = sized(&world.member(), SMALL).await;
    assert_eq!(given(&world, world.agent_id, &held).await, []);
    assert_eq!(given(&world, second, &[]).await, [small]);
    assert_eq!(given(&world, world.agent_id, &held).await, [], "it goes on to keep it");
}

#[tokio::test]
async fn runs_that_end_at_once_do_not_count_against_their_org() {
    let world = world().await;
    queue(&world.member(), 20).await;
    queue(&world.other_org(), 20).await;
    let (mut held, mut granted): (Vec<HeldLease>, Vec<OrgId>) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let (org, lease) = claimed(&world, 1, &held).await[0];
        granted.push(org);
        // Those of one org end before the next poll, and those of the other go on.
        if org == world.org {
            world.finish(lease, 1).await;
        } else {
            held.push(lease);
        }
    }
    assert_eq!(held.len(), 1, "{granted:?}");
}
