//! A server in memory with two orgs, asked through all of its layers, and what holds for each of its answers.

use axum::{Router, body::Body};
use bytes::Bytes;
use holm_api::{
    PROBLEM_JSON, REQUEST_ID,
    agent::Polled,
    problem::Problem,
    runs::{RunPage, RunView},
};
use holm_domain::{
    ErrorCode, OrgId, ProjectId, RunId, TokenId, UnixMicros,
    access::{Role, Token},
};
use holm_server::{Clock, Config, Server, auth::hash};
use holm_store::{Org, Project, Store};
use http::{HeaderMap, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use serde_json::json;
use tower::ServiceExt as _;
use uuid::Uuid;

const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);
/// The agent that is registered, and its process.
pub(crate) const AGENT: &str = "agt_00000000000000000000000007";
pub(crate) const INSTANCE: &str = "ins_00000000000000000000000001";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Admin,
    Member,
    Agent,
    /// An admin of another org.
    Stranger,
}

impl By {
    const ALL: [By; 4] = [By::Admin, By::Member, By::Agent, By::Stranger];

    fn secret(self) -> String {
        format!("holm_{self:?}")
    }
}

/// A server, and a run that its agent holds under fence 1.
pub(crate) struct World {
    router: Router,
    pub(crate) run: RunId,
}

impl World {
    pub(crate) async fn new() -> Self {
        let store = Store::memory();
        for (org, name) in [(1, "default"), (2, "other")].map(|(number, name)| (Uuid::from_u128(number), name)) {
            let made = Org { id: OrgId::from_uuid(org), name: name.to_owned(), created_at: NOW };
            store.org_create(&made).await.expect("an org");
            let project =
                Project { id: ProjectId::from_uuid(org), org: made.id, name: "default".to_owned(), created_at: NOW };
            store.project_create(&project).await.expect("a project");
        }
        for (by, number) in By::ALL.into_iter().zip(1..) {
            store.token_create(&token(by, number), &[]).await.expect("a token");
        }
        let config = Config { clock: Clock::manual(NOW), ..Config::default() };
        let router = Server::new(config, store).expect("times that can be").router();
        let world = Self { router, run: RunId::from_uuid(Uuid::nil()) };
        world.settle().await
    }

    /// Registers the agent, and has it hold a run.
    async fn settle(mut self) -> Self {
        let capacity = json!({"runs": 64, "cpus_milli": 4_000, "memory_bytes": 1_u64 << 40});
        let runtime = json!({"name": "process", "capabilities": ["root.host", "root.dir"], "unenforced": []});
        let host = json!({
            "agent": AGENT, "instance": INSTANCE, "name": "host-1", "version": "0.1.0", "capacity": capacity,
            "runtimes": [runtime],
        });
        assert_eq!(self.post(By::Agent, "/agent/v1/register", &host).await.status, StatusCode::OK);
        let work_dir = json!({"source": "/srv", "keep_changes": true});
        let spec = json!({"root": {"kind": "host"}, "argv": ["true"], "work_dir": work_dir});
        let run: RunView = self.post(By::Member, "/v1/runs", &json!({"spec": spec})).await.read();
        let poll =
            json!({"agent": AGENT, "instance": INSTANCE, "wait_ms": 0, "claims_max": 1, "free": capacity, "held": []});
        let polled: Polled = self.post(By::Agent, "/agent/v1/poll", &poll).await.read();
        assert_eq!((polled.claimed[0].run, polled.claimed[0].fence), (run.id, 1));
        self.run = run.id;
        self
    }

    /// The query of an operation under the lease whose body is not JSON.
    pub(crate) fn fenced(&self) -> String {
        format!("agent={AGENT}&instance={INSTANCE}&fence=1")
    }

    /// The runs as they are shown, those of the other org not among them.
    pub(crate) async fn shown(&self) -> Vec<RunView> {
        self.ask(By::Member, "GET", "/v1/runs", "", b"").await.expect("a path").read::<RunPage>().runs
    }

    /// The cursor after the newest run.
    pub(crate) async fn cursor(&self) -> String {
        let page: RunPage = self.ask(By::Member, "GET", "/v1/runs?limit=1", "", b"").await.expect("a path").read();
        page.next_cursor.expect("there are more")
    }

    pub(crate) async fn post(&self, by: By, path: &str, body: &serde_json::Value) -> Answer {
        self.ask(by, "POST", path, "application/json", body.to_string().as_bytes()).await.expect("a path")
    }

    /// The answer, checked; nothing if `path` is none.
    pub(crate) async fn ask(&self, by: By, method: &str, path: &str, media_type: &str, body: &[u8]) -> Option<Answer> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("authorization", format!("Bearer {}", by.secret()));
        if !media_type.is_empty() {
            request = request.header(CONTENT_TYPE, media_type);
        }
        let request = request.body(Body::from(body.to_vec())).ok()?;
        let response = self.router.clone().oneshot(request).await.expect("a router always answers");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        let answer = Answer { status: parts.status, headers: parts.headers, body };
        answer.check();
        Some(answer)
    }
}

fn token(by: By, number: u128) -> Token {
    let role = match by {
        By::Admin | By::Stranger => Role::Admin,
        By::Member => Role::Member,
        By::Agent => Role::Agent,
    };
    Token {
        id: TokenId::from_uuid(Uuid::from_u128(number)),
        org: OrgId::from_uuid(Uuid::from_u128(if by == By::Stranger { 2 } else { 1 })),
        role,
        name: format!("{by:?}"),
        hash: hash(&by.secret()),
        created_at: NOW,
        expires_at: None,
        revoked_at: None,
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// What holds for every answer: an error of the server's own is none; every other error is a problem document that
    /// names what is wrong.
    fn check(&self) {
        let said = String::from_utf8_lossy(&self.body);
        assert!(!self.status.is_server_error(), "{}: {said}", self.status);
        if !self.status.is_client_error() {
            return;
        }
        assert_eq!(self.headers[CONTENT_TYPE], PROBLEM_JSON, "{said}");
        let problem = self.problem();
        assert_eq!((problem.status, problem.status), (self.status.as_u16(), problem.code.status()), "{said}");
        assert_eq!(problem.request_id.as_deref().map(str::as_bytes), Some(self.headers[REQUEST_ID].as_bytes()));
        assert!(!problem.detail.is_empty(), "{said}");
        if problem.code == ErrorCode::InvalidField {
            let (field, value) = (problem.field.as_deref(), problem.value.as_deref());
            assert!(field.is_some_and(|field| !field.is_empty()), "{said}");
            assert!(value.is_some_and(|value| value.chars().count() <= 256), "{said}");
        }
    }

    pub(crate) fn problem(&self) -> Problem {
        serde_json::from_slice(&self.body).expect("a problem document")
    }

    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self) -> T {
        let said = String::from_utf8_lossy(&self.body);
        assert!(self.status.is_success(), "{}: {said}", self.status);
        serde_json::from_slice(&self.body).expect("what the route answers")
    }
}
