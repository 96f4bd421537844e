//! Ways to make sandboxes.
//!
//! A [`Runtime`] is used from two processes. The *agent*, privileged where the host lets it be, calls `fingerprint`, `plan`,
//! `prepare`, `destroy` and `inventory`: they create and remove what needs privileges. The *shim*, unprivileged, calls
//! `launch` with what the agent handed over ([`Prepared`]), and gets a live sandbox: two lanes and a way to kill it.
//!
//! What always holds: `plan` creates nothing, and names everything that `prepare` and `launch` may create, so that the
//! agent can journal it first (SPEC L6); `destroy` removes exactly what a plan names, may be repeated, and goes on when one
//! step fails (SPEC L5); `inventory` finds whatever bears the label, journalled or not.

pub mod archive;
pub mod below;
pub mod conformance;
pub mod crash;
pub mod fake;
pub mod guest;
pub mod inherited;
pub mod passing;
pub mod process;
pub mod registry;
pub mod room;

use std::{
    net::TcpListener,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use holm_domain::{
    RunId,
    host::RuntimeInfo,
    run::{LiveUsage, RunSpec, Usage},
};
use holm_wire::guest_api;
use serde::{Deserialize, Serialize};

/// The identity of one attempt at a run on a host: the name under which everything made for it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The run.
    pub run: RunId,
    /// The number of the lease.
    pub fence: u64,
}

/// What a sandbox is to be made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The attempt.
    pub attempt: AttemptId,
    /// What the run is asked to do. It was validated.
    pub spec: RunSpec,
    /// A folder of the attempt's own that exists, for whatever the runtime keeps in files.
    pub dir: PathBuf,
}

/// Says to a preparation that is under way that it is not wanted any more.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Says it. It cannot be taken back.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was said.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything of the host that an attempt may come to occupy, decided before any of it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The runtime that made the plan.
    pub runtime: String,
    /// The attempt.
    pub attempt: AttemptId,
    /// The place in the pool of user ids that it occupies, if it occupies one.
    pub uid_slot: Option<u32>,
    /// Control groups, children after parents.
    pub cgroups: Vec<PathBuf>,
    /// Mounts in the host's mount namespace.
    pub mounts: Vec<PathBuf>,
    /// Folders and files outside the attempt's own folder.
    pub paths: Vec<PathBuf>,
}

/// A descriptor that the agent opened for the shim, by name.
#[derive(Debug)]
pub struct Descriptor {
    /// What it is: `guest`, `userns`, `cgroup.kill`, `lower.0`, …
    pub name: String,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// As what the shim of a planned attempt is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimIdentity {
    /// What has to stand as an argument of its own in the shim's command line, so that `inventory` and `destroy` find it.
    pub label: String,
    /// The user and group id under which the shim is to run; the agent's own where it is left out.
    pub ids: Option<(u32, u32)>,
}

/// What the agent made, for the shim.
#[derive(Debug)]
pub struct Prepared {
    /// What the shim needs to know, in the runtime's own form.
    pub launch: serde_json::Value,
    /// What the shim needs to hold.
    pub descriptors: Vec<Descriptor>,
    /// The digest of the image, where it has one.
    pub image_digest: Option<String>,
    /// What was asked for and cannot be enforced, each with the reason.
    pub unenforced: Vec<String>,
}

/// A live sandbox, in the hands of its shim.
pub struct Sandbox {
    /// The lane on which the shim is the client.
    pub lane_in: OwnedFd,
    /// The lane on which the guest is the client.
    pub lane_out: OwnedFd,
    /// How the guest is to make the workload's place.
    pub setup: guest_api::Setup,
    /// The workload's environment as the runtime knows it (PATH, HOME, …); the run's own comes over it.
    pub env: Vec<(String, String)>,
    /// Where the connections come to that leave the sandbox, if they lead anywhere.
    pub egress: Option<TcpListener>,
    /// The handle on what runs.
    pub handle: Box<dyn SandboxHandle>,
}

/// What the kernel of the host counted of a sandbox. What it does not count is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// What everything in it used.
    pub usage: Usage,
    /// What those of its processes used that were waited for by their parents: the whole only if nothing was killed.
    pub waited: Usage,
    /// How many of its processes were killed because there was no memory for them.
    pub oom_kills: Option<u64>,
    /// How often it was refused a process because it had as many as it may.
    pub pids_refused: Option<u64>,
}

/// The way to end a sandbox, whatever happens inside. Nothing here waits for the sandbox's consent.
pub trait SandboxHandle: Send + Sync {
    /// Kills everything in it at once. May be repeated.
    fn kill(&self) -> Result<(), Error>;
    /// A descriptor that becomes readable when everything in it has died (a pidfd, pidfd_open(2)).
    fn ended(&self) -> std::os::fd::BorrowedFd<'_>;
    /// What was counted of it. What was used is whole only once everything in it has died.
    fn counted(&self) -> Counted {
        Counted::default()
    }
    /// Whether everything that is writable in it is full. Known as long as it lives, where it can be known at all.
    fn disk_is_full(&self) -> Option<bool> {
        None
    }
}

/// One thing that destroying removes, and how that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepReport {
    /// What was removed: `cgroup /sys/fs/cgroup/…`, `processes`, …
    pub step: String,
    /// Why it could not be removed, if it could not.
    pub error: Option<String>,
}

/// Why a runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image cannot be resolved or made ready.
    #[error("image: {0}")]
    Image(String),
    /// A path of the host cannot be lent.
    #[error("{path}: {problem}")]
    HostPath {
        /// The path.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Limits were required that this host cannot enforce.
    #[error("this host cannot enforce: {}", .0.join("; "))]
    LimitsNotEnforceable(Vec<String>),
    /// There is no more of something: user ids, places, …
    #[error("{0} is exhausted")]
    Exhausted(&'static str),
    /// The runtime cannot do this at all.
    #[error("runtime `{runtime}` cannot {operation}")]
    Unsupported {
        /// The runtime.
        runtime: &'static str,
        /// What it was asked.
        operation: &'static str,
    },
    /// A call of the operating system failed.
    #[error("{context}: {source}")]
    System {
        /// What was being done.
        context: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The preparation was stopped.
    #[error("the preparation was stopped")]
    Stopped,
    /// The sandbox could not be made.
    #[error("launching: {0}")]
    Launch(String),
    /// What was handed over is not what the runtime made.
    #[error("malformed launch plan: {0}")]
    Malformed(String),
}

/// Adds what was being done to an error of the operating system.
pub trait Context<T> {
    /// `context` says what was being done, lazily.
    fn context(self, context: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::System { context: context(), source: source.into() })
    }
}

/// A way to make sandboxes.
pub trait Runtime: Send + Sync {
    /// The name under which runs ask for it.
    fn name(&self) -> &'static str;

    /// Agent: what it can do on this host, and what it cannot enforce. Looked up once, when the agent starts.
    fn fingerprint(&self) -> RuntimeInfo;

    /// Agent: names everything that an attempt may occupy, and creates nothing. `taken` are the user-id places in use.
    fn plan(&self, request: &Request, taken: &[u32]) -> Result<Resources, Error>;

    /// Agent: as what the shim is to be started. It may be started while `prepare` is at work, and waits for its orders.
    fn shim(&self, resources: &Resources) -> ShimIdentity;

    /// Agent: creates what needs privileges. On an error the caller destroys `resources`. What may take long (an image)
    /// has a deadline, looks at `stop` all the while, and leaves nothing half made when it ends with [`Error::Stopped`].
    fn prepare(&self, request: &Request, resources: &Resources, stop: &Stop) -> Result<Prepared, Error>;

    /// Shim: makes the sandbox and starts the guest in it. The shim gives up what it may still give up (no_new_privs, a
    /// filter of system calls) only afterwards: what it gave up before would be missing inside. Dropping the sandbox, and the
    /// end of the shim however it comes, kill everything in it.
    fn launch(&self, launch: serde_json::Value, descriptors: Vec<Descriptor>) -> Result<Sandbox, Error>;

    /// Shim: writes the state of a quiesced sandbox into `dir`.
    fn snapshot(&self, _sandbox: &Sandbox, _dir: &Path) -> Result<(), Error> {
        Err(Error::Unsupported { runtime: self.name(), operation: "snapshot" })
    }

    /// Shim: makes a sandbox of a state that `snapshot` wrote.
    fn restore(&self, _dir: &Path, _descriptors: Vec<Descriptor>) -> Result<Sandbox, Error> {
        Err(Error::Unsupported { runtime: self.name(), operation: "restore" })
    }

    /// Agent: what a sandbox uses now, as far as it is counted here; the rate of processor time is not for it to say.
    fn measure(&self, _resources: &Resources) -> LiveUsage {
        LiveUsage::default()
    }

    /// Agent: kills and removes everything that `resources` names. Every step is tried, also after one has failed.
    fn destroy(&self, resources: &Resources) -> Vec<StepReport>;

    /// Agent: removes what belongs to no attempt and is not needed: images beyond the budget, and what crashes left half
    /// made. Called on start and at intervals; never touches what a live sandbox uses.
    fn tidy(&self) -> Vec<StepReport> {
        Vec::new()
    }

    /// Agent: everything on this host that bears this agent's label, whether anybody knows of it or not.
    fn inventory(&self) -> Result<Vec<Resources>, Error>;
}

/// A runtime as it is passed around.
pub type SharedRuntime = Arc<dyn Runtime>;
