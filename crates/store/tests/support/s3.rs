//! An S3 server of one test's own, with a front that has faults on demand.
//!
//! The server is a real one: it checks signatures and digests, and keeps buckets as folders. It runs in this process, in
//! threads of its own, so tests that drive a binary have it as well as tests of the store.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::runtime::Runtime;

/// The credentials that it takes.
pub const KEY_ID: &str = "AKIATEST";
/// The secret of them.
pub const SECRET: &str = "a-secret/of+the=tests";
/// The bucket that is there.
pub const BUCKET: &str = "holm";
/// The prefix in it. The server writes keys into names of files, and a longer one would not fit with our longest.
pub const PREFIX: &str = "f";

/// What goes wrong.
#[allow(dead_code, reason = "some of the tests that share this file do without")]
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// An error of S3: the status and the code.
    Answer(u16, &'static str),
    /// A status with nothing that S3 says.
    Bare(u16),
    /// The connection is cut once some of the request has come.
    Break,
    /// The connection is cut once the request was carried out.
    BreakAfter,
    /// No answer comes.
    Silence,
    /// Half of the answer comes, and the connection is cut.
    CutShort,
    /// Another digest of what was stored is told.
    OtherDigest,
}

struct Rule {
    method: &'static str,
    part: &'static str,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct Front {
    rules: Mutex<Vec<Rule>>,
    asked: Mutex<Vec<String>>,
}

/// A server. It ends with this.
pub struct S3Server {
    dir: tempfile::TempDir,
    port: u16,
    front: Arc<Front>,
    running: Option<Runtime>,
}

/// An address of this machine that is the test's own: its port is free when the server is started again.
fn address() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | a, b, c)
}

impl S3Server {
    /// A server with one bucket, which is empty.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("holm-test-s3-").tempdir().expect("a folder");
        fs::create_dir(dir.path().join(BUCKET)).expect("a bucket");
        let mut server = Self { dir, port: 0, front: Arc::default(), running: None };
        server.start_again();
        server
    }

    /// Starts a server that was stopped, where it was.
    pub fn start_again(&mut self) {
        let listener = TcpListener::bind((address(), self.port)).expect("a port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        self.port = listener.local_addr().expect("an address").port();
        let files = s3s_fs::FileSystem::new(self.dir.path()).expect("a folder of buckets");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let (service, front) = (builder.build(), Arc::clone(&self.front));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (service, front) = (service.clone(), Arc::clone(&front));
                let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&front), request));
                // A connection that breaks is what some tests want, and what others notice by their answer.
                tokio::spawn(async move {
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await)
                });
            }
        });
        self.running = Some(runtime);
    }

    /// Cuts all connections and listens no more.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.running.take() {
            // In a thread that may wait: once this returns, nobody has the port any more.
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10))).join();
            ended.expect("it ends");
        }
    }

    /// The bucket, as a server is told it.
    pub fn place(&self) -> String {
        format!("s3://{BUCKET}/{PREFIX}?endpoint=http://{}:{}", address(), self.port)
    }

    /// The next requests of that method whose path and query have `part` in them go wrong, so many times.
    pub fn has(&self, fault: Fault, method: &'static str, part: &'static str, times: usize) {
        self.front.rules.lock().expect("the rules").push(Rule { method, part, times, fault });
    }

    /// Nothing goes wrong any more.
    pub fn heals(&self) {
        self.front.rules.lock().expect("the rules").clear();
    }

    /// How many requests of that method came whose path and query have `part` in them.
    pub fn asked(&self, method: &str, part: &str) -> usize {
        let asked = self.front.asked.lock().expect("the requests");
        asked.iter().filter(|request| request.starts_with(method) && request.contains(part)).count()
    }

    /// The folder in which the objects of the bucket lie.
    #[allow(dead_code, reason = "some of the tests that share this file do without")]
    pub fn folder(&self) -> PathBuf {
        self.dir.path().join(BUCKET).join(PREFIX)
    }

    /// The names of parts of uploads that are neither completed nor given up.
    pub fn half_done(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("a folder").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(".upload") || name.starts_with(".tmp")).collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Front {
    /// What goes wrong with this request.
    fn fault(&self, request: &str) -> Option<Fault> {
        self.asked.lock().expect("the requests").push(request.to_owned());
        let mut rules = self.rules.lock().expect("the rules");
        let is_meant =
            |rule: &&mut Rule| rule.times > 0 && request.starts_with(rule.method) && request.contains(rule.part);
        let rule = rules.iter_mut().find(is_meant)?;
        rule.times -= 1;
        Some(rule.fault)
    }
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn answer(service: S3Service, front: Arc<Front>, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let fault = front.fault(&format!("{} {}", request.method(), request.uri()));
    match fault {
        Some(Fault::Break) => {
            let mut body = request.into_body();
            drop(body.frame().await);
            return Err("cut".into());
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Answer(status, code)) => {
            request.into_body().collect().await?;
            let text = format!(
                "<Error><Code>{code}</Code><Message>as a test wants it</Message><Signature>hunter2</Signature></Error>"
            );
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = StatusCode::from_u16(status)?;
            return Ok(response);
        }
        Some(Fault::Bare(status)) => {
            request.into_body().collect().await?;
            let mut response = Response::new(Body::from("<html>: some: proxy".to_owned()));
            *response.status_mut() = StatusCode::from_u16(status)?;
            return Ok(response);
        }
        _ => {}
    }
    let mut response = service.call(request.map(Body::from)).await.map_err(|error| format!("{error:?}"))?;
    match fault {
        Some(Fault::BreakAfter) => return Err("cut".into()),
        Some(Fault::OtherDigest) => {
            let other = HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
            response.headers_mut().insert("x-amz-checksum-sha256", other);
        }
        Some(Fault::CutShort) => {
            let (parts, body) = response.into_parts();
            let whole = body.collect().await?.to_bytes();
            let half: Result<Frame<Bytes>, Broken> = Ok(Frame::data(whole.slice(..whole.len() / 2)));
            let pieces = futures_util::stream::iter([half, Err("cut".into())]);
            response = Response::from_parts(parts, Body::http_body_unsync(StreamBody::new(pieces)));
        }
        _ => {}
    }
    Ok(response)
}
