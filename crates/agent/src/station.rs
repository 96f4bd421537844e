//! What every part of the agent needs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holm_domain::{AgentId, InstanceId, host::Capacity, lease::holder::Held, pressure::PressureLimits};
use holm_runtime::{AttemptId, registry::Registry};
use holm_shim::protocol::{Tuning, WaysOut};
use holm_trace::Tracer;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

use crate::{
    admission::Admission, attempt::traced::Who, clock, folder::Folder, ids::Process, keeper::Event,
    occupancy::Occupancy, shim_process::ShimProgram, storage::STORAGE_FLOOR_BYTES,
};

/// How an agent works.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent's folder; it is made if it is not there.
    pub dir: std::path::PathBuf,
    /// A name for people.
    pub name: String,
    /// The version that is told.
    pub version: String,
    /// Names and values by which the host is found.
    pub labels: BTreeMap<String, String>,
    /// All that runs may use on this host.
    pub capacity: Capacity,
    /// How many bytes must be free where its folder is, so that it takes runs.
    pub storage_floor_bytes: u64,
    /// From which pressure on it takes no runs.
    pub pressure_limits: PressureLimits,
    /// Where the kernel tells of the pressure on the host.
    pub proc_dir: std::path::PathBuf,
    /// How shims are started.
    pub shim: ShimProgram,
    /// How shims behave.
    pub tuning: Tuning,
    /// What connections of runs may lead to beside the public internet, and who is asked for names.
    pub ways_out: WaysOut,
    /// How long one request for work may wait at the server.
    pub poll_wait: Duration,
    /// How soon a renewal that got no answer is tried again.
    pub renew_retry: Duration,
    /// How often what nobody owns is looked for and removed.
    pub reap_every: Duration,
    /// How long an operation on a run is repeated while the control plane is not available.
    pub patience: Duration,
    /// How long a shim of an earlier agent may take to say how it stands; then its run goes on without that.
    pub answer_within: Duration,
    /// How long a shim may be silent that is to answer until it is killed. Its disk may be slow.
    pub silent_within: Duration,
    /// How long a shim that was told to end may take until it is killed.
    pub quit_within: Duration,
    /// Where what is recorded of runs goes.
    pub tracer: Tracer,
}

impl Config {
    /// The usual times for an agent with its folder in `dir`.
    pub fn new(dir: impl Into<std::path::PathBuf>, name: impl Into<String>, capacity: Capacity) -> Self {
        Self {
            dir: dir.into(),
            name: name.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            labels: BTreeMap::new(),
            capacity,
            storage_floor_bytes: STORAGE_FLOOR_BYTES,
            pressure_limits: PressureLimits::default(),
            proc_dir: "/proc".into(),
            shim: ShimProgram::default(),
            tuning: Tuning::default(),
            ways_out: WaysOut::default(),
            poll_wait: Duration::from_secs(20),
            renew_retry: Duration::from_secs(1),
            reap_every: Duration::from_secs(30),
            patience: Duration::from_secs(3_600),
            answer_within: Duration::from_secs(10),
            silent_within: Duration::from_secs(30),
            quit_within: Duration::from_secs(5),
            tracer: Tracer::default(),
        }
    }
}

/// What every part of the agent needs.
pub(crate) struct Shared<C> {
    pub(crate) config: Config,
    pub(crate) agent: AgentId,
    pub(crate) process: Process,
    pub(crate) boot_id: String,
    pub(crate) folder: Folder,
    pub(crate) control: C,
    pub(crate) runtimes: Registry,
    pub(crate) occupancy: Occupancy,
    pub(crate) holder: Holder,
    pub(crate) admission: Admission,
    /// Whose turn it is to measure what runs use.
    pub(crate) measuring: Arc<tokio::sync::Mutex<()>>,
    pub(crate) events: mpsc::Sender<Event>,
}

impl<C> Shared<C> {
    /// The agent and its host, as what is recorded names them, where anything is.
    pub(crate) fn who(&self) -> Option<Who> {
        let is_on = self.config.tracer.is_on();
        is_on.then(|| Who { agent: self.agent.to_string(), host: self.config.name.clone() })
    }

    /// Which process of the agent this is.
    pub(crate) fn instance(&self) -> InstanceId {
        self.process.instance
    }
}

/// The lease machine. The keeper alone feeds it; attempts only ask.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    inner: Arc<Mutex<holm_domain::lease::holder::Holder>>,
}

impl Holder {
    pub(crate) fn new(inner: holm_domain::lease::holder::Holder) -> Self {
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The machine itself.
    pub(crate) fn lock(&self) -> MutexGuard<'_, holm_domain::lease::holder::Holder> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sandbox may be started under this lease now.
    pub(crate) fn may_start(&self, attempt: AttemptId) -> bool {
        self.lock().may_start(held(attempt), clock::boot_now())
    }
}

/// The lease of an attempt.
pub(crate) fn held(attempt: AttemptId) -> Held {
    Held { run: attempt.run, fence: attempt.fence }
}

/// The attempt under a lease.
pub(crate) fn attempt_of(held: Held) -> AttemptId {
    AttemptId { run: held.run, fence: held.fence }
}
