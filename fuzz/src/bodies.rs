//! Bodies of requests, through the whole server.
//!
//! The first byte says which operation the rest is for. What must hold: no body makes an error of the server's own; what
//! is refused is refused with the field and its value, and changes nothing; what is accepted says nothing that was not
//! understood, keeps to what is promised of it, and leaves a server that still answers.

use std::cell::RefCell;

use holm_api::{
    LOG_BATCH, TAR,
    agent::{AppendEvents, FinishRun, Poll, Register, Renew, SandboxEnded, StartRun},
    runs::{CancelRun, CreateRun, RunPage, RunView},
    tokens::CreateToken,
};
use holm_domain::{
    limits::{ARGS_MAX, MOUNTS_MAX},
    run::{RootSource, RunSpec, spec::OWN_PLACES},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    batches::batch,
    control_plane::{AGENT, Answer, By, INSTANCE, World},
    input::Input,
    json::{left_out, unknown},
    run,
};

/// What stands in a body for the run that the agent holds.
const RUN: &str = "run_00000000000000000000000000";

/// An operation: who asks, how, where (`RUN` and `FENCED` are filled in), and what its body is.
type Operation = (By, &'static str, &'static str, &'static str, fn(&[u8]) -> Option<String>);

const JSON: &str = "application/json";
const OPERATIONS: [Operation; 12] = [
    (By::Member, "POST", "/v1/runs", JSON, not_understood::<CreateRun>),
    (By::Member, "POST", "/v1/runs/RUN/cancel", JSON, not_understood::<CancelRun>),
    (By::Admin, "POST", "/v1/tokens", JSON, not_understood::<CreateToken>),
    (By::Agent, "POST", "/agent/v1/register", JSON, not_understood::<Register>),
    (By::Agent, "POST", "/agent/v1/poll", JSON, not_understood::<Poll>),
    (By::Agent, "POST", "/agent/v1/renew", JSON, not_understood::<Renew>),
    (By::Agent, "POST", "/agent/v1/runs/RUN/start", JSON, not_understood::<StartRun>),
    (By::Agent, "POST", "/agent/v1/runs/RUN/events", JSON, not_understood::<AppendEvents>),
    (By::Agent, "POST", "/agent/v1/runs/RUN/ended", JSON, not_understood::<SandboxEnded>),
    (By::Agent, "POST", "/agent/v1/runs/RUN/finish", JSON, not_understood::<FinishRun>),
    (By::Agent, "POST", "/agent/v1/runs/RUN/logs?FENCED", LOG_BATCH, |_| None),
    (By::Agent, "PUT", "/agent/v1/runs/RUN/changes?FENCED", TAR, |_| None),
];

/// Seeds: a body for each operation, and some that are refused.
pub fn seeds() -> Vec<Vec<u8>> {
    let spec = json!({
        "root": {"kind": "dir", "path": "/srv/image"}, "runtime": "process", "argv": ["make", "test"], "env": {"A": "b"},
        "cwd": "/work", "user": "1:1", "work_dir": {"source": "/home", "keep_changes": true},
        "mounts": [{"source": "/a", "target": "/b", "read_only": true}], "labels": {"job": "nightly"},
        "limits": {"cpus_milli": 500, "memory_bytes": 1_u64 << 30, "pids": 10, "disk_bytes": 1 << 20, "log_bytes": 4096,
            "timeout_ms": 1000},
        "require_limits": false, "allow_sudo": true, "allow": ["example.org:22", "*.example.org", "public:80"],
    });
    let host = json!({"kind": "host", "path": "/srv"});
    let capacity = json!({"runs": 4, "cpus_milli": 4000, "memory_bytes": 1_u64 << 33});
    let runtime = json!({"name": "process", "capabilities": ["root.host"], "unenforced": ["limits.disk: no quota"]});
    let sandbox = json!({"agent": AGENT, "runtime": "process", "image_digest": null, "unenforced": ["x"]});
    let outcome = json!({"kind": "failed", "reason": "command_failed", "exit": {"code": 3}, "message": "x"});
    let events = json!([{"kind": "result_refused", "problem": "x"}, {"kind": "queued"}, 7]);
    let held = json!([{"run": RUN, "fence": 1, "cancel": "terminate"}]);
    let by = json!({"agent": AGENT, "instance": INSTANCE, "fence": 1});
    let with = |more: Value| {
        let mut all = by.clone();
        for (key, value) in more.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        all
    };
    let bodies = [
        (0, json!({"project": "default", "spec": spec})),
        (0, json!({"spec": {"root": host, "argv": ["true"]}})),
        (0, json!({"spec": {"root": {"kind": "tar", "path": "x"}, "argv": [""]}})),
        (1, json!({"kill": true})),
        (2, json!({"name": "ci", "role": "member", "expires_in_s": 60})),
        (
            3,
            json!({"agent": AGENT, "instance": "ins_00000000000000000000000002", "after": INSTANCE, "name": "h",
            "version": "1", "capacity": capacity, "runtimes": [runtime], "labels": {"zone": "a"}}),
        ),
        (
            4,
            json!({"agent": AGENT, "instance": INSTANCE, "wait_ms": 9, "claims_max": 2, "free": capacity, "held": held}),
        ),
        (5, json!({"agent": AGENT, "instance": INSTANCE, "leases": held})),
        (6, json!({"instance": INSTANCE, "fence": 1, "sandbox": sandbox})),
        (7, with(json!({"first_seq": 1, "events": events}))),
        (8, with(json!({"outcome": outcome}))),
        (9, with(json!({"outcome": outcome, "usage": {"cpu_user_us": 7}, "result": {"a": 0.1}, "next_log_seq": 1}))),
    ];
    let mut seeds: Vec<_> =
        bodies.iter().map(|(what, body)| [&[*what], body.to_string().as_bytes()].concat()).collect();
    let two = [batch(1, &[b"a\n", b"b\n"]), batch(3, &[b"c\n"])].concat();
    seeds.extend([[&[10], &two[..]].concat(), [&[11], &[0; 1024][..]].concat()]);
    seeds
}

/// Sends the body.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let operation = usize::from(input.byte()) % OPERATIONS.len();
    run(send(operation, input.rest()));
}

async fn send(operation: usize, body: &[u8]) {
    thread_local! {
        /// One that no input has changed.
        static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    }
    let world = match WORLD.take() {
        Some(world) => world,
        None => World::new().await,
    };
    let (by, method, path, media_type, not_understood) = OPERATIONS[operation];
    let run = world.run.to_string();
    let path = path.replace("RUN", &run).replace("FENCED", &world.fenced());
    let body = match std::str::from_utf8(body) {
        Ok(text) => text.replace(RUN, &run).into_bytes(),
        Err(_) => body.to_vec(),
    };
    let before = world.shown().await;
    let answer = world.ask(by, method, &path, media_type, &body).await.expect("a path");
    if !answer.status.is_success() {
        assert_eq!(world.shown().await, before, "what is refused changes nothing");
        return WORLD.set(Some(world));
    }
    assert_eq!(not_understood(&body), None, "accepted with something that means nothing");
    if operation == 0 {
        admitted(&body, &answer);
    }
    let page: RunPage = world.ask(By::Member, "GET", "/v1/runs", "", b"").await.expect("a path").read();
    assert!(page.runs.iter().any(|run| run.id == world.run));
    for what in ["", "/events", "/logs"] {
        let path = format!("/v1/runs/{run}{what}");
        let answer = world.ask(By::Member, "GET", &path, "", b"").await.expect("a path");
        assert!(answer.status.is_success());
    }
}

/// The first thing in a body that was accepted and is no field of its type.
fn not_understood<T: DeserializeOwned + Serialize>(body: &[u8]) -> Option<String> {
    // What is passed over in it may be a string that is no text.
    let given: Value = serde_json::from_slice(body).unwrap_or_default();
    let read: T = serde_json::from_slice(body).expect("what was accepted is of the type");
    let read = serde_json::to_value(&read).expect("JSON");
    // What agents tell of themselves has types that answers have as well, where unknown fields are ignored.
    let known = |field: &str| match (given.get(field), read.get(field)) {
        (Some(given), Some(read)) => unknown(given, read).map(|rest| format!("{field}{rest}")),
        _ => None,
    };
    let own = given.as_object().into_iter().flatten().find(|(key, _)| read.get(key).is_none());
    own.map(|(key, _)| key.clone()).or_else(|| known("spec"))
}

fn admitted(body: &[u8], answer: &Answer) {
    let asked: CreateRun = serde_json::from_slice(body).expect("it was accepted");
    let run: RunView = answer.read();
    assert_eq!(run.spec, asked.spec);
    let (given, stored) = (serde_json::to_value(&asked.spec), serde_json::to_value(&run.spec));
    assert_eq!(left_out(&given.expect("JSON"), &stored.expect("JSON")), None);
    can_be(&run.spec);
}

/// What the agent and the shim rely on in a spec that was accepted.
fn can_be(spec: &RunSpec) {
    let is_plain = |text: &str| !text.contains('\0');
    assert!((1..=ARGS_MAX).contains(&spec.argv.len()) && !spec.argv[0].is_empty());
    assert!(spec.argv.iter().all(|argument| is_plain(argument)));
    assert!(
        spec.env
            .iter()
            .all(|(name, value)| !name.is_empty() && !name.contains('=') && is_plain(name) && is_plain(value))
    );
    let root = match &spec.root {
        RootSource::Dir { path } | RootSource::Tar { path } => Some(path),
        _ => None,
    };
    let of_mounts = spec.mounts.iter().flat_map(|mount| [&mount.source, &mount.target]);
    let paths = root
        .into_iter()
        .chain(&spec.cwd)
        .chain(spec.work_dir.as_ref().map(|work_dir| &work_dir.source))
        .chain(of_mounts);
    for path in paths {
        assert!(path.starts_with('/') && is_plain(path) && path.len() <= 4_096, "{path:?}");
        assert!(path.split('/').all(|part| part != "." && part != ".."), "{path:?}");
    }
    assert!(spec.mounts.len() <= MOUNTS_MAX);
    for mount in &spec.mounts {
        let parts = |path: &str| path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let target = parts(&mount.target);
        for own in OWN_PLACES.map(parts) {
            assert!(!own.starts_with(&target) && !target.starts_with(&own), "{mount:?}");
        }
    }
}
