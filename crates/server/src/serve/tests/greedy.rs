//! Clients that take and do not give: answers that are not read, bodies that do not come, connections that say nothing.

use super::*;
use holm_api::{
    agent::{HeldLease, Poll},
    logs::LogPage,
};

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
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
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
    until(|| app.streams.open(world.org) == 1).await;
    until(|| app.streams.open(world.org) == 0).await;
    drop(stream);
    assert_eq!(serving.end().await, 0);
}

#[tokio::test]
async fn who_reads_slowly_gets_all_of_it() {
    let write_timeout = Duration::from_secs(1);
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
            tokio::time::sleep(write_timeout / 10).await;
        }
    }
    assert!(begun.elapsed() > 3 * write_timeout, "it was read slowly: {:?}", begun.elapsed());
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
    let poll = Request::post("/agent/v1/poll")
        .header("host", "holm")
        .header(AUTHORIZATION, format!("Bearer {}", world.agent_secret()))
        .header("content-type", "application/json")
        .body(Body::from(serde_json::to_vec(&poll).unwrap()))
        .unwrap();
    let begun = Instant::now();
    assert_eq!(serving.ask(poll).await.status(), StatusCode::OK);
    assert!(begun.elapsed() > 10 * write_timeout, "it waited: {:?}", begun.elapsed());
    world.append_log(held, 1, &["a\n"]).await;
    assert_eq!(read(&mut stream, 1).await.0, ["1 log a\n"]);
    serving.end().await;
}
