//! What every case stands on: a store of each kind, and things to put into it.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use holm_domain::{
    AgentId, InstanceId, OrgId, ProjectId, RunId, TokenId, UnixMicros,
    access::{Role, Token},
    host::{Capacity, Host, RuntimeInfo},
    lease::{Claimant, grant},
    limits::LeaseConfig,
    log::{BatchBuilder, PACKED_BYTES_MIN, Stream, parse_all},
    run::{Admission, Decision, EventKind, Run, RunSpec, SandboxInfo, admit},
};
use holm_store::{Blobs, Idempotency, Inserted, Org, Project, Result, RunFilter, RunRow, Saved, Segment, Store};
use uuid::Uuid;

use crate::postgres::TestDatabase;

/// The kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Memory,
    Sqlite,
    Postgres,
}

/// A store for one case.
#[derive(Clone)]
pub struct Fixture {
    pub engine: Engine,
    pub store: Store,
    pub url: String,
    pub blobs: Blobs,
}

/// Makes a test of each named case for each engine.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        mod on {
            $crate::support::cases!(@ memory, Memory, $($case),+);
            $crate::support::cases!(@ sqlite, Sqlite, $($case),+);
            $crate::support::cases!(@ postgres, Postgres, $($case),+);
        }
    };
    (@ $module:ident, $engine:ident, $($case:ident),+) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $case() {
                $crate::support::on($crate::support::Engine::$engine, super::super::$case).await;
            })+
        }
    };
}
pub(crate) use cases;

/// Runs a case on a new store and removes the store, also if the case fails.
pub async fn on<F, C>(engine: Engine, case: C)
where
    C: FnOnce(Fixture) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let folder = tempfile::tempdir().expect("a folder");
    let database = match engine {
        Engine::Postgres => Some(TestDatabase::create().await),
        _ => None,
    };
    let url = match (&database, engine) {
        (Some(database), _) => database.url.clone(),
        (None, Engine::Sqlite) => format!("sqlite:{}", folder.path().join("holm.db").display()),
        (None, _) => "memory:".to_owned(),
    };
    let blobs = match engine {
        Engine::Memory => Blobs::memory(),
        _ => Blobs::local(&folder.path().join("blobs")).expect("a folder of blobs"),
    };
    let store = Store::open(&url, blobs.clone()).await.expect("the store opens");
    let outcome = tokio::spawn(case(Fixture { engine, store, url, blobs })).await;
    if let Some(database) = database {
        database.remove().await;
    }
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

impl Fixture {
    /// The same store as another server sees it.
    pub async fn second_server(&self) -> Store {
        match self.engine {
            Engine::Memory => self.store.clone(),
            _ => Store::open(&self.url, self.blobs.clone()).await.expect("the store opens again"),
        }
    }

    /// A new org with a project.
    pub async fn tenant(&self) -> Tenant {
        let tenant =
            Tenant { store: self.store.clone(), org: OrgId::from_uuid(uuid()), project: ProjectId::from_uuid(uuid()) };
        let Tenant { org, project, .. } = tenant;
        self.store
            .org_create(&Org { id: org, name: format!("of {org}"), created_at: UnixMicros(1) })
            .await
            .expect("an org");
        let project = Project { id: project, org, name: "default".to_owned(), created_at: UnixMicros(2) };
        self.store.project_create(&project).await.expect("a project");
        tenant
    }
}

/// The next of a row of UUIDs; later ones sort after earlier ones.
pub fn uuid() -> Uuid {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Uuid::from_u128(u128::from(NEXT.fetch_add(1, Ordering::Relaxed)) << 64 | 7)
}

pub fn agent() -> AgentId {
    AgentId::from_uuid(uuid())
}

/// A process of an agent of its own.
pub fn claimant() -> Claimant {
    Claimant { agent: agent(), instance: instance() }
}

pub fn instance() -> InstanceId {
    InstanceId::from_uuid(uuid())
}

/// An org with a project on a store.
#[derive(Clone)]
pub struct Tenant {
    pub store: Store,
    pub org: OrgId,
    pub project: ProjectId,
}

impl Tenant {
    /// A run that is not stored yet.
    pub fn admit(&self, spec: RunSpec) -> Decision {
        let id = RunId::from_uuid(uuid());
        let admission = Admission { id, org: self.org, project: self.project, created_by: TokenId::from_uuid(uuid()) };
        admit(admission, spec, UnixMicros(1_000), &config())
    }

    /// A queued run.
    pub async fn queued(&self) -> Run {
        let Decision { run, events } = self.admit(RunSpec::new(["true"]));
        assert_eq!(self.insert(&run, &events).await.expect("inserted"), Inserted::New);
        run
    }

    pub async fn insert(&self, run: &Run, events: &[EventKind]) -> Result<Inserted> {
        self.store.run_insert(run, None, events, run.deadline(&config()), UnixMicros(1_000)).await
    }

    pub async fn insert_once(&self, run: &Run, key: &str, digest: u8) -> Result<Inserted> {
        let idempotency = Idempotency { key: key.to_owned(), digest: [digest; 32] };
        let deadline = run.deadline(&config());
        self.store.run_insert(run, Some(&idempotency), &[EventKind::Queued], deadline, UnixMicros(1_000)).await
    }

    /// A run that an agent has claimed.
    pub async fn claimed(&self) -> Run {
        let run = self.queued().await;
        let decision = grant::claim(&run, claimant(), UnixMicros(2_000), &config()).expect("claimable");
        self.save(&decision).await.expect("claimed");
        decision.run
    }

    pub async fn save(&self, decision: &Decision) -> Result<Saved> {
        save(&self.store, decision).await
    }

    pub async fn listed(&self, filter: &RunFilter) -> Vec<RunId> {
        let runs = self.store.run_list(self.org, filter, None, 1_000).await.expect("a list");
        read(runs).into_iter().map(|run| run.id).collect()
    }

    /// The sequences of all events of a run.
    pub async fn event_seqs(&self, run: RunId) -> Vec<u64> {
        let events = self.store.event_page(self.org, run, 0, 10_000).await.expect("a page");
        events.into_iter().map(|event| event.seq).collect()
    }

    /// The data of all log entries of a run, page by page, checked to be in order and without gap from 1.
    pub async fn log(&self, run: RunId) -> Vec<Vec<u8>> {
        let mut entries = Vec::new();
        for _ in 0..100_000 {
            let after = entries.len() as u64;
            let segments = self.store.log_read(self.org, run, after, 100_000).await.expect("a read");
            if segments.is_empty() {
                return entries;
            }
            entries.extend(entries_of(&segments, after));
        }
        panic!("the log has no end");
    }
}

pub async fn save(store: &Store, decision: &Decision) -> Result<Saved> {
    let Decision { run, events } = decision;
    store.run_save(run.version - 1, run, events, run.deadline(&config()), UnixMicros(3_000)).await
}

/// The runs of rows that can all be read and bear the ids of their runs.
pub fn read<R: Into<RunRow>>(rows: Vec<R>) -> Vec<Run> {
    let one = |row: R| {
        let row: RunRow = row.into();
        let run = row.run.expect("a run");
        assert_eq!(row.id, run.id.to_string());
        run
    };
    rows.into_iter().map(one).collect()
}

/// The data of the entries after `after`, checked to follow it without gap.
pub fn entries_of(segments: &[Segment], after: u64) -> Vec<Vec<u8>> {
    let mut next = after + 1;
    let mut data = Vec::new();
    for segment in segments {
        let batches = parse_all(&segment.bytes).expect("whole batches");
        assert_eq!(batches.first().map(|batch| batch.first_seq()), Some(segment.first_seq));
        assert_eq!(batches.last().map(|batch| batch.last_seq()), Some(segment.last_seq));
        for batch in batches {
            let entries = batch.read().expect("entries");
            for entry in entries.iter().filter(|entry| entry.seq > after) {
                assert_eq!(entry.seq, next, "entries follow one another");
                next += 1;
                data.push(entry.data.to_vec());
            }
        }
    }
    data
}

/// A batch of `count` entries from the sequence `first` on, each of `length` bytes that tell its sequence.
pub fn batch(first: u64, count: u64, length: usize) -> Bytes {
    batch_at(first, count, length, |_| 5)
}

/// The same with a time for each entry.
pub fn batch_at(first: u64, count: u64, length: usize, at: impl Fn(u64) -> i64) -> Bytes {
    let mut builder = BatchBuilder::new(first);
    let mut bytes = Vec::new();
    for seq in first..first + count {
        assert!(builder.push(UnixMicros(at(seq)), Stream::Stdout, false, &entry(seq, length)), "the entry fits");
    }
    let written: Result<(), ()> = builder.finish(|batch| {
        bytes.extend_from_slice(batch);
        Ok(())
    });
    written.expect("a batch");
    Bytes::from(bytes)
}

/// The data of the entry `seq`, without a line feed. A long one does not shrink by packing.
pub fn entry(seq: u64, length: usize) -> Vec<u8> {
    let mut data = format!("entry {seq} ").into_bytes();
    if length < PACKED_BYTES_MIN {
        data.resize(length.max(data.len()), b'.');
        return data;
    }
    let mut state = seq;
    data.resize_with(length, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        match (state >> 33) as u8 {
            b'\n' => b'.',
            byte => byte,
        }
    });
    data
}

/// What an agent may tell, with something by which it is known again.
pub fn refused(host: impl Into<String>) -> EventKind {
    EventKind::EgressRefused { host: host.into(), port: 443, protocol: "tcp".to_owned(), count: 1, reason: None }
}

pub fn config() -> LeaseConfig {
    // What comes back to the queue may be claimed at once; where it pauses, a test says so.
    LeaseConfig { attempts_max: 100, retry_pause: Duration::ZERO, ..LeaseConfig::default() }
}

pub fn sandbox(agent: AgentId) -> SandboxInfo {
    SandboxInfo {
        agent,
        runtime: "process".to_owned(),
        image_digest: None,
        unenforced: vec!["disk: no quota".to_owned()],
    }
}

pub fn token(org: OrgId, hash: u8) -> Token {
    Token {
        id: TokenId::from_uuid(uuid()),
        org,
        role: Role::Member,
        name: "laptop".to_owned(),
        hash: [hash; 32],
        created_at: UnixMicros(10),
        expires_at: Some(UnixMicros(20)),
        revoked_at: None,
    }
}

pub fn host(org: OrgId, name: &str) -> Host {
    Host {
        id: agent(),
        org,
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        capacity: Capacity { runs: 4, cpus_milli: 8_000, memory_bytes: 1 << 34 },
        runtimes: vec![RuntimeInfo {
            name: "process".to_owned(),
            capabilities: vec!["root.host".to_owned()],
            unenforced: vec!["disk".to_owned()],
        }],
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        token: TokenId::from_uuid(uuid()),
        key: None,
        instance: instance(),
        superseded: vec![instance()],
        registered_at: UnixMicros(100),
        seen_at: UnixMicros(100),
        cordon: None,
        pool: None,
    }
}

/// Whichever run there may be.
pub fn every_run() -> std::ops::RangeInclusive<RunId> {
    RunId::from_uuid(Uuid::nil())..=RunId::from_uuid(Uuid::max())
}
