//! Clients that take and do not give: answers that are not read, bodies that do not come.

use holm_api::{
    agent::{HeldLease, Poll, Renew, RenewLease, Renewed},
    logs::LogPage,
    runs::RunView,
};
use holm_domain::run::{LiveUsage, RunState};
use http::header::RETRY_AFTER;
use serde_json::json;
use tokio::net::TcpSocket;

use super::*;
use crate::config::{HELD_FREE_BYTES, LEASES_MAX};

/// A page of such a log has more, as each of its bytes is written as six.
const PAGE_BYTES: usize = 3 * 15 * 60_000 * 6;

/// A log of which a page is more than sockets hold.
async fn append_much(world: &World, held: HeldLease) {
    let line = format!("{}\n", "\u{1}".repeat(60_000));
    for first in [1, 16, 31] {
        world.append_log(held, first, &[line.as_str(); 15]).await;
    }
}

fn logs(held: HeldLease) -> String {
    format!("/v1/runs/{}/logs?limit=10000", held.run)
}

/// A connection on which this was sent, and from which nothing is read.
async fn sent(serving: &Serving, head: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // Without it the kernel may take all of a page.
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut stream = socket.connect(serving.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

fn head(method: &str, path: &str, secret: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: holm\r\nauthorization: Bearer {secret}\r\n{more}\r\n")
}

#[tokio::test]
async fn who_does_not_read_is_cut_and_gives_back_what_was_held() {
    let world = World::with_limits(|limits| limits.write_timeout = Duration::from_millis(200)).await;
    let held = world.claim_run().await;
    append_much(&world, held).await;
    let serving = Serving::begin(&world).await;
    let app = world.app();

    let follow = format!("/v1/runs/{}/logs/follow", held.run);
    let stream = sent(&serving, &head("GET", &follow, world.member_secret(), "")).await;
    until(|| app.streams.open_of(world.org) == 1).await;
    until(|| app.streams.open_of(world.org) == 0).await;

    let page = sent(&serving, &head("GET", &logs(held), world.member_secret(), "")).await;
    until(|| app.held.others.open_of(world.org) > PAGE_BYTES).await;
    until(|| app.held.others.total() == 0).await;
    drop((stream, page));
    assert_eq!(serving.end().await, 0);
}

#[tokio::test]
async fn who_reads_slowly_gets_all_of_it() {
    let write_timeout = Duration::from_secs(3);
    let world = World::with_limits(|limits| limits.write_timeout = write_timeout).await;
    let held = world.claim_run().await;
    append_much(&world, held).await;
    let serving = Serving::begin(&world).await;
    let begun = Instant::now();
    let mut answer = serving.ask(empty(get(world.member_secret(), &logs(held)))).await;
    let (mut page, mut paused_at) = (Vec::new(), 0);
    while let Some(frame) = timeout(PATIENCE, answer.body_mut().frame()).await.unwrap() {
        page.extend_from_slice(frame.expect("the connection lives").data_ref().unwrap());
        if page.len() - paused_at > PAGE_BYTES / 50 {
            paused_at = page.len();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert!(begun.elapsed() > write_timeout, "it was read slowly: {:?}", begun.elapsed());
    assert!(page.len() > PAGE_BYTES);
    assert_eq!(serde_json::from_slice::<LogPage>(&page).unwrap().last_seq, 45);
    serving.end().await;
}

#[tokio::test]
async fn who_waits_for_something_to_read_is_not_cut() {
    let write_timeout = Duration::from_millis(20);
    let world = World::with_limits(|limits| limits.write_timeout = write_timeout).await;
    let held = world.claim_run().await;
    let serving = Serving::begin(&world).await;
    let path = format!("/v1/runs/{}/logs/follow", held.run);
    let mut stream = serving.ask(empty(get(world.member_secret(), &path))).await;
    let poll = Poll { wait_ms: 500, held: vec![held], ..world.poll() };
    let poll = post(world.agent_secret(), "/agent/v1/poll", &poll);
    let begun = Instant::now();
    assert_eq!(serving.ask(poll).await.status(), StatusCode::OK);
    assert!(begun.elapsed() > 10 * write_timeout, "it waited: {:?}", begun.elapsed());
    world.append_log(held, 1, &["a\n"]).await;
    assert_eq!(read(&mut stream, 1).await.0, ["1 log a\n"]);
    serving.end().await;
}

#[tokio::test]
async fn an_org_holds_so_much_of_answers_that_are_not_read() {
    let world = World::with_limits(|limits| limits.held_bytes_per_org_max = 1024 * 1024).await;
    let held = world.claim_run().await;
    append_much(&world, held).await;
    let spec = json!({"spec": {"root": {"kind": "host"}, "argv": ["true", "a".repeat(100_000)]}});
    let large: RunView = world.member().post("/v1/runs", &spec).await.json(StatusCode::CREATED);
    let serving = Serving::begin(&world).await;
    let page = sent(&serving, &head("GET", &logs(held), world.member_secret(), "")).await;
    until(|| world.app().held.others.open_of(world.org) > 0).await;
    let refused = world.member().get(&logs(held)).await;
    assert_eq!(refused.headers[RETRY_AFTER], "1");
    refused.problem(ErrorCode::TooMany);
    let small = format!("/v1/runs/{}", held.run);
    assert_eq!(world.member().get(&small).await.status, StatusCode::OK);
    let (member, cancel) = (world.member(), format!("/v1/runs/{}/cancel", large.id));
    member.post(&cancel, &json!({})).await.problem(ErrorCode::TooMany);
    let stored = world.app().store.run_get(world.org, large.id).await.unwrap().unwrap();
    assert_eq!(stored.cancel, None, "what is not told is not done");
    drop(page);
    until(|| world.app().held.others.total() == 0).await;
    member.post(&cancel, &json!({})).await.json::<RunView>(StatusCode::OK);
    until(|| world.app().held.others.total() == 0).await;
    assert_eq!(world.member().get(&logs(held)).await.status, StatusCode::OK);
    serving.end().await;
}

#[tokio::test]
async fn an_org_holds_so_much_of_bodies_that_do_not_come_and_its_agents_do_not_feel_it() {
    let world = World::with_limits(|limits| limits.held_bytes_per_org_max = 100_000).await;
    let held = world.claim_run().await;
    let serving = Serving::begin(&world).await;
    let more = "content-type: application/json\r\ncontent-length: 90000\r\n";
    let body = sent(&serving, &head("POST", "/v1/runs", world.member_secret(), more)).await;
    until(|| world.app().held.others.open_of(world.org) == 90_000).await;
    let spaces = || vec![b' '; 90_000];
    let post =
        async |caller: crate::testing::Caller| caller.send("POST", "/v1/runs", "application/json", spaces()).await;
    post(world.member()).await.problem(ErrorCode::TooMany);
    post(world.other_org()).await.problem(ErrorCode::InvalidRequest);
    world.queue_run().await;
    let line = format!("{}\n", "a".repeat(30_000));
    world.append_log(held, 1, &[line.as_str(); 3]).await;
    drop(body);
    until(|| world.app().held.others.total() == 0).await;
    post(world.member()).await.problem(ErrorCode::InvalidRequest);
    serving.end().await;
}

#[tokio::test]
async fn what_agents_append_keeps_no_lease_from_being_renewed_and_no_run_is_claimed_that_cannot_be_told() {
    let world = World::with_limits(|limits| limits.held_bytes_per_org_max = 200_000).await;
    let held = world.claim_run().await;
    let spec = json!({"spec": {"root": {"kind": "host"}, "argv": ["true", "a".repeat(100_000)]}});
    let large: RunView = world.member().post("/v1/runs", &spec).await.json(StatusCode::CREATED);
    let serving = Serving::begin(&world).await;
    let more = "content-type: application/vnd.holm.log-batch\r\ncontent-length: 190000\r\n";
    let append = sent(&serving, &head("POST", &world.fenced(held, "logs"), world.agent_secret(), more)).await;
    until(|| world.app().held.agents.open_of(world.org) == 190_000).await;
    let (agent, member) = (world.agent(), world.member());

    let usage = LiveUsage { cpu_us: Some(u64::MAX), memory_bytes: Some(u64::MAX), ..LiveUsage::default() };
    let lease = RenewLease { run: held.run, fence: held.fence, usage: Some(usage) };
    let renew = Renew { agent: world.agent_id, instance: world.instance, leases: vec![lease; LEASES_MAX] };
    assert!(serde_json::to_vec(&renew).unwrap().len() > HELD_FREE_BYTES);
    let renewed: Renewed = agent.post("/agent/v1/renew", &renew).await.json(StatusCode::OK);
    assert!(renewed.leases.iter().all(|lease| lease.ttl_ms.is_some()));
    agent.post("/agent/v1/poll", &world.poll()).await.problem(ErrorCode::TooMany);
    let stored = world.app().store.run_get(world.org, large.id).await.unwrap().unwrap();
    assert_eq!(stored.state, RunState::Queued);
    member.post(&format!("/v1/runs/{}/cancel", held.run), &json!({})).await.json::<RunView>(StatusCode::OK);
    let poll = Poll { held: vec![held], ..world.poll() };
    let told: Polled = agent.post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
    assert_eq!((told.claimed.len(), told.directives.len()), (0, 1), "what can be told is");
    drop(append);
    until(|| world.app().held.agents.total() == 0).await;
    assert_eq!(world.claim().await.run, large.id);
    serving.end().await;
}
