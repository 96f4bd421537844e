//! What the guest serves on the lane in.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /setup` | [`Setup`] | 200 [`SetUp`] once the inner namespaces stand; once in the life of a guest |
//! | `POST /processes` | [`Spawn`] | 201 [`Spawned`], or 422 [`SpawnFailure`] |
//! | `GET /processes/{id}/output?from=N` | | 200, a stream of frames ([`OutputFrame`]) from offset N, ends after the process and its pipes have |
//! | `POST /processes/{id}/ack?to=N` | | 204; what lies below offset N may be forgotten |
//! | `POST /processes/{id}/stdin` | bytes, streamed | 204; the end of the body closes the process's standard input |
//! | `POST /processes/{id}/signal` | [`SendSignal`] | 204 |
//! | `GET /processes/{id}` | | 200 [`ProcessStatus`]; with `?wait=1` once it has ended; 500 if the workload broke down under it |
//! | `GET /result` | | 200 with the bytes of the structured result, 204 if there is none |
//! | `GET /changes?bytes_max=N` | | 200, a tar archive of what changed in the work dir (see below), or 422 if it would be longer than N bytes, or folders are nested too deep ([`CHANGES_TOO_DEEP`]) |
//! | `POST /quiesce` | | 204; nothing more is written to either lane until the next handshake |
//! | `POST /post-restore` | [`PostRestore`] | 204 once entropy, clock and names were renewed |
//! | `POST /goodbye` | | 204; all processes are killed and the guest ends |
//!
//! The archive of changes is the writable layer of the work dir's overlay as it is, so that no name means anything but
//! itself: a character device 0:0 stands for a deletion; a folder with the pax record [`CHANGES_OPAQUE`] hides everything
//! that was in it; what was made of devices, named pipes and sockets is told, for the reader to refuse. Other names of a file
//! are links to the first one.
//!
//! Errors are [`Failure`] with a status of 4xx or 5xx. Everything from the guest is hostile: a reader limits and checks it.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::http2;

/// The largest JSON body in either direction, in bytes.
pub const JSON_BYTES_MAX: usize = 1024 * 1024;
/// How much output of one process the guest keeps that was not acknowledged, in bytes; then the process has to wait.
pub const RING_BYTES: usize = 1024 * 1024;
/// The largest number of processes that the guest keeps a record of at once.
pub const PROCESSES_MAX: usize = 1_024;
/// The most walls that a guest can say are missing.
pub const UNENFORCED_MAX: usize = 16;
/// The head of an output frame, in bytes: stream (1), length (4, little-endian).
pub const FRAME_HEAD_BYTES: usize = 5;
/// The longest data of an output frame, in bytes: with its head it goes into one frame of HTTP/2.
pub const FRAME_BYTES_MAX: usize = http2::FRAME_BYTES as usize - FRAME_HEAD_BYTES;

/// The pax record, with the value `y`, of a folder of the archive of changes that hides what was in it.
pub const CHANGES_OPAQUE: &str = "SCHILY.xattr.user.overlay.opaque";
/// The type flag of a socket in the archive of changes. Tar has none, and leaves capital letters to whoever writes.
pub const CHANGES_SOCKET: u8 = b'Q';

/// With these words the guest refuses an archive of changes in which folders are nested too deep.
pub const CHANGES_TOO_DEEP: &str = "folders are nested deeper than";

/// A range of user or group ids of the guest's namespace that is seen from 0 inside the workload's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// The first id in the guest's namespace.
    pub outer_first: u32,
    /// How many.
    pub count: u32,
}

/// Where the workload finds the authority that it is to trust ([`Setup::trusted`]).
pub const TRUST_DIR: &str = "/run/holm-trust";
/// That authority alone.
pub const TRUST_AUTHORITY: &str = "authority.pem";
/// It, and those that the image trusts.
pub const TRUST_BUNDLE: &str = "bundle.pem";

/// A certificate authority that the workload is to trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trusted {
    /// It, as PEM.
    pub authority: String,
    /// What it trusts beside where its image has no list, as PEM.
    pub others: String,
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
    /// The folder of what is the guest's own, such as the layers of the work dir: the workload sees an empty one in its place.
    pub hidden: Option<String>,
    /// Whether the work dir's changes can be asked for later.
    pub work_dir: Option<WorkDirLayers>,
    /// What must not be writable to the workload even for its root: mount points of read-only mounts.
    pub read_only: Vec<String>,
    /// Whether something of the host's is mounted writable. What the workload makes there outlives it, with an owner of the
    /// host's, so it then can make no set-id files and give files no capabilities.
    pub writes_to_host: bool,
    /// The port inside to which TCP connections to elsewhere are sent; the host is then asked for names. Where there is none,
    /// nothing leads anywhere.
    #[serde(default)]
    pub redirect: Option<u16>,
    /// What the workload is to trust; its files are in [`TRUST_DIR`].
    #[serde(default)]
    pub trusted: Option<Trusted>,
}

/// The workload's place stands, and what of it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUp {
    /// What this kernel does not let the guest enforce: `WALL: REASON` each, at most [`UNENFORCED_MAX`].
    pub unenforced: Vec<String>,
}

/// Where the layers of the work dir lie in the guest's mount namespace, beneath [`Setup::hidden`].
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
    /// Whether the workload ends with it: what it leaves behind is killed, and no command can be started afterwards.
    pub main: bool,
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
pub struct OutputFrame {
    /// Where it comes from.
    pub stream: OutputStream,
    /// 1 to [`FRAME_BYTES_MAX`] bytes.
    pub data: Bytes,
}

/// Why bytes are no frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such stream.
    #[error("no output stream has the number {0}")]
    UnknownStream(u8),
    /// A length of 0, or beyond the limit.
    #[error("an output frame cannot have {0} bytes")]
    Length(u32),
    /// The bytes ended within a frame.
    #[error("the output ended within a frame")]
    Truncated,
}

impl OutputFrame {
    /// The head of a frame with `length` bytes of data; the data follows it.
    pub fn head(stream: OutputStream, length: usize) -> Result<[u8; FRAME_HEAD_BYTES], FrameError> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if length == 0 || length as usize > FRAME_BYTES_MAX {
            return Err(FrameError::Length(length));
        }
        let code = match stream {
            OutputStream::Stdout => 1,
            OutputStream::Stderr => 2,
        };
        let [a, b, c, d] = length.to_le_bytes();
        Ok([code, a, b, c, d])
    }
}

/// Cuts a stream of bytes, arriving in pieces of any size, into frames. It holds at most one piece and one frame. Frames of a
/// piece are not copied while pieces end where frames do; otherwise each byte is, once.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    piece: Bytes,
    /// A frame that began in an earlier piece, and what followed it; nothing is left of the piece then.
    joined: BytesMut,
}

impl FrameDecoder {
    /// Takes the next bytes. Frames are to be taken out with [`FrameDecoder::take`] before more is put in.
    pub fn put(&mut self, piece: Bytes) {
        if self.joined.is_empty() && self.piece.is_empty() {
            self.piece = piece;
        } else {
            self.join();
            self.joined.extend_from_slice(&piece);
        }
    }

    /// The next frame that is whole.
    pub fn take(&mut self) -> Result<Option<OutputFrame>, FrameError> {
        let bytes = if self.joined.is_empty() { &self.piece[..] } else { &self.joined[..] };
        let Some((stream, length)) = whole_frame(bytes)? else {
            self.join();
            return Ok(None);
        };
        let data = if self.joined.is_empty() {
            self.piece.advance(FRAME_HEAD_BYTES);
            self.piece.split_to(length)
        } else {
            self.joined.advance(FRAME_HEAD_BYTES);
            self.joined.split_to(length).freeze()
        };
        Ok(Some(OutputFrame { stream, data }))
    }

    fn join(&mut self) {
        self.joined.extend_from_slice(&std::mem::take(&mut self.piece));
    }

    /// Says that no more bytes come; an error if a frame is incomplete.
    pub fn end(&self) -> Result<(), FrameError> {
        if self.piece.is_empty() && self.joined.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

/// The stream of the frame at the start of `bytes` and the length of its data, if all of it is there.
fn whole_frame(bytes: &[u8]) -> Result<Option<(OutputStream, usize)>, FrameError> {
    let Some((&[code, a, b, c, d], data)) = bytes.split_first_chunk::<FRAME_HEAD_BYTES>() else { return Ok(None) };
    let stream = match code {
        1 => OutputStream::Stdout,
        2 => OutputStream::Stderr,
        other => return Err(FrameError::UnknownStream(other)),
    };
    let length = u32::from_le_bytes([a, b, c, d]);
    if length == 0 || length as usize > FRAME_BYTES_MAX {
        return Err(FrameError::Length(length));
    }
    Ok((data.len() >= length as usize).then_some((stream, length as usize)))
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
