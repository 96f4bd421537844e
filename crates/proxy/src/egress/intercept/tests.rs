//! Clients and servers of HTTP over TLS, with the interceptor between them, over sockets of this machine.

mod credentials;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{HOST, UPGRADE},
};
use http_body_util::{BodyExt as _, Channel, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn, service::service_fn};
use hyper_util::rt::TokioExecutor;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use super::*;
use crate::egress::WaysOut;

const PATIENCE: Duration = Duration::from_secs(20);
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const NAME: &str = "up.example";
/// What a server of the test answers with.
type Said = UnsyncBoxBody<Bytes, Infallible>;

/// What came to the server.
#[derive(Debug, Clone)]
struct Came {
    method: Method,
    target: String,
    headers: HeaderMap,
    version: Version,
    body: Bytes,
    has_trailers: bool,
}

struct World {
    interceptor: Arc<Interceptor>,
    outside: Arc<Outside>,
    door: std::net::SocketAddr,
    port: u16,
    came: Arc<Mutex<Vec<Came>>>,
    told: mpsc::Receiver<Told>,
    /// How the connections to the door ended.
    ended: mpsc::UnboundedReceiver<Result<(), Refusal>>,
    /// Ends all of them when it is dropped.
    connections: Arc<Mutex<JoinSet<()>>>,
    _serving: Vec<JoinHandle<()>>,
}

fn name() -> HostName {
    HostName::from_text(NAME).unwrap()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it comes")
}

/// What trusts one authority.
fn roots(pem: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

fn speaks(roots: Arc<RootCertStore>, protocols: &[&[u8]]) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

impl World {
    /// A server that speaks `protocols`, and an interceptor that allows what `rules` say, each a method and a path.
    async fn new(rules: &[&str], protocols: &'static [&'static [u8]]) -> Self {
        Self::adding(rules, &[], protocols).await
    }

    /// The same, where credentials are for that server: each what stands after the host.
    async fn adding(rules: &[&str], credentials: &[&str], protocols: &'static [&'static [u8]]) -> Self {
        let servers = Authority::new(PATIENCE).unwrap();
        let mut config = (*servers.speaks_for(&name()).unwrap()).clone();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let came = Arc::new(Mutex::new(Vec::new()));
        let seen = came.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = server.accept().await {
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| say(request, seen.clone()));
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ends = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        let mut world = Self::before(rules, credentials, port, roots(&servers.pem())).await;
        world.came = came;
        world._serving.push(serving);
        world
    }

    /// An interceptor before what listens on a port of this machine, if anything does.
    async fn before(rules: &[&str], credentials: &[&str], port: u16, trusted: Arc<RootCertStore>) -> Self {
        let rule = |rule: &&str| {
            let (method, path) = rule.split_once(' ').unwrap();
            format!("{method} {NAME}:{port}{path}").parse().unwrap()
        };
        let ways_out =
            WaysOut { reach: vec![IpAddr::from(HERE).into()], name_servers: vec![(HERE, 53).into()], trust: None };
        let credential = |rest: &&str| format!("{NAME}:{port}{rest}").parse().unwrap();
        let credentials = credentials.iter().map(credential).collect();
        let outside = Outside::new(rules.iter().map(rule).collect(), credentials, ways_out).unwrap();
        outside.resolver().knows(&name(), HERE.into());
        let interceptor = Interceptor::new(outside.clone(), trusted, PATIENCE).unwrap();
        let door = TcpListener::bind((HERE, 0)).await.unwrap();
        let address = door.local_addr().unwrap();
        let (sender, told) = mpsc::channel(100);
        let (ends, ended) = mpsc::unbounded_channel();
        let (serves, last) = (interceptor.clone(), watch::Sender::new(false));
        let connections = Arc::<Mutex<JoinSet<()>>>::default();
        let all = connections.clone();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = door.accept().await {
                let (serves, sender, ends, last) = (serves.clone(), sender.clone(), ends.clone(), last.subscribe());
                all.lock().unwrap().spawn(async move {
                    let _nobody_asks = ends.send(serves.serve(client, (&name(), port), &sender, last).await);
                });
            }
        });
        let _serving = vec![serving];
        Self { interceptor, outside, door: address, port, came: Arc::default(), told, ended, connections, _serving }
    }

    /// A client that trusts the interceptor and asks for a name.
    async fn connects(&self, asked: &str, protocols: &[&[u8]]) -> std::io::Result<client::TlsStream<TcpStream>> {
        let connector = speaks(roots(&self.interceptor.trusted()), protocols);
        let stream = TcpStream::connect(self.door).await.unwrap();
        within(connector.connect(ServerName::try_from(asked.to_owned()).unwrap(), stream)).await
    }

    async fn sends_by_http1(&self) -> conn::http1::SendRequest<Said> {
        let stream = self.connects(NAME, &[b"http/1.1"]).await.unwrap();
        let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn sends_by_http2(&self) -> conn::http2::SendRequest<Said> {
        let stream = self.connects(NAME, &[b"h2"]).await.unwrap();
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    fn authority(&self) -> String {
        format!("{NAME}:{}", self.port)
    }

    fn asks(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(path).header(HOST, self.authority())
    }

    /// What is answered to bytes that are sent as they are, to the end.
    async fn says(&self, bytes: &str) -> String {
        let mut stream = self.connects(NAME, &[b"http/1.1"]).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _cut_off = within(stream.read_to_end(&mut answer)).await;
        String::from_utf8(answer).unwrap()
    }

    fn came(&self) -> Vec<Came> {
        std::mem::take(&mut *self.came.lock().unwrap())
    }

    async fn told(&mut self) -> ToldRequest {
        match within(self.told.recv()).await.unwrap() {
            Told::Request(told) => told,
            Told::Connection(told) => panic!("{told:?}"),
        }
    }
}

fn said(text: &'static str) -> Said {
    Full::from(text).boxed_unsync()
}

fn nothing() -> Said {
    Empty::new().boxed_unsync()
}

/// What the server says.
async fn say(mut request: Request<Incoming>, seen: Arc<Mutex<Vec<Came>>>) -> Result<Response<Said>, Infallible> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let mut came = Came {
        method: head.method,
        target: head.uri.to_string(),
        headers: head.headers,
        version: head.version,
        body: Bytes::new(),
        has_trailers: false,
    };
    let becomes_socket = came.headers.get(UPGRADE).is_some_and(|upgrade| upgrade == "websocket");
    let (sender, channel) = Channel::<Bytes, Infallible>::new(1);
    let answer = Response::builder().header("alt-svc", "h3=\":443\"").header("keep-alive", "timeout=5");
    let (answer, body) = match path.as_str() {
        "/v1/echo" => {
            tokio::spawn(echo(body, sender));
            (answer, channel.boxed_unsync())
        }
        "/v1/events" => {
            tokio::spawn(events(sender));
            (answer, channel.boxed_unsync())
        }
        "/v1/reflects" => {
            let bears = came.headers.get("authorization").cloned();
            let answer = match &bears {
                Some(bears) => answer.header("x-bears", bears),
                None => answer,
            };
            let text = bears.map(|bears| format!("you said <{}>", bears.to_str().unwrap())).unwrap_or_default();
            let answer = match came.headers.get("x-encoding") {
                Some(encoding) => answer.header("content-encoding", encoding),
                None => answer,
            };
            let answer = match came.headers.get("x-grpc-encoding") {
                Some(encoding) => answer.header("grpc-encoding", encoding),
                None => answer,
            };
            (answer, Full::from(text).boxed_unsync())
        }
        "/v1/trailers" => {
            tokio::spawn(trailers(sender, came.headers.get("authorization").cloned()));
            (answer, channel.boxed_unsync())
        }
        "/v1/socket" if becomes_socket => {
            tokio::spawn(socket(upgrade));
            let answer = answer.status(StatusCode::SWITCHING_PROTOCOLS).header(UPGRADE, "websocket");
            (answer.header("connection", "upgrade"), nothing())
        }
        "/v1/never" => {
            seen.lock().unwrap().push(came);
            return std::future::pending().await;
        }
        "/v1/put" => {
            // What broke off has not come.
            let Ok(body) = body.collect().await else { return std::future::pending().await };
            came.has_trailers = body.trailers().is_some();
            came.body = body.to_bytes();
            (answer, said("said"))
        }
        _ => (answer, said("said")),
    };
    seen.lock().unwrap().push(came);
    Ok(answer.body(body).unwrap())
}

/// Says what it hears, before it has heard all.
async fn echo(mut body: Incoming, mut sender: http_body_util::channel::Sender<Bytes>) {
    while let Some(Ok(frame)) = body.frame().await {
        if sender.send(frame).await.is_err() {
            break;
        }
    }
}

async fn events(mut sender: http_body_util::channel::Sender<Bytes>) {
    for number in 0.. {
        if sender.send_data(format!("data: {number}\n\n").into()).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn trailers(mut sender: http_body_util::channel::Sender<Bytes>, bears: Option<http::HeaderValue>) {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    let said = if bears.is_some() { "said s3cr" } else { "said" };
    trailers.extend(bears.map(|bears| (http::HeaderName::from_static("x-bears"), bears)));
    sender.send_data(said.into()).await.unwrap();
    sender.send_trailers(trailers).await.unwrap();
}

/// Says each byte and one more.
async fn socket(upgrade: hyper::upgrade::OnUpgrade) {
    let mut stream = TokioIo::new(upgrade.await.unwrap());
    while let Ok(byte) = stream.read_u8().await {
        stream.write_u8(byte + 1).await.unwrap();
    }
}

const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
const HTTP1: &[&[u8]] = &[b"http/1.1"];

fn code(body: &[u8]) -> String {
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap();
    problem["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn requests_pass_in_each_version_to_each() {
    for (protocols, version) in [(BOTH, Version::HTTP_2), (HTTP1, Version::HTTP_11)] {
        let mut world = World::new(&["GET,POST /v1"], protocols).await;
        for is_http2 in [true, false] {
            let answer = if is_http2 {
                let request = Request::post(format!("https://{}/v1/put?q=1", world.authority()));
                let request = request.header("x-own", "1").header("te", "trailers").body(said("asked")).unwrap();
                within(world.sends_by_http2().await.send_request(request)).await.unwrap()
            } else {
                let request = world.asks("POST", "/v1/put?q=1").header("x-own", "1").header("te", "trailers, deflate");
                let request = request.header("connection", "x-listed, keep-alive, te").header("x-listed", "1");
                let request = request.header("keep-alive", "5").header("proxy-authorization", "1");
                within(world.sends_by_http1().await.send_request(request.body(said("asked")).unwrap())).await.unwrap()
            };
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(!answer.headers().contains_key("alt-svc") && !answer.headers().contains_key("keep-alive"));
            assert_eq!(within(answer.collect()).await.unwrap().to_bytes(), "said");
            let came = world.came().pop().unwrap();
            assert_eq!((came.version, &came.method, &came.body[..]), (version, &Method::POST, &b"asked"[..]));
            let authority = world.authority();
            if version == Version::HTTP_2 {
                assert_eq!(came.target, format!("https://{authority}/v1/put?q=1"));
            } else {
                assert_eq!(came.target, "/v1/put?q=1");
                assert_eq!(came.headers[HOST], authority.as_str());
            }
            assert!(came.headers["x-own"] == "1" && came.headers["te"] == "trailers", "{came:?}");
            for gone in ["connection", "x-listed", "proxy-authorization", "keep-alive"] {
                assert!(!came.headers.contains_key(gone), "{gone}: {came:?}");
            }
            let told = world.told().await;
            assert_eq!((told.method.as_str(), told.path.as_str()), ("POST", "/v1/put"));
            assert_eq!((told.status, told.refused, told.sent, told.received), (Some(200), None, 5, 4));
        }
    }
}

#[tokio::test]
async fn what_no_rule_allows_is_refused_and_nothing_of_it_leaves() {
    let mut world = World::new(&["GET /v1", "POST /v1/put"], BOTH).await;
    for (method, path) in [
        ("POST", "/v1/x"),
        ("GET", "/v10"),
        ("GET", "/"),
        ("GET", "/v1/../x"),
        ("GET", "/v1/%2e%2e/x"),
        ("PUT", "/v1/put"),
    ] {
        let mut sender = world.sends_by_http1().await;
        let request = world.asks(method, path).body(said("secret")).unwrap();
        let answer = within(sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path}");
        assert_eq!(code(&within(answer.collect()).await.unwrap().to_bytes()), "not_allowed");
        let told = world.told().await;
        assert_eq!((told.refused, told.status, told.sent), (Some(Refusal::NotAllowed), None, 0), "{told:?}");
    }
    assert!(world.came().is_empty());
    let allowed = world.asks("GET", "/v1/../v1").body(nothing()).unwrap();
    let refused = within(world.sends_by_http1().await.send_request(allowed)).await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN, "what is not read in one way only is within nothing");
}

#[tokio::test]
async fn a_request_names_its_connection_or_is_refused() {
    let world = World::new(&["GET,POST,OPTIONS /"], BOTH).await;
    let at = world.authority();
    let get = |rest: &str| format!("GET /v1 HTTP/1.1\r\n{rest}\r\n");
    let cases = [
        (get("host: evil.example\r\n"), "421"),
        (get("host: up.example\r\n"), "421"),
        (get(&format!("host: {at}x\r\n")), "400"),
        (get(&format!("host: {at}\r\nhost: {at}\r\n")), "400"),
        (get(&format!("host: u@{at}\r\n")), "400"),
        (get(""), "400"),
        (get("host: \r\n"), "400"),
        (get(&format!("host: {at}\r\nx : 1\r\n")), "400"),
        (get(&format!("host: {at}\r\nx: 1\r\n 2\r\n")), "400"),
        (format!("GET https://evil.example/v1 HTTP/1.1\r\nhost: {at}\r\n\r\n"), "421"),
        (format!("GET http://{at}/v1 HTTP/1.1\r\nhost: {at}\r\n\r\n"), "421"),
        (format!("CONNECT {at} HTTP/1.1\r\nhost: {at}\r\n\r\n"), "405"),
        (format!("TRACE /v1 HTTP/1.1\r\nhost: {at}\r\n\r\n"), "405"),
        (format!("OPTIONS * HTTP/1.1\r\nhost: {at}\r\n\r\n"), "405"),
        (format!("POST /v1 HTTP/1.1\r\nhost: {at}\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"), "400"),
        (format!("POST /v1 HTTP/1.1\r\nhost: {at}\r\ncontent-length: +5\r\n\r\nhello"), "400"),
        (format!("POST /v1 HTTP/1.1\r\nhost: {at}\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n"), "400"),
        (format!("POST /v1 HTTP/1.1\r\nhost: {at}\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"), "400"),
        (get(&format!("host: {at}\r\nx: {}\r\n", "y".repeat(2 * HEAD_BYTES_MAX))), "431"),
        (get(&format!("host: {at}\r\n{}", "x: 1\r\n".repeat(HEADERS_MAX))), "431"),
    ];
    for (bytes, status) in cases {
        let answer = world.says(&bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:.300}: {answer}");
        assert!(world.came().is_empty(), "{bytes:.300}");
    }
    assert!(world.says(&get(&format!("host: {at}\r\nconnection: close\r\n"))).await.starts_with("HTTP/1.1 200 "));
    let two = format!("{}{}", get("host: evil.example\r\n"), get(&format!("host: {at}\r\n")));
    assert_eq!(world.says(&two).await.matches("HTTP/1.1").count(), 1, "what follows what was refused is not heard");
    assert_eq!(world.came().len(), 1);
    // The one way in which it is read is that in which it is passed on.
    for framing in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let head = format!("POST /v1/put HTTP/1.1\r\nhost: {at}\r\n{framing}\r\n\r\n");
        let answers = world.says(&format!("{head}3\r\nabc\r\n0\r\n\r\n{}", get(&format!("host: {at}\r\n")))).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
        let came = world.came();
        assert_eq!((came.len(), &came[0].body[..]), (1, &b"abc"[..]), "{came:?}");
    }
}

#[tokio::test]
async fn by_http2_too() {
    let world = World::new(&["GET /"], BOTH).await;
    let at = world.authority();
    let cases = [
        (format!("https://evil.example:{}/v1", world.port), None, StatusCode::MISDIRECTED_REQUEST),
        (format!("https://{NAME}/v1"), None, StatusCode::MISDIRECTED_REQUEST),
        (format!("http://{at}/v1"), None, StatusCode::MISDIRECTED_REQUEST),
        (format!("https://{at}/v1"), Some("evil.example"), StatusCode::MISDIRECTED_REQUEST),
        (format!("https://{at}/v1"), Some(at.as_str()), StatusCode::OK),
    ];
    for (target, host, status) in cases {
        let mut request = Request::get(&target).body(nothing()).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host.parse().unwrap());
        }
        let answer = within(world.sends_by_http2().await.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), status, "{target} {host:?}");
    }
    assert_eq!(world.came().len(), 1);
}

#[tokio::test]
async fn who_does_not_ask_for_the_name_by_tls_is_cut_off() {
    let mut world = World::new(&["GET /"], BOTH).await;
    assert!(world.connects("evil.example", HTTP1).await.is_err());
    assert_eq!(within(world.ended.recv()).await, Some(Err(Refusal::OtherName)));
    assert!(world.connects("127.0.0.1", HTTP1).await.is_err(), "who asks for no name");
    assert_eq!(within(world.ended.recv()).await, Some(Err(Refusal::OtherName)));
    let mut plain = TcpStream::connect(world.door).await.unwrap();
    plain.write_all(format!("GET /v1 HTTP/1.1\r\nhost: {}\r\n\r\n", world.authority()).as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    let _cut_off = within(plain.read_to_end(&mut heard)).await;
    assert!(!String::from_utf8_lossy(&heard).contains("HTTP"));
    assert_eq!(within(world.ended.recv()).await, Some(Err(Refusal::Malformed)));
    let stranger = speaks(roots(&Authority::new(PATIENCE).unwrap().pem()), HTTP1);
    let stream = TcpStream::connect(world.door).await.unwrap();
    assert!(within(stranger.connect(ServerName::try_from(NAME).unwrap(), stream)).await.is_err());
    assert_eq!(within(world.ended.recv()).await, Some(Err(Refusal::Distrusted)));
    assert!(world.came().is_empty());
}

#[tokio::test]
async fn a_greeting_in_pieces_is_read_whole() {
    let world = World::new(&["GET /"], BOTH).await;
    let (inner, mut outer) = tokio::io::duplex(1);
    let mut stream = TcpStream::connect(world.door).await.unwrap();
    stream.set_nodelay(true).unwrap();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut outer, &mut stream).await });
    let connector = speaks(roots(&world.interceptor.trusted()), HTTP1);
    let stream = within(connector.connect(ServerName::try_from(NAME).unwrap(), inner)).await.unwrap();
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = within(sender.send_request(world.asks("GET", "/v1").body(nothing()).unwrap())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_websocket_passes_and_nothing_else_becomes_of_a_connection() {
    let mut world = World::new(&["GET /v1"], BOTH).await;
    let request = |upgrade: &str| {
        let request = world.asks("GET", "/v1/socket").header("connection", "upgrade, http2-settings");
        request.header("upgrade", upgrade).header("http2-settings", "x").body(nothing()).unwrap()
    };
    let answer = within(world.sends_by_http1().await.send_request(request("websocket"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()[UPGRADE], "websocket");
    let mut socket = TokioIo::new(within(hyper::upgrade::on(answer)).await.unwrap());
    for byte in [1, 7] {
        socket.write_u8(byte).await.unwrap();
        assert_eq!(within(socket.read_u8()).await.unwrap(), byte + 1);
    }
    let came = world.came().pop().unwrap();
    assert_eq!(came.version, Version::HTTP_11);
    assert!(!came.headers.contains_key("http2-settings"));
    let h2c = within(world.sends_by_http1().await.send_request(request("h2c"))).await.unwrap();
    assert_eq!(h2c.status(), StatusCode::OK);
    assert!(!world.came().pop().unwrap().headers.contains_key(UPGRADE));
    // A rule that is withdrawn ends it, as it ends all that it allowed.
    world.outside.set_rules(Vec::new());
    assert!(within(socket.read_u8()).await.is_err());
    drop(socket);
    let told = [world.told().await, world.told().await];
    let of_socket = told.iter().find(|told| told.status == Some(101)).unwrap();
    assert_eq!((of_socket.refused, of_socket.sent, of_socket.received), (Some(Refusal::Withdrawn), 2, 2));
}

#[tokio::test]
async fn what_is_under_way_ends_with_its_rule_and_others_go_on() {
    let mut world = World::new(&["GET /v1/events", "POST /v1/echo"], BOTH).await;
    let mut sender = world.sends_by_http2().await;
    let target = |path: &str| format!("https://{}{path}", world.authority());
    let events = Request::get(target("/v1/events")).body(nothing()).unwrap();
    let mut events = within(sender.send_request(events)).await.unwrap();
    let (mut words, body) = Channel::<Bytes, Infallible>::new(1);
    let echo = Request::post(target("/v1/echo")).body(body.boxed_unsync()).unwrap();
    words.send_data("one".into()).await.unwrap();
    let mut echo = within(sender.send_request(echo)).await.unwrap();
    let data = within(events.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(data, "data: 0\n\n", "an event comes before the end of the answer");
    assert_eq!(within(echo.frame()).await.unwrap().unwrap().into_data().unwrap(), "one");
    let kept = world.outside.rules().iter().filter(|rule| rule.methods[0] == "POST").cloned().collect();
    let withdrawn = Instant::now();
    world.outside.set_rules(kept);
    let broke = async { while let Some(Ok(_)) = events.frame().await {} };
    within(broke).await;
    assert!(withdrawn.elapsed() < Duration::from_secs(1));
    assert_eq!(world.told().await.refused, Some(Refusal::Withdrawn));
    words.send_data("two".into()).await.unwrap();
    assert_eq!(within(echo.frame()).await.unwrap().unwrap().into_data().unwrap(), "two");
    drop(words);
    assert!(within(echo.collect()).await.unwrap().to_bytes().is_empty());
    let told = world.told().await;
    assert_eq!((told.refused, told.sent, told.received), (None, 6, 6));
}

#[tokio::test]
async fn what_waits_for_its_answer_ends_with_its_rule_and_with_its_connection() {
    for is_withdrawn in [true, false] {
        let mut world = World::new(&["GET /v1"], BOTH).await;
        let mut sender = world.sends_by_http2().await;
        let request = Request::get(format!("https://{}/v1/never", world.authority())).body(nothing()).unwrap();
        let asking = tokio::spawn(sender.send_request(request));
        let came = async {
            while world.came().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(came).await;
        if is_withdrawn {
            world.outside.set_rules(Vec::new());
            assert_eq!(within(asking).await.unwrap().unwrap().status(), StatusCode::FORBIDDEN);
        } else {
            world.connections.lock().unwrap().abort_all();
            assert!(within(asking).await.unwrap().is_err());
        }
        let told = within(world.told()).await;
        assert_eq!(told.refused, Some(if is_withdrawn { Refusal::Withdrawn } else { Refusal::BrokenOff }));
    }
}

#[tokio::test]
async fn half_an_upload_is_never_a_whole_one() {
    for is_http2 in [true, false] {
        for protocols in [BOTH, HTTP1] {
            let world = World::new(&["POST /v1"], protocols).await;
            let (mut words, body) = Channel::<Bytes, Infallible>::new(1);
            let asking = if is_http2 {
                let request = Request::post(format!("https://{}/v1/put", world.authority()));
                let mut sender = world.sends_by_http2().await;
                tokio::spawn(sender.send_request(request.body(body.boxed_unsync()).unwrap()))
            } else {
                let mut sender = world.sends_by_http1().await;
                let request = world.asks("POST", "/v1/put").body(body.boxed_unsync()).unwrap();
                tokio::spawn(async move { sender.send_request(request).await })
            };
            words.send_data("half".into()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.connections.lock().unwrap().abort_all();
            assert!(within(asking).await.unwrap().is_err());
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(world.came().is_empty());
        }
    }
}

#[tokio::test]
async fn a_request_that_is_taken_back_comes_to_nothing() {
    let mut world = World::new(&["POST /v1", "GET /v1"], BOTH).await;
    let authority = world.authority();
    let target = |path: &str| format!("https://{authority}{path}");
    let stream = world.connects(NAME, &[b"h2"]).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
        let request = Request::post(target("/v1/put")).body(()).unwrap();
        let (_answer, mut body) = sender.send_request(request, false).unwrap();
        body.send_data("half".into(), false).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        body.send_reset(reason);
        assert_eq!(within(world.told()).await.refused, Some(Refusal::BrokenOff));
        assert!(world.came().is_empty(), "{reason}: half an upload is no whole one");
    }
    let given_up = Request::get(target("/v1/never")).body(()).unwrap();
    drop(sender.send_request(given_up, true).unwrap());
    assert_eq!(within(world.told()).await.refused, Some(Refusal::BrokenOff));
    within(world.interceptor.at_rest()).await;
}

#[tokio::test]
async fn trailers_of_answers_pass_and_those_of_requests_do_not() {
    let world = World::new(&["GET,POST /v1"], BOTH).await;
    let mut sender = world.sends_by_http2().await;
    let target = |path: &str| format!("https://{}{path}", world.authority());
    let request = Request::get(target("/v1/trailers")).header("te", "trailers").body(nothing()).unwrap();
    let answer = within(within(sender.send_request(request)).await.unwrap().collect()).await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    let (mut words, body) = Channel::<Bytes, Infallible>::new(4);
    let mut trailers = HeaderMap::new();
    trailers.insert("authorization", "mine".parse().unwrap());
    words.send_data("word".into()).await.unwrap();
    words.send_trailers(trailers).await.unwrap();
    drop(words);
    let request = Request::post(target("/v1/put")).body(body.boxed_unsync()).unwrap();
    within(sender.send_request(request)).await.unwrap();
    let came = world.came();
    let put = came.iter().find(|came| came.method == Method::POST).unwrap();
    assert_eq!((&put.body[..], put.has_trailers), (&b"word"[..], false));
}

#[tokio::test]
async fn a_server_that_is_none_has_a_code() {
    let plain = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let gone = TcpListener::bind((HERE, 0)).await.unwrap().local_addr().unwrap().port();
    let stranger = World::new(&["GET /"], BOTH).await;
    for (port, wanted, refusal) in [
        (port, "server_without_tls", Refusal::NoTls),
        (gone, "unreachable", Refusal::Unreachable),
        (stranger.port, "server_not_trusted", Refusal::Untrusted),
    ] {
        let mut world = World::before(&["GET /"], &[], port, roots(&Authority::new(PATIENCE).unwrap().pem())).await;
        let request = world.asks("GET", "/v1").body(nothing()).unwrap();
        let answer = within(world.sends_by_http1().await.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(code(&within(answer.collect()).await.unwrap().to_bytes()), wanted);
        assert_eq!(world.told().await.refused, Some(refusal));
    }
}

#[tokio::test]
async fn an_upload_and_a_download_pass_whole_and_no_faster_than_they_are_taken() {
    let mut world = World::new(&["POST /v1"], BOTH).await;
    let (mut words, body) = Channel::<Bytes, Infallible>::new(1);
    let request = Request::post(format!("https://{}/v1/echo", world.authority())).body(body.boxed_unsync()).unwrap();
    let piece = Bytes::from(vec![7; 64 * 1024]);
    let pieces = 256;
    let sent = Arc::new(Mutex::new(0));
    let (count, one) = (sent.clone(), piece.clone());
    let sending = tokio::spawn(async move {
        for _ in 0..pieces {
            words.send_data(one.clone()).await.unwrap();
            *count.lock().unwrap() += one.len();
        }
    });
    let mut answer = within(world.sends_by_http2().await.send_request(request)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waits = *sent.lock().unwrap();
    assert!(waits < pieces * piece.len() / 2, "{waits} bytes were taken though nobody reads the answer");
    let mut heard = 0;
    while let Some(frame) = within(answer.frame()).await {
        heard += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    within(sending).await.unwrap();
    assert_eq!(heard, pieces * piece.len());
    let told = world.told().await;
    assert_eq!((told.sent, told.received), (heard as u64, heard as u64));
}

#[tokio::test]
async fn a_target_that_has_a_query_and_no_path_is_one_of_the_root() {
    for protocols in [BOTH, HTTP1] {
        let world = World::new(&["GET /"], protocols).await;
        let authority = world.authority();
        let asked = format!("GET https://{authority}?a=b HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        let answer = world.says(&asked).await;
        assert!(answer.contains(" 200 "), "{answer}");
        let target = world.came().pop().unwrap().target;
        assert_eq!(target.strip_prefix(&format!("https://{authority}")).unwrap_or(&target), "/?a=b");
    }
}
