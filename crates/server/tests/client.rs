//! Server, store on disk and the real client together: what one of them promises is what the others expect.

// The configuration of clippy knows tests by `cfg(test)`, which their helpers here are not under.
#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use holm_api::{
    agent::{AppendEvents, ClaimedRun, Fenced, FinishRun, HeldLease, Poll, Register, Renew, StartRun},
    client::{Client, ClientError, Endpoint},
    runs::{After, CancelRun, CreateRun, ListRuns},
};
use holm_domain::{
    AgentId, ErrorCode, InstanceId, UnixMicros,
    host::{Capacity, RuntimeInfo},
    lease::grant,
    limits::LeaseConfig,
    log::{BatchBuilder, Stream},
    run::{EventKind, ExitStatus, Outcome, RunSpec, RunState, SandboxInfo, WorkDir},
};
use holm_server::{Bootstrap, Clock, Config, Listener, ServeError, Server, Wanted, bootstrap};
use holm_store::{Blobs, Store};
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);
const FREE: Capacity = Capacity { runs: 64, cpus_milli: 4_000, memory_bytes: 1 << 40 };

struct Running {
    endpoint: Endpoint,
    shutdown: CancellationToken,
    served: JoinHandle<Result<usize, ServeError>>,
}

impl Running {
    /// A server on the socket `name` over the store in `folder`.
    async fn begin(folder: &Path, name: &str, config: Config) -> (Self, Store) {
        let store = open(folder).await;
        let path = folder.join(name);
        let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
        let shutdown = CancellationToken::new();
        let server = Server::new(config, store.clone()).unwrap();
        let served = tokio::spawn(server.serve(vec![listener], shutdown.clone()));
        (Self { endpoint: Endpoint::Unix(path), shutdown, served }, store)
    }

    async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.served).await.expect("the server ends in time").unwrap().unwrap();
    }
}

async fn open(folder: &Path) -> Store {
    let blobs = Blobs::local(&folder.join("blobs")).unwrap();
    Store::open(&format!("sqlite:{}", folder.join("holm.db").display()), blobs).await.unwrap()
}

async fn secrets(store: &Store) -> Bootstrap {
    bootstrap(store, &Clock::default(), Wanted { admin: true, agent: true }).await.unwrap()
}

fn agent(number: u8) -> AgentId {
    format!("agt_0000000000000000000000000{number}").parse().unwrap()
}

/// The process of an agent; there is one of each.
fn instance() -> InstanceId {
    InstanceId::from_uuid(uuid::Uuid::from_u128(1))
}

async fn register(client: &Client, id: AgentId) {
    let runtime =
        RuntimeInfo { name: "process".into(), capabilities: vec!["root.host".into()], unenforced: Vec::new() };
    let body = Register {
        agent: id,
        instance: instance(),
        after: None,
        name: format!("host {id}"),
        version: "0.1.0".into(),
        capacity: FREE,
        runtimes: vec![runtime],
        labels: [].into(),
    };
    client.agent_register(&body, DEADLINE).await.unwrap();
}

fn poll(id: AgentId, claims_max: u32) -> Poll {
    Poll { agent: id, instance: instance(), wait_ms: 0, claims_max, free: FREE, held: Vec::new() }
}

fn submission() -> CreateRun {
    let work_dir = Some(WorkDir { source: "/srv".to_owned(), keep_changes: true });
    CreateRun { project: None, spec: RunSpec { work_dir, ..RunSpec::new(["true"]) } }
}

/// A line that does not shrink by packing.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    });
    noise.filter(|byte| *byte != b'\n').take(length - 1).chain([b'\n']).collect()
}

fn batch(first: u64, lines: &[&[u8]]) -> Bytes {
    let mut builder = BatchBuilder::new(first);
    for line in lines {
        assert!(builder.push(UnixMicros(1), Stream::Stdout, false, line));
    }
    let mut bytes = Vec::new();
    builder.finish(|made| std::io::Write::write_all(&mut bytes, made)).unwrap();
    bytes.into()
}

/// What the agent does with a run that it claimed.
async fn execute(client: &Client, id: AgentId, claimed: &ClaimedRun) {
    let (run, fence) = (claimed.run, claimed.fence);
    let by = Fenced { agent: id, instance: instance(), fence };
    let sandbox = SandboxInfo { agent: id, runtime: "process".into(), image_digest: None, unenforced: Vec::new() };
    client.agent_start(run, &StartRun { instance: instance(), fence, sandbox }, DEADLINE).await.unwrap();
    let held = HeldLease { run, fence, cancel: None };
    let renewed = client
        .agent_renew(&Renew { agent: id, instance: instance(), leases: vec![held.into()] }, DEADLINE)
        .await
        .unwrap();
    assert_eq!(renewed.leases[0].ttl_ms, Some(30_000));
    let next = client.agent_append_logs(run, &by, batch(1, &[b"one\n", b"\xff\n"])).await.unwrap().next_seq;
    assert_eq!(next, 3);
    let refused = EventKind::EgressRefused {
        host: "example.org".into(),
        port: 443,
        protocol: "tcp".into(),
        count: 1,
        reason: None,
    };
    let events = AppendEvents { agent: id, instance: instance(), fence, first_seq: 1, events: vec![refused.into()] };
    client.agent_append_events(run, &events, DEADLINE).await.unwrap();
    let pieces = stream::iter([Ok(Bytes::from_static(b"half ")), Ok(Bytes::from_static(b"and half"))]);
    client.agent_put_changes(run, &by, pieces, 13).await.unwrap();
    let outcome = Outcome::exited(ExitStatus::Code(3));
    let (agent, instance) = (id, instance());
    let finish = FinishRun { agent, instance, fence, outcome, usage: None, result: None, next_log_seq: 3 };
    client.agent_finish(run, &finish, DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_its_whole_way() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = Running::begin(folder.path(), "a.sock", Config::default()).await;
    let made = secrets(&store).await;
    let user = Client::new(server.endpoint.clone(), made.admin.unwrap()).unwrap();
    let host = Client::new(server.endpoint.clone(), made.agent.unwrap()).unwrap();
    user.ready(DEADLINE).await.unwrap();
    register(&host, agent(1)).await;

    let run = user.run_create(&submission(), Some("key")).await.unwrap();
    assert_eq!(user.run_create(&submission(), Some("key")).await.unwrap().id, run.id);
    let mut log = user.run_logs_follow(run.id, 0);
    let mut events = user.run_events_follow(run.id, 0);
    let polled = host.agent_poll(&poll(agent(1), 1), DEADLINE).await.unwrap();
    let (followed, told, ()) = tokio::join!(
        async {
            let mut bytes = Vec::new();
            while let Some(entry) = log.next().await.unwrap() {
                bytes.extend(entry.bytes().unwrap());
            }
            bytes
        },
        async {
            let mut seqs = Vec::new();
            while let Some(event) = events.next().await.unwrap() {
                seqs.push(event.seq);
            }
            seqs
        },
        execute(&host, agent(1), &polled.claimed[0]),
    );
    assert_eq!(followed, b"one\n\xff\n");
    assert_eq!(told, [1, 2, 3, 4, 5], "queued, claimed, started, refused, ended");

    let shown = user.run_get(run.id).await.unwrap();
    assert_eq!((shown.state, shown.outcome.unwrap().exit), (RunState::Ended, Some(ExitStatus::Code(3))));
    let page = user.run_logs(run.id, &After::default()).await.unwrap();
    assert!(page.complete && page.entries.len() == 2);
    let pieces: Vec<Bytes> = user.run_changes(run.id).await.unwrap().try_collect().await.unwrap();
    assert_eq!(pieces.concat(), b"half and half");
    user.run_delete(run.id).await.unwrap();
    assert_eq!(user.run_get(run.id).await.unwrap_err().code(), Some(ErrorCode::NotFound));
    assert!(user.run_list(&ListRuns::default()).await.unwrap().runs.is_empty());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_never_grant_one_run_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (one, store) = Running::begin(folder.path(), "a.sock", Config::default()).await;
    let (two, _) = Running::begin(folder.path(), "b.sock", Config::default()).await;
    let made = secrets(&store).await;
    let secret = made.agent.unwrap();
    let user = Client::new(one.endpoint.clone(), made.admin.unwrap()).unwrap();
    let hosts = [&one, &two].map(|server| Client::new(server.endpoint.clone(), secret.clone()).unwrap());
    for (number, host) in (1..).zip(&hosts) {
        register(host, agent(number)).await;
    }
    let mut queued = Vec::new();
    for _ in 0..30 {
        queued.push(user.run_create(&submission(), None).await.unwrap().id);
    }
    let mut claimed = Vec::new();
    while claimed.len() < queued.len() {
        let polls = (0..6u8).map(|n| (&hosts[usize::from(n % 2)], agent(1 + n % 2)));
        let polls = polls.map(|(host, id)| async move { host.agent_poll(&poll(id, 2), DEADLINE).await.unwrap() });
        let granted: Vec<_> = join_all(polls).await.into_iter().flat_map(|polled| polled.claimed).collect();
        assert!(!granted.is_empty(), "somebody always wins");
        assert!(granted.iter().all(|grant| grant.fence == 1));
        claimed.extend(granted.into_iter().map(|grant| grant.run));
    }
    claimed.sort();
    queued.sort();
    assert_eq!(claimed, queued, "each run once");
    one.end().await;
    two.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_carries_on_over_a_restart_of_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = Running::begin(folder.path(), "a.sock", Config::default()).await;
    let made = secrets(&store).await;
    let user = Client::new(server.endpoint.clone(), made.admin.unwrap()).unwrap();
    let host = Client::new(server.endpoint.clone(), made.agent.unwrap()).unwrap();
    register(&host, agent(1)).await;
    let run = user.run_create(&submission(), None).await.unwrap().id;
    let claimed = host.agent_poll(&poll(agent(1), 1), DEADLINE).await.unwrap().claimed.remove(0);
    let by = Fenced { agent: agent(1), instance: instance(), fence: claimed.fence };
    host.agent_append_logs(run, &by, batch(1, &[b"before\n"])).await.unwrap();
    let mut log = user.run_logs_follow(run, 0);
    assert_eq!(log.next().await.unwrap().unwrap().seq, 1);

    server.end().await;
    drop(store);
    std::fs::remove_file(folder.path().join("a.sock")).unwrap();
    let (server, _store) = Running::begin(folder.path(), "a.sock", Config::default()).await;
    // A connection to the server that has gone may still be taken for one; an agent asks again, too.
    let mut connections = 0..4;
    let appended = loop {
        match host.agent_append_logs(run, &by, batch(2, &[b"after\n"])).await {
            Err(ClientError::Transport { .. }) if connections.next().is_some() => {}
            told => break told,
        }
    };
    assert_eq!(appended.unwrap().next_seq, 3);
    assert_eq!(log.next().await.unwrap().unwrap().seq, 2);
    user.run_cancel(run, &CancelRun { kill: true }).await.unwrap();
    let outcome = Outcome::cancelled("killed");
    let (agent, instance, fence) = (agent(1), instance(), claimed.fence);
    let finish = FinishRun { agent, instance, fence, outcome, usage: None, result: None, next_log_seq: 3 };
    host.agent_finish(run, &finish, DEADLINE).await.unwrap();
    assert!(log.next().await.unwrap().is_none());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_is_sealed_and_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = Running::begin(folder.path(), "a.sock", Config::default()).await;
    let made = secrets(&store).await;
    let user = Client::new(server.endpoint.clone(), made.admin.unwrap()).unwrap();
    let host = Client::new(server.endpoint.clone(), made.agent.unwrap()).unwrap();
    register(&host, agent(1)).await;
    let run = user.run_create(&submission(), None).await.unwrap().id;
    let claimed = host.agent_poll(&poll(agent(1), 1), DEADLINE).await.unwrap().claimed.remove(0);
    let by = Fenced { agent: agent(1), instance: instance(), fence: claimed.fence };
    let line = noise(32 * 1024);
    for n in 0..20 {
        host.agent_append_logs(run, &by, batch(1 + 2 * n, &[&line, &line])).await.unwrap();
    }
    let outcome = Outcome::exited(ExitStatus::Code(0));
    let (agent, instance, fence) = (agent(1), instance(), claimed.fence);
    let finish = FinishRun { agent, instance, fence, outcome, usage: None, result: None, next_log_seq: 41 };
    host.agent_finish(run, &finish, DEADLINE).await.unwrap();
    let sealed = async {
        while store.blobs().list_of_run(made.org, run).next().await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, sealed).await.expect("the log of a run that has ended is sealed");
    let mut log = user.run_logs_follow(run, 0);
    let mut seqs = Vec::new();
    while let Some(entry) = log.next().await.unwrap() {
        assert_eq!(entry.bytes().unwrap(), line);
        seqs.push(entry.seq);
    }
    assert_eq!(seqs, (1..=40).collect::<Vec<_>>());
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_a_killed_server_left_unsealed_is_sealed_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (server, store) = Running::begin(folder.path(), "a.sock", Config::default()).await;
    let made = secrets(&store).await;
    let user = Client::new(server.endpoint.clone(), made.admin.unwrap()).unwrap();
    let host = Client::new(server.endpoint.clone(), made.agent.unwrap()).unwrap();
    register(&host, agent(1)).await;
    let run = user.run_create(&submission(), None).await.unwrap().id;
    let claimed = host.agent_poll(&poll(agent(1), 1), DEADLINE).await.unwrap().claimed.remove(0);
    let by = Fenced { agent: agent(1), instance: instance(), fence: claimed.fence };
    let line = noise(32 * 1024);
    for n in 0..20 {
        host.agent_append_logs(run, &by, batch(1 + 2 * n, &[&line, &line])).await.unwrap();
    }
    server.end().await;
    // The end is stored, and the server is killed before any task of it hears of that.
    let stored = store.run_get(made.org, run).await.unwrap().unwrap();
    let outcome = Outcome::exited(ExitStatus::Code(0));
    let ended = grant::finish(&stored, agent(1), claimed.fence, outcome.into(), UnixMicros(9), &LeaseConfig::default())
        .unwrap()
        .unwrap();
    store.run_save(stored.version, &ended.run, &ended.events, None, UnixMicros(9)).await.unwrap();
    drop(store);
    let (server, store) = Running::begin(folder.path(), "b.sock", Config::default()).await;
    let sealed = async {
        while store.blobs().list_of_run(made.org, run).next().await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, sealed).await.expect("nobody but the store knows of it");
    server.end().await;
}
