//! What polls share of a queue.

use futures_util::{FutureExt as _, future::join_all};
use holm_api::agent::{Poll, Polled};
use holm_domain::org_limits::OrgLimit;
use http::StatusCode;
use serde_json::json;

use super::*;
use crate::{ids, testing::World};

const ROOM: Capacity = Capacity { runs: 64, cpus_milli: 1, memory_bytes: 1 << 40 };
const NO_ROOM: Capacity = Capacity { runs: 0, ..ROOM };

fn desk(world: &World) -> Arc<Desk> {
    world.app().queues.desk(&world.app().wakers, world.org)
}

async fn host(world: &World) -> Host {
    world.app().store.host_get(world.org, world.agent_id).await.unwrap().unwrap()
}

async fn offered(app: &App, desk: &Arc<Desk>, host: &Host) -> Option<Offer> {
    match desk.offer(app, host, &ROOM).await.unwrap() {
        Offered::Run(offer) => Some(offer),
        Offered::Nothing { .. } | Offered::MoreToRead => None,
    }
}

async fn claimed(world: &World, poll: &Poll) -> Vec<RunId> {
    let polled: Polled = world.agent().post("/agent/v1/poll", poll).await.json(StatusCode::OK);
    polled.claimed.into_iter().map(|claimed| claimed.run).collect()
}

async fn queue_many(world: &World, count: usize) -> Vec<RunId> {
    let mut queued = Vec::new();
    for _ in 0..count {
        queued.push(world.queue_run().await);
    }
    queued
}

#[tokio::test]
async fn a_look_is_as_long_as_runs_are_passed_over() {
    let world = World::new().await;
    queue_many(&world, QUEUE_LOOK_MAX as usize + 1).await;
    let (app, host) = (world.app(), host(&world).await);
    for passed_over in [0, 1] {
        let mut queue = Queue::new(desk(&world), None);
        while queue.left > 0 || !queue.has_looked {
            assert!(queue.go_on(app).await.unwrap());
            assert!(queue.next(&host, &NO_ROOM, app.now()).is_none());
        }
        (0..passed_over).for_each(|_| queue.pass_over(ids::run()));
        assert_eq!(queue.next(&host, &ROOM, app.now()).is_some(), passed_over > 0);
        assert!(!queue.go_on(app).await.unwrap());
    }
    let mut queue = Queue::new(desk(&world), None);
    assert!(queue.go_on(app).await.unwrap());
    assert!(queue.has_looked && queue.next(&host, &NO_ROOM, app.now()).is_none() && queue.left > 0);
    (0..QUEUE_DAMAGED_MAX).for_each(|_| queue.pass_over(ids::run()));
    assert!(!queue.go_on(app).await.unwrap(), "there are more, and too many were damaged");
}

#[tokio::test]
async fn a_look_sees_the_more_the_faster_runs_are_granted() {
    let world = World::new().await;
    queue_many(&world, 300).await;
    let (app, desk, host) = (world.app(), desk(&world), host(&world).await);
    let mut seen = Vec::new();
    for granted in [32, 64, 0, 0] {
        seen.push(desk.look(app).await.unwrap().runs.len());
        for _ in 0..granted {
            // As if it was granted by who took it: another look sees it still.
            let page = desk.state().last.clone().unwrap().kept.unwrap();
            let Step::Offer(offer) = desk.take((&page.runs, &mut 0), &mut 300, (&host, &ROOM, app.now())) else {
                panic!("there is more");
            };
            offer.settle();
        }
    }
    assert_eq!(seen, [32, 64 + 32, 128 + 64, 64]);
}

#[tokio::test]
async fn polls_at_once_share_few_looks_and_try_for_no_run_twice() {
    let world = World::new().await;
    let queued = queue_many(&world, 40).await;
    let desk = desk(&world);
    let poll = Poll { claims_max: 1, ..world.poll() };
    let polled = join_all((0..40).map(|_| claimed(&world, &poll))).await.concat();
    assert_eq!(polled.iter().collect::<std::collections::BTreeSet<_>>(), queued.iter().collect());
    assert!(desk.state().looks < 20, "{} looks", desk.state().looks);
}

#[tokio::test]
async fn a_run_that_somebody_tries_for_is_offered_again_when_nothing_comes_of_it() {
    let world = World::new().await;
    let queued = queue_many(&world, 2).await;
    let (app, desk, host) = (world.app(), desk(&world), host(&world).await);
    let first = offered(app, &desk, &host).await.unwrap();
    let second = offered(app, &desk, &host).await.unwrap();
    assert_eq!([first.run.id, second.run.id], queued[..]);
    assert!(offered(app, &desk, &host).await.is_none());
    let news = desk.news();
    first.settle();
    assert_eq!(desk.news(), news, "nobody need look again");
    drop(second);
    assert_ne!(desk.news(), news);
    assert!(desk.nudged.notified().now_or_never().is_some());
    let again = offered(app, &desk, &host).await.unwrap();
    assert_eq!(again.run.id, queued[1]);
}

#[tokio::test]
async fn what_is_put_ahead_of_what_is_known_comes_first() {
    let world = World::new().await;
    let queued = queue_many(&world, 3).await;
    let _desk = desk(&world);
    let poll = Poll { claims_max: 1, ..world.poll() };
    assert_eq!(claimed(&world, &poll).await, queued[..1]);
    let urgent = json!({ "root": { "kind": "host" }, "argv": ["true"], "priority": 10 });
    let ahead = world.queue(urgent).await;
    assert_eq!(claimed(&world, &poll).await, [ahead]);
    assert_eq!(claimed(&world, &poll).await, queued[1..2]);
}

#[tokio::test]
async fn a_run_that_comes_back_to_the_queue_is_granted_again() {
    let world = World::new().await;
    let desk = desk(&world);
    let held = world.claim_run().await;
    assert_eq!(desk.state().taken.len(), 1, "pages of before show it still");
    world.clock.advance(Duration::from_secs(40));
    crate::tasks::reap::reap(world.app()).await.unwrap();
    let again = world.claim().await;
    assert_eq!((again.run, again.fence), (held.run, 2));
}

#[tokio::test]
async fn of_polls_that_wait_one_is_granted_what_comes_and_the_others_wait_on() {
    let world = World::with_limits(|limits| limits.reread_every = Duration::from_secs(3_600)).await;
    let other = world.another_agent().await;
    let desk = desk(&world);
    let wait = |agent| Poll { agent, wait_ms: 60_000, claims_max: 1, ..world.poll() };
    let polls = [wait(world.agent_id), wait(other)];
    let submit = async {
        let mut queued = Vec::new();
        for _ in 0..2 {
            // Both listen, and what came before is granted.
            while desk.state().taken.values().any(|taken| matches!(taken, Taken::Tried)) {
                tokio::task::yield_now().await;
            }
            queued.push(world.queue_run().await);
        }
        queued
    };
    let (one, two, queued) = tokio::join!(claimed(&world, &polls[0]), claimed(&world, &polls[1]), submit);
    let mut granted = [one, two].concat();
    granted.sort_unstable();
    assert_eq!(granted, queued);
}

#[tokio::test]
async fn what_comes_goes_to_whoever_can_use_it_however_many_wait_before() {
    let world = World::with_limits(|limits| limits.reread_every = Duration::from_secs(3_600)).await;
    let (small, large) = (world.another_agent().await, world.another_agent().await);
    let wait = |agent, memory_bytes| {
        let free = Capacity { memory_bytes, ..world.poll().free };
        Poll { agent, wait_ms: 60_000, claims_max: 1, free, ..world.poll() }
    };
    let polls = [wait(world.agent_id, 1 << 20), wait(small, 1 << 20), wait(large, 1 << 40)];
    let submit = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let run = world.queue_run().await;
        // Whoever waits in vain would wait for an hour.
        while world.app().store.run_get(world.org, run).await.unwrap().unwrap().lease.is_none() {
            tokio::task::yield_now().await;
        }
        world.app().shutdown.cancel();
        run
    };
    let [one, two, three] = polls.each_ref().map(|poll| claimed(&world, poll));
    let (one, two, three, run) = tokio::join!(one, two, three, submit);
    assert_eq!((one, two, three), (vec![], vec![], vec![run]));
}

#[tokio::test]
async fn who_is_held_back_tries_once_for_each_ring_however_many_wait() {
    let world = World::with_limits(|limits| limits.reread_every = Duration::from_secs(3_600)).await;
    let held = world.claim_run().await;
    let allow = async |count| {
        world.app().store.org_limit_set(world.org, OrgLimit::RunsRunning, Some(count), &[]).await.unwrap();
        world.app().limiter.forget(world.org);
    };
    allow(1).await;
    let (desk, waiting) = (desk(&world), queue_many(&world, 3).await);
    let poll = Poll { wait_ms: 60_000, claims_max: 1, held: vec![held], ..world.poll() };
    let polls = join_all((0..5).map(|_| claimed(&world, &poll)));
    let watch = async {
        for _ in 0..2_000 {
            tokio::task::yield_now().await;
        }
        let done = || [{ desk.state().looks }, desk.news()];
        let before = done();
        for _ in 0..2_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(done(), before, "nobody looks while nothing happens");
        allow(2).await;
        world.app().wakers.ring_queue(world.org);
        while world.app().store.run_get(world.org, waiting[0]).await.unwrap().unwrap().lease.is_none() {
            tokio::task::yield_now().await;
        }
        world.app().shutdown.cancel();
    };
    let (granted, ()) = tokio::join!(polls, watch);
    assert_eq!(granted.concat(), waiting[..1]);
}

#[tokio::test]
async fn what_stands_behind_a_page_that_nobody_can_use_is_found() {
    let world = World::with_limits(|limits| limits.reread_every = Duration::from_secs(3_600)).await;
    let large = json!({ "memory_bytes": 1u64 << 30 });
    let large = json!({ "root": { "kind": "host" }, "argv": ["true"], "limits": large });
    for _ in 0..PORTION_MIN + 8 {
        world.queue(large.clone()).await;
    }
    let free = Capacity { memory_bytes: 64 << 20, ..world.poll().free };
    let poll = Poll { wait_ms: 60_000, claims_max: 1, free, ..world.poll() };
    let submit = async {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let small = json!({ "memory_bytes": 32 << 20 });
        world.queue(json!({ "root": { "kind": "host" }, "argv": ["true"], "limits": small })).await
    };
    let (granted, run) = tokio::join!(claimed(&world, &poll), submit);
    assert_eq!(granted, [run]);
}

#[tokio::test]
async fn a_desk_is_there_while_somebody_polls() {
    let world = World::new().await;
    let (one, two) = (desk(&world), desk(&world));
    assert!(Arc::ptr_eq(&one, &two));
    drop(one);
    assert_eq!(world.app().queues.0.lock().unwrap().len(), 1);
    drop(two);
    assert!(world.app().queues.0.lock().unwrap().is_empty());
}
