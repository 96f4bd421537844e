//! The store in memory: what the other engines do, in the plainest form. The conformance suite holds them to the same.

mod audit;
mod enrol;
mod keys;
mod org_limits;
mod pools;
mod runs;
mod secrets;
mod tenants;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holm_domain::{
    AgentId, OrgId, ProjectId, RunId, SecretId, TokenId, UnixMicros,
    access::Token,
    audit::Record,
    enrol::{Enrolled, Join},
    host::Host,
    org_limits::OrgOverrides,
    run::{Event, Run},
};
use tokio::sync::broadcast;

use crate::{Doomed, DoomedPart, KeptSecret, Org, Project, Segment};

/// What a simulator has between the servers and their store in memory.
pub trait Between: Debug + Send + Sync {
    /// Completes when the next operation may happen.
    fn turn(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Whether a save that expects one version may replace another: whether there is a compare-and-swap at all.
    fn may_replace(&self, expected: u64, stored: u64) -> bool {
        expected == stored
    }
}

/// How many hints wait for who is slow to hear them; older ones are lost.
const HINTS_WAITING_MAX: usize = 64;

/// Clones share one state.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
    between: Option<Arc<dyn Between>>,
    hints: broadcast::Sender<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { state: Arc::default(), between: None, hints: broadcast::Sender::new(HINTS_WAITING_MAX) }
    }
}

#[derive(Debug, Default)]
struct State {
    orgs: BTreeMap<OrgId, Org>,
    org_limits: BTreeMap<OrgId, OrgOverrides>,
    org_rates: BTreeMap<(OrgId, &'static str), UnixMicros>,
    pool_orgs: BTreeSet<(String, OrgId)>,
    /// The pools of hosts, and with what each speaks as long as it is in it.
    pools: BTreeMap<AgentId, (String, String)>,
    projects: BTreeMap<ProjectId, Project>,
    tokens: BTreeMap<TokenId, Token>,
    hosts: BTreeMap<AgentId, Host>,
    joins: BTreeMap<TokenId, Join>,
    /// All that were ever enrolled, by their public halves.
    host_keys: BTreeMap<[u8; 32], Enrolled>,
    /// The newest of each agent.
    current_keys: BTreeMap<AgentId, [u8; 32]>,
    runs: BTreeMap<RunId, Row>,
    doomed: BTreeMap<(DoomedPart, RunId), Doomed>,
    keys: keys::Keys,
    secrets: BTreeMap<SecretId, KeptSecret>,
    audit: BTreeMap<OrgId, Vec<Record>>,
    idempotency: BTreeMap<(OrgId, String), ([u8; 32], RunId)>,
}

/// A run with all that belongs to it.
#[derive(Debug)]
struct Row {
    run: Run,
    deadline: Option<UnixMicros>,
    /// The fence under which appends are taken; 0 while there is no lease.
    fence: u64,
    next_log_seq: u64,
    events: Vec<Stored>,
    segments: Vec<Segment>,
}

/// An event, and for one that an agent told: under which fence and with which number of its own.
#[derive(Debug)]
struct Stored {
    event: Event,
    source: Option<(u64, u64)>,
}

impl Memory {
    /// The same state, with something between it and its callers.
    pub(crate) fn with(&self, between: Arc<dyn Between>) -> Self {
        Self { between: Some(between), ..self.clone() }
    }

    pub(crate) fn hint(&self, text: &str) {
        // That nobody listens is no error.
        let _nobody_listens = self.hints.send(text.to_owned());
    }

    pub(crate) fn hints(&self) -> broadcast::Receiver<String> {
        self.hints.subscribe()
    }

    /// Waits for the turn of an operation.
    pub(crate) async fn turn(&self) -> &Self {
        if let Some(between) = &self.between {
            between.turn().await;
        }
        self
    }

    /// Whether a save that expects one version finds it.
    fn is_current(&self, expected: u64, stored: u64) -> bool {
        self.between.as_ref().map_or(expected == stored, |between| between.may_replace(expected, stored))
    }

    /// No operation leaves the state half changed, so it may be used after a panic of a thread that held the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
