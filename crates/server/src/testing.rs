//! A server with two orgs, in memory unless a test brings a store, and callers with each role, for the tests of this crate.

pub mod log;
pub mod own_key;

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use bytes::Bytes;
use holm_api::{
    LOG_BATCH, PROBLEM_JSON, TAR,
    agent::{AppendEvents, Appended, FinishRun, HeldLease, Poll, Polled, Register, Renew, SandboxEnded, StartRun},
    logs::LogEntry,
    problem::Problem,
    run_secrets::{AskSecrets, Asking},
    runs::RunView,
};
use holm_domain::{
    AgentId, ErrorCode, InstanceId, OrgId, RunId, UnixMicros,
    access::Role,
    access::Token,
    host::{Capacity, RuntimeInfo},
    lease::Claimant,
    log::{BatchBuilder, Stream},
    org_limits::OrgLimits,
    run::{Event, EventKind, ExitStatus, Outcome, SandboxInfo},
};
use holm_store::{Org, Project, Store};
use http::{
    HeaderMap, Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::BodyExt as _;
use secrecy::ExposeSecret as _;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tower::ServiceExt as _;
use uuid::Uuid;

use crate::{
    Config, SealingKey, Server, Wanted, app::App, bootstrap, clock::Clock, config::ServeLimits, ids, keys_begin,
    ops::tokens::token_issue,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server in memory with two orgs.
pub struct World {
    server: Server,
    pub clock: Clock,
    pub org: OrgId,
    pub agent_id: AgentId,
    pub instance: InstanceId,
    admin: String,
    member: String,
    agent: String,
    other_admin: String,
    other_agent: String,
}

impl World {
    pub async fn new() -> Self {
        Self::with_limits(|_| {}).await
    }

    pub async fn with_limits(change: impl FnOnce(&mut ServeLimits)) -> Self {
        Self::with_config(|config| change(&mut config.limits)).await
    }

    pub async fn with_config(change: impl FnOnce(&mut Config)) -> Self {
        Self::on_store(Store::memory(), change).await
    }

    pub async fn on_store(store: Store, change: impl FnOnce(&mut Config)) -> Self {
        let clock = Clock::manual(UnixMicros(1_700_000_000_000_000));
        let mut config =
            Config { clock: clock.clone(), root_key: Some(SealingKey::new([7; 32].into())), ..Config::default() };
        // What comes back to the queue is granted at once; where it pauses, a test says so.
        config.lease.retry_pause = Duration::ZERO;
        // Its clock stands still, and some tests submit as many as they can.
        config.org_limits = Some(OrgLimits { submits_per_minute: 1 << 40, ..OrgLimits::default() });
        change(&mut config);
        let made = bootstrap(&store, &clock, Wanted { admin: true, agent: true }).await.unwrap();
        if let Some(root) = &config.root_key {
            keys_begin(&store, &clock, root).await.unwrap();
        }
        let other = org_make(&store, &clock, "other").await;
        let issue = |org, role| {
            let (store, clock) = (store.clone(), clock.clone());
            async move {
                let (_, secret) = token_issue(&store, &clock, org, role, "test".into(), None).await.unwrap();
                secret.expose_secret().to_owned()
            }
        };
        let world = Self {
            member: issue(made.org, Role::Member).await,
            other_admin: issue(other, Role::Admin).await,
            other_agent: issue(other, Role::Agent).await,
            server: Server::new(config, store.clone()).unwrap(),
            clock: clock.clone(),
            org: made.org,
            agent_id: AgentId::from_uuid(Uuid::from_u128(7)),
            instance: InstanceId::from_uuid(Uuid::from_u128(1)),
            admin: made.admin.unwrap().expose_secret().to_owned(),
            agent: made.agent.unwrap().expose_secret().to_owned(),
        };
        let answer = world.agent().post("/agent/v1/register", &world.registration()).await;
        assert_eq!(answer.status, StatusCode::OK);
        world
    }

    /// Another server takes the place of this one, on the same store, and reads the clock anew.
    pub fn restart(&mut self) {
        self.clock = self.clock.after_restart();
        let config = Config { clock: self.clock.clone(), ..self.app().config.clone() };
        self.server = Server::new(config, self.app().store.clone()).unwrap();
    }

    pub fn into_server(self) -> Server {
        self.server
    }

    pub fn app(&self) -> &Arc<App> {
        &self.server.app
    }

    pub fn with_secret(&self, secret: &str) -> Caller {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {secret}").parse().unwrap());
        Caller { router: self.server.router(), headers }
    }

    /// Somebody with a token who asks another server on the same store.
    pub fn with_secret_at(&self, other: &Server, secret: &str) -> Caller {
        Caller { router: other.router(), ..self.with_secret(secret) }
    }

    pub fn nobody(&self) -> Caller {
        Caller { router: self.server.router(), headers: HeaderMap::new() }
    }

    pub fn admin(&self) -> Caller {
        self.with_secret(&self.admin)
    }

    pub fn member(&self) -> Caller {
        self.with_secret(&self.member)
    }

    pub fn member_secret(&self) -> &str {
        &self.member
    }

    pub fn agent_secret(&self) -> &str {
        &self.agent
    }

    /// The agent as it asks another server on the same store.
    pub fn agent_at(&self, other: &Server) -> Caller {
        Caller { router: other.router(), ..self.agent() }
    }

    /// The member as it asks another server on the same store.
    pub fn member_at(&self, other: &Server) -> Caller {
        Caller { router: other.router(), ..self.member() }
    }

    pub fn agent(&self) -> Caller {
        self.with_secret(&self.agent)
    }

    pub fn other_org(&self) -> Caller {
        self.with_secret(&self.other_admin)
    }

    pub fn other_org_secret(&self) -> &str {
        &self.other_admin
    }

    pub fn other_org_agent_secret(&self) -> &str {
        &self.other_agent
    }

    pub fn other_org_agent(&self) -> Caller {
        self.with_secret(&self.other_agent)
    }

    /// Another token with the role `agent` in the same org.
    pub async fn second_agent(&self) -> Caller {
        self.another(Role::Agent).await
    }

    /// A token with the role `monitor` in the same org.
    pub async fn monitor(&self) -> Caller {
        self.another(Role::Monitor).await
    }

    /// The secrets of a member and of an agent of a third org.
    pub async fn third_org_secrets(&self) -> [String; 2] {
        let (store, clock) = (&self.app().store, &self.clock);
        let org = org_make(store, clock, "third").await;
        let issue = async |role| {
            let (_, secret) = token_issue(store, clock, org, role, "third".into(), None).await.unwrap();
            secret.expose_secret().to_owned()
        };
        [issue(Role::Member).await, issue(Role::Agent).await]
    }

    async fn another(&self, role: Role) -> Caller {
        let (store, clock) = (&self.app().store, &self.clock);
        let (_, secret) = token_issue(store, clock, self.org, role, "another".into(), None).await.unwrap();
        self.with_secret(secret.expose_secret())
    }

    /// The token of [`World::agent`], as it is stored.
    pub async fn agent_token(&self) -> holm_domain::access::Token {
        self.app().store.token_by_hash(&crate::auth::hash(&self.agent)).await.unwrap().unwrap()
    }

    /// Revokes the token of [`World::agent`], as another server on the same store would.
    pub async fn revoke_agent_token(&self) {
        self.revoke(&self.agent).await;
    }

    /// Revokes the token of [`World::member`], as another server on the same store would.
    pub async fn revoke_member_token(&self) {
        self.revoke(&self.member).await;
    }

    async fn revoke(&self, secret: &str) {
        let token = self.token(secret).await;
        self.app().store.token_revoke(self.org, token.id, self.clock.now(), &[]).await.unwrap();
    }

    /// The token of [`member`](Self::member).
    pub async fn member_token(&self) -> Token {
        self.token(&self.member).await
    }

    async fn token(&self, secret: &str) -> Token {
        self.app().store.token_by_hash(&crate::auth::hash(secret)).await.unwrap().unwrap()
    }

    pub fn registration(&self) -> Register {
        let runtime = RuntimeInfo {
            name: "process".into(),
            capabilities: ["root.host", "root.dir"].map(str::to_owned).into(),
            unenforced: Vec::new(),
        };
        Register {
            agent: self.agent_id,
            instance: self.instance,
            after: None,
            name: "host-1".into(),
            version: "0.1.0".into(),
            capacity: self.poll().free,
            runtimes: vec![runtime],
            labels: [("zone".to_owned(), "a".to_owned())].into(),
        }
    }

    /// Another agent of the org, which registers with the same token.
    pub async fn another_agent(&self) -> AgentId {
        let agent = AgentId::from_uuid(Uuid::from_u128(9));
        let body = Register { agent, ..self.registration() };
        assert_eq!(self.agent().post("/agent/v1/register", &body).await.status, StatusCode::OK);
        agent
    }

    /// A poll that claims up to 64 runs and does not wait.
    pub fn poll(&self) -> Poll {
        let free = Capacity { runs: 64, cpus_milli: 4_000, memory_bytes: 1 << 40 };
        Poll { agent: self.agent_id, instance: self.instance, wait_ms: 0, claims_max: 64, free, held: Vec::new() }
    }

    pub async fn queue_run(&self) -> RunId {
        self.queue(json!({"root": {"kind": "host"}, "argv": ["true"]})).await
    }

    /// A run that keeps the changes of its work dir.
    pub async fn queue_keeping_run(&self) -> RunId {
        let work_dir = json!({"source": "/srv", "keep_changes": true});
        self.queue(json!({"root": {"kind": "host"}, "argv": ["true"], "work_dir": work_dir})).await
    }

    pub async fn queue(&self, spec: serde_json::Value) -> RunId {
        self.member().post("/v1/runs", &json!({ "spec": spec })).await.json::<RunView>(StatusCode::CREATED).id
    }

    /// The same, claimed.
    pub async fn claim_keeping_run(&self) -> HeldLease {
        let id = self.queue_keeping_run().await;
        let held = self.claim().await;
        assert_eq!(held.run, id);
        held
    }

    /// Claims the oldest queued run.
    pub async fn claim(&self) -> HeldLease {
        let poll = Poll { claims_max: 1, ..self.poll() };
        let polled: Polled = self.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
        HeldLease { run: polled.claimed[0].run, fence: polled.claimed[0].fence, cancel: None }
    }

    /// The run token of a run that is submitted and claimed now.
    pub async fn claim_token(&self) -> String {
        self.queue_run().await;
        let poll = Poll { claims_max: 1, ..self.poll() };
        let polled: Polled = self.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
        polled.claimed[0].run_token.as_ref().unwrap().expose().to_owned()
    }

    pub async fn claim_run(&self) -> HeldLease {
        let id = self.queue_run().await;
        let held = self.claim().await;
        assert_eq!(held.run, id);
        held
    }

    /// The path of an operation under a lease whose body is not JSON.
    pub fn fenced(&self, held: HeldLease, operation: &str) -> String {
        let HeldLease { run, fence, .. } = held;
        format!("/agent/v1/runs/{run}/{operation}?agent={}&instance={}&fence={fence}", self.agent_id, self.instance)
    }

    pub async fn append_log(&self, held: HeldLease, first: u64, lines: &[&str]) {
        self.append(held, batch(first, lines), first + lines.len() as u64).await;
    }

    /// Lines of a time.
    pub async fn append_log_at(&self, held: HeldLease, first: u64, at: i64, lines: &[&str]) {
        self.append(held, batch_at(first, UnixMicros(at), lines), first + lines.len() as u64).await;
    }

    async fn append(&self, held: HeldLease, batch: Vec<u8>, next: u64) {
        let path = self.fenced(held, "logs");
        let appended: Appended = self.agent().send("POST", &path, LOG_BATCH, batch).await.json(StatusCode::OK);
        assert_eq!(appended.next_seq, next);
    }

    pub async fn put_changes(&self, held: HeldLease, archive: &[u8]) {
        let path = self.fenced(held, "changes");
        assert_eq!(self.agent().send("PUT", &path, TAR, archive.to_vec()).await.status, StatusCode::NO_CONTENT);
    }

    pub async fn finish(&self, held: HeldLease, next_log_seq: u64) {
        let outcome = Outcome::exited(ExitStatus::Code(0));
        let (agent, instance) = (self.agent_id, self.instance);
        let body = FinishRun { agent, instance, fence: held.fence, outcome, usage: None, result: None, next_log_seq };
        let path = format!("/agent/v1/runs/{}/finish", held.run);
        assert_eq!(self.agent().post(&path, &body).await.status, StatusCode::NO_CONTENT);
    }
}

impl World {
    /// Has `caller` ask for every operation under a lease as the process `by`, each of which is refused with `code`.
    pub async fn every_operation(&self, caller: &Caller, by: Claimant, held: HeldLease, code: ErrorCode) {
        let Claimant { agent, instance } = by;
        let poll = Poll { agent, instance, ..self.poll() };
        caller.post("/agent/v1/poll", &poll).await.problem(code);
        let renew = Renew { agent, instance, leases: vec![held.into()] };
        caller.post("/agent/v1/renew", &renew).await.problem(code);
        self.every_word(caller, by, held, code).await;
    }

    /// The same, for what is said of one run.
    pub async fn every_word(&self, caller: &Caller, by: Claimant, held: HeldLease, code: ErrorCode) {
        let (Claimant { agent, instance }, fence) = (by, held.fence);
        let path = |operation: &str| format!("/agent/v1/runs/{}/{operation}", held.run);
        let query = format!("?agent={agent}&instance={instance}&fence={fence}");
        let sandbox = SandboxInfo { agent, runtime: "process".into(), image_digest: None, unenforced: Vec::new() };
        caller.post(&path("start"), &StartRun { instance, fence, sandbox }).await.problem(code);
        let logs = path("logs") + &query;
        caller.send("POST", &logs, LOG_BATCH, batch(1, &["a\n"])).await.problem(code);
        let key = Asking::new().unwrap().key();
        caller.post(&path("secrets"), &AskSecrets { agent, instance, fence, key }).await.problem(code);
        let events = vec![EventKind::ResultRefused { problem: "no".into() }.into()];
        let events = AppendEvents { agent, instance, fence, first_seq: 1, events };
        caller.post(&path("events"), &events).await.problem(code);
        let changes = path("changes") + &query;
        caller.send("PUT", &changes, TAR, vec![0; 10]).await.problem(code);
        let outcome = Outcome::exited(ExitStatus::Code(0));
        let ended = SandboxEnded { agent, instance, fence, outcome: outcome.clone() };
        caller.post(&path("ended"), &ended).await.problem(code);
        let finish = FinishRun { agent, instance, fence, outcome, usage: None, result: None, next_log_seq: 1 };
        caller.post(&path("finish"), &finish).await.problem(code);
    }
}

/// An org with a project.
async fn org_make(store: &Store, clock: &Clock, name: &str) -> OrgId {
    let org = Org { id: ids::org(), name: name.into(), created_at: clock.now() };
    store.org_create(&org).await.unwrap();
    let project = Project { id: ids::project(), org: org.id, name: "default".into(), created_at: clock.now() };
    store.project_create(&project).await.unwrap();
    org.id
}

/// A batch of lines of stdout; one without its line feed goes on.
pub fn batch(first: u64, lines: &[&str]) -> Vec<u8> {
    batch_at(first, UnixMicros(1), lines)
}

fn batch_at(first: u64, at: UnixMicros, lines: &[&str]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(first);
    for line in lines {
        assert!(builder.push(at, Stream::Stdout, !line.ends_with('\n'), line.as_bytes()));
    }
    let mut bytes = Vec::new();
    builder.finish(|made| std::io::Write::write_all(&mut bytes, made)).unwrap();
    bytes
}

/// Somebody who asks, with headers that go with every request.
#[derive(Clone)]
pub struct Caller {
    router: Router,
    headers: HeaderMap,
}

impl Caller {
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send_body("GET", path, "", Body::empty()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send_body("DELETE", path, "", Body::empty()).await
    }

    pub async fn post<T: Serialize>(&self, path: &str, body: &T) -> Answer {
        self.send("POST", path, "application/json", serde_json::to_vec(body).unwrap()).await
    }

    pub async fn put<T: Serialize>(&self, path: &str, body: &T) -> Answer {
        self.send("PUT", path, "application/json", serde_json::to_vec(body).unwrap()).await
    }

    pub async fn send(&self, method: &str, path: &str, media_type: &str, body: Vec<u8>) -> Answer {
        self.send_body(method, path, media_type, Body::from(body)).await
    }

    pub async fn send_body(&self, method: &str, path: &str, media_type: &str, body: Body) -> Answer {
        let response = self.ask(method, path, media_type, body).await;
        let (parts, body) = response.into_parts();
        let streams = parts.headers.get(CONTENT_TYPE).is_some_and(|given| given == crate::http::follow::EVENT_STREAM);
        assert!(!streams, "{path} streams: use `follow`");
        let collected = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body: collected.unwrap().to_bytes() }
    }

    async fn ask(&self, method: &str, path: &str, media_type: &str, body: Body) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path).body(body).unwrap();
        *request.headers_mut() = self.headers.clone();
        if !media_type.is_empty() {
            request.headers_mut().insert(CONTENT_TYPE, media_type.parse().unwrap());
        }
        tokio::time::timeout(PATIENCE, self.router.clone().oneshot(request)).await.unwrap().unwrap()
    }

    pub async fn follow(&self, path: &str) -> Followed {
        let response = self.ask("GET", path, "", Body::empty()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CONTENT_TYPE], crate::http::follow::EVENT_STREAM);
        Followed { body: response.into_body(), text: String::new() }
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn json<T: DeserializeOwned>(self, status: StatusCode) -> T {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The problem, after a check of everything that every problem has.
    #[track_caller]
    pub fn problem(self, code: ErrorCode) -> Problem {
        assert_eq!(self.headers[CONTENT_TYPE], PROBLEM_JSON, "{}", String::from_utf8_lossy(&self.body));
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!((problem.code, self.status.as_u16()), (code, code.status()), "{problem}");
        assert_eq!((problem.status, problem.title.as_str()), (code.status(), code.title()));
        let id = self.headers[holm_api::REQUEST_ID].to_str().unwrap();
        assert_eq!(problem.request_id.as_deref(), Some(id));
        problem
    }
}

/// A live stream.
pub struct Followed {
    body: Body,
    text: String,
}

impl Followed {
    /// The next `count` events, each as its id, its name, and what it says.
    pub async fn events(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.next().await {
                Some(event) => events.push(event),
                None => panic!("the stream ended after {events:?}"),
            }
        }
        events
    }

    /// Everything until the stream ends.
    pub async fn rest(mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                match shorten(&event) {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event comes in time")?;
            let bytes = frame.unwrap().into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
}

/// `1 log text` of an event; nothing of a comment.
pub fn shorten(event: &str) -> Option<String> {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let (id, name, data) = (field("id").unwrap_or("-"), field("event")?, field("data")?);
    let said = match name {
        "log" => serde_json::from_str::<LogEntry>(data).unwrap().text.unwrap(),
        "event" => {
            serde_json::from_str::<Event>(data).unwrap();
            serde_json::from_str::<serde_json::Value>(data).unwrap()["kind"].as_str().unwrap().to_owned()
        }
        _ => data.to_owned(),
    };
    Some(format!("{id} {name} {said}"))
}
