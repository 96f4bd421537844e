//! What the guest serves on the lane in.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /setup` | [`Setup`] | 204 once the inner namespaces stand; once in the life of a guest |
//! | `POST /processes` | [`Spawn`] | 201 [`Spawned`], or 422 [`SpawnFailure`] |
//! | `GET /processes/{id}/output?from=N` | | 200, a stream of frames ([`OutputFrame`]) from offset N, ends after the process and its pipes have |
//! | `POST /processes/{id}/ack?to=N` | | 204; what lies below offset N may be forgotten |
//! | `POST /processes/{id}/stdin` | bytes, streamed | 204; the end of the body closes the process's standard input |
//! | `POST /processes/{id}/signal` | [`SendSignal`] | 204 |
//! | `GET /processes/{id}` | | 200 [`ProcessStatus`]; with `?wait=1` once it has ended |
//! | `GET /result` | | 200 with the bytes of the structured result, 204 if there is none |
//! | `GET /changes` | | 200, a tar archive of what changed in the work dir |
//! | `POST /quiesce` | | 204; nothing more is written to either lane until the next handshake |
//! | `POST /post-restore` | [`PostRestore`] | 204 once entropy, clock and names were renewed |
//! | `POST /goodbye` | | 204; all processes are killed and the guest ends |
//!
//! Errors are [`Failure`] with a status of 4xx or 5xx. Everything from the guest is hostile: a reader limits and checks it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The largest JSON body in either direction, in bytes.
pub const JSON_BYTES_MAX: usize = 1024 * 1024;
/// How much output of one process the guest keeps that was not acknowledged, in bytes; then the process has to wait.
pub const RING_BYTES: usize = 1024 * 1024;
/// The largest number of processes that the guest keeps a record of at once.
pub const PROCESSES_MAX: usize = 1_024;
/// The head of an output frame, in bytes: stream (1), length (4, little-endian).
pub const FRAME_HEAD_BYTES: usize = 5;
/// The longest data of an output frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// A range of user or group ids of the guest's namespace that is seen from 0 inside the workload's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// The first id in the guest's namespace.
    pub outer_first: u32,
    /// How many.
    pub count: u32,
}

/// How the guest is to make the workload's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The name of the machine inside.
    pub hostname: String,
    /// Which ids of the guest's namespace the workload gets, seen from 0.
    pub ids: IdRange,
    /// Whether programs may gain privileges inside (sudo, setuid).
    pub allow_sudo: bool,
    /// Whether the work dir's changes can be asked for later.
    pub work_dir: Option<WorkDirLayers>,
    /// What must not be writable to the workload even for its root: mount points of read-only mounts.
    pub read_only: Vec<String>,
}

/// Where the layers of the work dir lie in the guest's mount namespace; hidden from the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkDirLayers {
    /// The writable layer of the overlay.
    pub upper: String,
    /// The mount point.
    pub target: String,
}

/// A command to be started in the workload's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spawn {
    /// The command and its arguments, never passed through a shell; looked up in the PATH of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The working directory; the user's home where it is left out.
    pub cwd: Option<String>,
    /// `NAME`, `UID` or `UID:GID` inside.
    pub user: String,
    /// Whether standard input is a pipe that can be written to; /dev/null otherwise.
    pub stdin: bool,
}

/// A process that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawned {
    /// Its number within this guest, never given twice.
    pub id: u32,
}

/// Why a command could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnFailure {
    /// The class of failure.
    pub kind: SpawnFailureKind,
    /// A sentence for people.
    pub message: String,
}

/// Classes of failure to start a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpawnFailureKind {
    /// The command is not there.
    NotFound,
    /// The command is there and cannot be executed.
    NotExecutable,
    /// The working directory is not there, or cannot be entered.
    BadWorkDir,
    /// The user is not one of the image.
    UnknownUser,
    /// Something else: no process left, no memory, …
    Other,
}

/// Where a frame of output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// A piece of output. Both streams share one count of offsets: a frame's offset is the number of data bytes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFrame<'a> {
    /// Where it comes from.
    pub stream: OutputStream,
    /// 1 to [`FRAME_BYTES_MAX`] bytes.
    pub data: &'a [u8],
}

/// How a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// How it ended; nothing while it runs.
    pub exit: Option<Exit>,
    /// How many bytes of output it has written so far.
    pub output_bytes: u64,
}

/// How a process ended, as wait(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It called exit with this code.
    Code(u8),
    /// This signal ended it, 1 to 64.
    Signal(u8),
}

/// A signal to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendSignal {
    /// 1 to 64.
    pub signal: u8,
    /// Whether it goes to every process of the workload instead of this one and its group.
    pub all: bool,
}

/// What a clone must not share with its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostRestore {
    /// Microseconds since the Unix epoch, for the clock.
    pub unix_micros: i64,
    /// 32 to 512 bytes for the kernel's random number generator, in hexadecimal.
    pub entropy_hex: String,
    /// The new name of the machine inside.
    pub hostname: String,
}

/// The body of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A sentence for people.
    pub message: String,
}
