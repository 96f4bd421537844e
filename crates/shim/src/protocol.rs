//! What agent and shim say to each other.
//!
//! Once, at the start, the agent sends a [`Launch`] with its descriptors over the shim's standard input
//! ([`holm_runtime::passing`]). From then on they speak over the socket [`SOCKET_NAME`] in the attempt's folder: lines of
//! JSON, each at most [`LINE_BYTES_MAX`] long; [`Command`] one way, [`Status`] the other. The shim sends its status on
//! connect and whenever it changes. What a shim leaves behind for an agent that was away, or if it dies, is [`Status`] in
//! [`EXIT_FILE_NAME`], the mark [`STARTED_FILE_NAME`], the spool in [`SPOOL_DIR_NAME`], the events in [`EVENTS_FILE_NAME`],
//! and the changes of the work dir in [`CHANGES_FILE_NAME`].

use std::path::PathBuf;

pub use holm_api::run_secrets::PublicKey;
use holm_api::run_secrets::SealedSecrets;
use holm_domain::{
    BootMicros,
    run::{Cancel, Outcome, RunSpec, Usage},
    trace::TraceId,
};
pub use holm_proxy::egress::{WaysOut, checks::VARIABLE as UNCHECKED, trust::authorities};
use holm_runtime::AttemptId;
use serde::{Deserialize, Serialize};

/// The socket in the attempt's folder.
pub const SOCKET_NAME: &str = "shim.sock";
/// The descriptor of the attempt's folder, beside those of the runtime.
pub const DIR_DESCRIPTOR: &str = "dir";
/// The final status in the attempt's folder, written once with everything else already in its place.
pub const EXIT_FILE_NAME: &str = "exit.json";
/// An empty file in the attempt's folder: the guest was, or was just about to be, told to start the command.
pub const STARTED_FILE_NAME: &str = "started";
/// The changes of the work dir in the attempt's folder, a tar archive.
pub const CHANGES_FILE_NAME: &str = "changes.tar";
/// The folder of the log spool in the attempt's folder.
pub const SPOOL_DIR_NAME: &str = "spool";
/// What the shim tells of the run, in the attempt's folder: one [`SourceEvent`] a line.
pub const EVENTS_FILE_NAME: &str = "events.jsonl";
/// The longest line in either direction, in bytes. A result of the largest size fits.
pub const LINE_BYTES_MAX: usize = 128 * 1024;
/// The largest number of events that a shim tells of one attempt; the file of events never grows beyond that.
pub const EVENTS_MAX: u64 = 1_024;
/// The longest message in an outcome of the shim's, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4_096;
/// The most sentences on what the guest cannot enforce.
pub use holm_wire::guest_api::UNENFORCED_MAX;
/// The longest sentence on something that is not enforced, in bytes.
pub const UNENFORCED_BYTES_MAX: usize = 256;

/// What the agent hands to a new shim, beside the descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The attempt.
    pub attempt: AttemptId,
    /// What the run is asked to do. It was validated.
    pub spec: RunSpec,
    /// The attempt's folder by the agent's name for it. The shim may write in it and enters it by the descriptor
    /// [`DIR_DESCRIPTOR`], because the folders above are not for its user id.
    pub dir: PathBuf,
    /// The sequence that the first log entry gets.
    pub first_log_seq: u64,
    /// When the sandbox is to be killed unless the deadline is extended.
    pub deadline_us: BootMicros,
    /// The runtime that prepared the sandbox.
    pub runtime: String,
    /// What the runtime wants to know, in its own form ([`holm_runtime::Prepared::launch`]).
    pub launch: serde_json::Value,
    /// How much room on the disk an archive of changes leaves free at least, in bytes.
    pub storage_floor_bytes: u64,
    /// What the operator of the host says of the ways out of it.
    #[serde(default)]
    pub ways_out: WaysOut,
    /// How the shim behaves in time and space.
    #[serde(default)]
    pub tuning: Tuning,
    /// The trace to which the run belongs, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    /// The name of the host, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// How a shim behaves in time and space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// From the launch to the guest's answer to its setup at most, in milliseconds. Emulated machines need more.
    pub ready_ms: u64,
    /// For one answer of the guest's at most, in milliseconds.
    pub answer_ms: u64,
    /// For the whole archive of changes at most, in milliseconds.
    pub changes_ms: u64,
    /// From the polite request to end to the kill, in milliseconds.
    pub terminate_grace_ms: u64,
    /// How much output may lie in the spool that was not acknowledged, in bytes; then the command has to wait.
    pub spool_bytes_max: u64,
    /// How long what a run leaves waits for room on a disk that is full, and the command with it, in milliseconds. Output,
    /// changes and events have it together, and anew once output found room; a run whose output or changes do not is given up.
    pub disk_full_ms: u64,
    /// How long what was killed may take to die before that is told, in milliseconds. It is waited for without end.
    pub death_ms: u64,
    /// How long the shim of an ended sandbox stays for its agent after the last deadline, in milliseconds.
    pub linger_ms: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            ready_ms: 10_000,
            answer_ms: 10_000,
            changes_ms: 600_000,
            terminate_grace_ms: 10_000,
            spool_bytes_max: 256 * 1024 * 1024,
            disk_full_ms: 300_000,
            death_ms: 60_000,
            linger_ms: 3_600_000,
        }
    }
}

/// What the agent tells its shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The lease was renewed. A deadline that is not later, or of another fence, changes nothing. It is answered with the
    /// status in any case: an agent does not hold the lease of a sandbox whose shim is silent.
    Extend {
        /// The number of the lease.
        fence: u64,
        /// The new deadline.
        deadline_us: BootMicros,
    },
    /// Somebody asked for the end of the run.
    Cancel(Cancel),
    /// The lease is lost: kill at once.
    Stop {},
    /// Every log entry below this sequence is stored, so that its file may be deleted.
    Acked {
        /// The sequence of the first entry that is not stored.
        next_seq: u64,
    },
    /// The answer to what the shim asks for ([`Status::asks`]).
    Secrets(SecretsAnswer),
    /// Everything was taken over; the shim ends. A sandbox that still lives is killed first.
    Quit {},
}

/// The secrets of the run, for the shim's proxy alone; or why there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretsAnswer {
    /// They are sealed: whoever carries them cannot read them.
    Sealed(SealedSecrets),
    /// There are none.
    Refused {
        /// For whom they were to be sealed.
        key: PublicKey,
        /// Why not.
        problem: String,
    },
}

impl SecretsAnswer {
    /// To whom it is an answer.
    pub fn key(&self) -> PublicKey {
        match self {
            Self::Sealed(sealed) => sealed.key,
            Self::Refused { key, .. } => *key,
        }
    }
}

/// How far the shim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The sandbox is being made.
    Preparing,
    /// The command was started.
    Running,
    /// Everything in the sandbox was killed, long ago, and has not died: the kernel holds it. The shim goes on killing.
    Undying,
    /// Everything in the sandbox has died, all output is in the spool, and the outcome is final.
    Ended,
}

/// When things happened, by the shim's own look at CLOCK_BOOTTIME: a guest is not asked for times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// It began to make the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begun_us: Option<BootMicros>,
    /// The guest was ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_us: Option<BootMicros>,
    /// The guest was told to start the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_us: Option<BootMicros>,
    /// The guest told that the command has ended, with all of its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited_us: Option<BootMicros>,
    /// Everything in the sandbox has died, and what was read is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_us: Option<BootMicros>,
}

/// How the shim stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How far it is.
    pub phase: Phase,
    /// The number of the lease under which it was started.
    pub fence: u64,
    /// When it kills its sandbox.
    pub deadline_us: BootMicros,
    /// The sequence after the last log entry in the spool.
    pub next_seq: u64,
    /// How many events are in the file; they have the sequences 1 to this.
    pub events: u64,
    /// How many more were told by the end and could not be written: they are lost.
    #[serde(default)]
    pub events_unwritten: u64,
    /// For whom the secrets of the run are to be sealed, while its proxy waits for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<PublicKey>,
    /// What the guest says it cannot enforce; known before the command is started.
    pub unenforced: Vec<String>,
    /// How the run ended, when it has.
    pub outcome: Option<Outcome>,
    /// What the sandbox used, when it has ended.
    #[serde(default)]
    pub usage: Usage,
    /// The structured result that the command left, when it has ended and left one.
    pub result: Option<serde_json::Value>,
    /// The length of the archive of changes, when there is one.
    pub changes: Option<u64>,
    /// The shim's own process id.
    pub pid: u32,
    /// When things happened so far.
    #[serde(default)]
    pub times: Times,
}

/// One line of the file of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceEvent {
    /// Its number within the attempt, from 1: with the fence it makes storing it exactly once possible.
    pub seq: u64,
    /// What happened.
    pub event: holm_domain::run::EventKind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_look_as_documented() {
        let lines = [
            (Command::Extend { fence: 3, deadline_us: BootMicros(9) }, r#"{"extend":{"fence":3,"deadline_us":9}}"#),
            (Command::Cancel(Cancel::Terminate), r#"{"cancel":"terminate"}"#),
            (Command::Cancel(Cancel::Kill), r#"{"cancel":"kill"}"#),
            (Command::Stop {}, r#"{"stop":{}}"#),
            (Command::Acked { next_seq: 7 }, r#"{"acked":{"next_seq":7}}"#),
            (Command::Quit {}, r#"{"quit":{}}"#),
        ];
        for (command, line) in lines {
            assert_eq!(serde_json::to_string(&command).unwrap(), line);
            assert_eq!(serde_json::from_str::<Command>(line).unwrap(), command);
        }
    }
}
