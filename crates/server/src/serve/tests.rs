//! Over real sockets: requests, streams that are resumed, limits of connections, and the orderly end.

mod crowd;
mod greedy;

use std::{net::SocketAddr, time::Duration};

use axum::body::Body;
use holm_api::{LAST_EVENT_ID, agent::Polled};
use holm_domain::ErrorCode;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::testing::{World, shorten};

const PATIENCE: Duration = Duration::from_secs(20);

struct Serving {
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<Result<usize, ServeError>>,
}

impl Serving {
    /// Serves the same state as `world` on a TCP port of its own.
    async fn begin(world: &World) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = Server { app: Arc::clone(world.app()) };
        let server = tokio::spawn(server.serve(vec![Listener::Tcp(listener)], shutdown.clone()));
        Self { address, shutdown, server }
    }

    async fn ask(&self, request: Request<Body>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        ask_over(stream, request).await
    }

    async fn end(self) -> usize {
        self.shutdown.cancel();
        timeout(PATIENCE, self.server).await.expect("the server ends in time").unwrap().unwrap()
    }
}

async fn ask_over(stream: impl Connection + 'static, request: Request<Body>) -> Response<Incoming> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap()
}

fn get(secret: &str, path: &str) -> http::request::Builder {
    Request::get(path).header("host", "holm").header(AUTHORIZATION, format!("Bearer {secret}"))
}

fn empty(builder: http::request::Builder) -> Request<Body> {
    builder.body(Body::empty()).unwrap()
}

fn post<T: Serialize>(secret: &str, path: &str, body: &T) -> Request<Body> {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    let head = Request::post(path).header("host", "holm").header(AUTHORIZATION, format!("Bearer {secret}"));
    head.header("content-type", "application/json").body(body).unwrap()
}

/// Events until `count` have come or the stream ends; whether it ended.
async fn read(response: &mut Response<Incoming>, count: usize) -> (Vec<String>, bool) {
    let (mut text, mut events) = (String::new(), Vec::new());
    while events.len() < count {
        let Some(frame) = timeout(PATIENCE, response.body_mut().frame()).await.unwrap() else { return (events, true) };
        text.push_str(std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n") {
            events.extend(shorten(event));
            text = rest.to_owned();
        }
    }
    (events, false)
}

#[tokio::test]
async fn a_stream_survives_the_end_of_its_server() {
    let world = World::new().await;
    let held = world.claim_run().await;
    world.append_log(held, 1, &["a\n", "b\n"]).await;
    let path = format!("/v1/runs/{}/logs/follow", held.run);

    // Two servers over one store, as in a rolling upgrade.
    let store = world.app().store.clone();
    let config = crate::Config { clock: world.clock.clone(), ..crate::Config::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = Serving {
        address: listener.local_addr().unwrap(),
        shutdown: CancellationToken::new(),
        server: tokio::spawn(std::future::pending()),
    };
    let other = Server::new(config, store).unwrap();
    let served = tokio::spawn(other.serve(vec![Listener::Tcp(listener)], second.shutdown.clone()));
    let second = Serving { server: served, ..second };

    let first = Serving::begin(&world).await;
    let mut stream = first.ask(empty(get(world.member_secret(), &path))).await;
    assert_eq!(read(&mut stream, 2).await.0, ["1 log a\n", "2 log b\n"]);
    assert_eq!(first.end().await, 0, "nothing had to be cut");
    assert_eq!(read(&mut stream, 1).await, (Vec::new(), true), "no `end`: the client is to resume");

    let resumed = get(world.member_secret(), &path).header(LAST_EVENT_ID, "2");
    let mut stream = second.ask(empty(resumed)).await;
    // Appended through the first: the second is woken by nobody and finds it by itself.
    world.append_log(held, 3, &["c\n"]).await;
    assert_eq!(read(&mut stream, 1).await.0, ["3 log c\n"]);
    world.finish(held, 4).await;
    assert_eq!(read(&mut stream, 9).await, (vec!["- end {\"last_seq\":3}".to_owned()], true));
    assert_eq!(second.end().await, 0);
}

#[tokio::test]
async fn a_waiting_poll_is_answered_when_the_server_ends() {
    let world = World::new().await;
    let serving = Serving::begin(&world).await;
    let poll = holm_api::agent::Poll { wait_ms: 60_000, ..world.poll() };
    let request = post(world.agent_secret(), "/agent/v1/poll", &poll);
    let stream = TcpStream::connect(serving.address).await.unwrap();
    let asking = tokio::spawn(ask_over(stream, request));
    let begun = Instant::now();
    until(|| world.app().polls.open_of(world.org) == 1).await;
    assert_eq!(serving.end().await, 0);
    let answer = asking.await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(serde_json::from_slice::<Polled>(&body).unwrap().is_empty());
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn who_has_connected_is_answered_when_the_server_ends() {
    let world = World::new().await;
    let serving = Serving::begin(&world).await;
    // Accepted, and not accepted yet: the test has one thread, so nothing is accepted before it waits.
    let mut accepted = TcpStream::connect(serving.address).await.unwrap();
    serving.ask(empty(get(world.member_secret(), "/v1/whoami"))).await;
    let waiting = std::net::TcpStream::connect(serving.address).unwrap();
    serving.shutdown.cancel();
    waiting.set_nonblocking(true).unwrap();
    let mut waiting = TcpStream::from_std(waiting).unwrap();
    for stream in [&mut accepted, &mut waiting] {
        stream.write_all(b"GET /v1/whoami HTTP/1.1\r\nhost: holm\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it is closed").unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    assert_eq!(serving.end().await, 0, "nothing had to be cut");
}

async fn until(met: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "it did not come about in time");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_connection_that_does_not_end_is_cut() {
    let world = World::with_limits(|limits| limits.drain_timeout = Duration::from_millis(50)).await;
    let held = world.claim_keeping_run().await;
    let serving = Serving::begin(&world).await;
    let path = world.fenced(held, "changes");
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: holm\r\nauthorization: Bearer {}\r\ncontent-type: application/x-tar\r\n\
         content-length: 100\r\nexpect: 100-continue\r\n\r\n",
        world.agent_secret()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(serving.end().await, 1);
}

#[tokio::test]
async fn heads_have_a_size_and_a_time() {
    let world = World::with_limits(|limits| {
        limits.head_timeout = Duration::from_millis(50);
        limits.head_bytes_max = 8_192;
    })
    .await;
    let serving = Serving::begin(&world).await;
    let mut answer = Vec::new();

    let mut slow = TcpStream::connect(serving.address).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
    timeout(PATIENCE, slow.read_to_end(&mut answer)).await.expect("a slow head is cut").unwrap();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));

    let mut large = TcpStream::connect(serving.address).await.unwrap();
    let head = format!("GET /healthz HTTP/1.1\r\nhost: holm\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    large.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(PATIENCE, large.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    serving.end().await;
}

#[tokio::test]
async fn a_unix_socket_serves_the_same() {
    let world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("up.sock");
    let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
    let shutdown = CancellationToken::new();
    let secret = world.member_secret().to_owned();
    let server = tokio::spawn(world.into_server().serve(vec![listener], shutdown.clone()));
    let stream = UnixStream::connect(&path).await.unwrap();
    let answer = ask_over(stream, empty(get(&secret, "/v1/whoami"))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let stream = UnixStream::connect(&path).await.unwrap();
    let answer = ask_over(stream, empty(get("holm_guess", "/v1/whoami"))).await;
    assert_eq!(answer.status().as_u16(), ErrorCode::Unauthenticated.status());
    shutdown.cancel();
    assert_eq!(timeout(PATIENCE, server).await.unwrap().unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_serves_reaps() {
    let world = World::new().await;
    let held = world.claim_run().await;
    let serving = Serving::begin(&world).await;
    world.clock.advance(Duration::from_secs(36));
    let path = format!("/v1/runs/{}", held.run);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let run: holm_api::runs::RunView = world.member().get(&path).await.json(StatusCode::OK);
        if run.agent.is_none() {
            break;
        }
        assert!(Instant::now() < deadline, "an expired lease is taken away");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    serving.end().await;
}

#[tokio::test]
async fn a_server_needs_a_listener_and_times_that_can_be() {
    let world = World::new().await;
    let refused = world.into_server().serve(Vec::new(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(ServeError::NoListener)));
    let mut config = crate::Config::default();
    config.lease.ttl = Duration::ZERO;
    let refused = Server::new(config, holm_store::Store::memory()).map(drop).unwrap_err();
    assert_eq!(refused.field, "lease.ttl");
}
