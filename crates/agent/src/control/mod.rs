//! What the agent needs of a control plane.
//!
//! [`http::HttpControl`] is the real one; the tests have one that follows a script. Every operation may be repeated
//! without harm, and is, while [`ControlError::Unavailable`] comes back.

pub mod http;
#[cfg(test)]
pub(crate) mod scripted;
mod sessions;

use std::{future::Future, path::Path, time::Duration};

use bytes::Bytes;
use holm_api::agent::{
    AppendEvents, Appended, Fenced, FinishRun, Poll, Polled, Register, Registered, Renew, Renewed, SandboxEnded,
    StartRun,
};
use holm_api::run_secrets::{AskSecrets, SealedSecrets};
use holm_domain::{AgentId, RunId};

pub use sessions::JoinToken;

use crate::{folder::FolderError, keeper::Unheard};

/// Why an operation was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The fence is not that of a live lease: whatever is done under it must stop.
    #[error("the lease is no longer held")]
    StaleFence,
    /// The entries do not follow what is stored.
    #[error("the log does not follow what is stored")]
    LogGap {
        /// The sequence that was to follow, if it was told.
        next_seq: Option<u64>,
    },
    /// The control plane does not know this agent: it must register first.
    #[error("this agent is not registered")]
    Unregistered,
    /// A newer process of this agent has registered: this one is not heard any more.
    #[error("a newer process of this agent has registered")]
    Superseded,
    /// The key of this host was revoked: nothing that it says is heard any more.
    #[error("the key of this host was revoked")]
    Revoked,
    /// The control plane was not reached or is not up to it now; the same may succeed later.
    #[error("the control plane is not available: {0}")]
    Unavailable(String),
    /// A rate of the org is used up: the same succeeds later, and not before so long.
    #[error("the control plane takes no more before {after:?} have passed: {problem}")]
    Later {
        /// How long to wait.
        after: Duration,
        /// Which rate it is.
        problem: String,
    },
    /// The control plane will never do this.
    #[error("the control plane refused: {0}")]
    Refused(String),
}

impl ControlError {
    /// For a trace: why a report was not taken.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::StaleFence => "lease_lost",
            Self::LogGap { .. } => "log_gap",
            Self::Unregistered => "unregistered",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
            Self::Unavailable(_) | Self::Later { .. } => "control_unavailable",
            Self::Refused(_) => "report_refused",
        }
    }

    /// Why this process is not heard any more, if it is so.
    pub(crate) fn unheard(&self) -> Option<Unheard> {
        match self {
            Self::Superseded => Some(Unheard::Superseded),
            Self::Revoked => Some(Unheard::Revoked),
            _ => None,
        }
    }
}

/// Why an agent cannot say who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What stands in its folder about it cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// It has not enrolled yet, and there is no join token.
    #[error("this host is not enrolled yet, and there is no join token: {0}")]
    NoJoinToken(String),
    /// Its key was revoked.
    #[error(
        "the key of {0} was revoked: the server hears nothing of this host; to take it in again, remove `agent/key` and \
         `agent/enrolled` in its home, and start it with a new join token (`holm hosts join NAME`)"
    )]
    Revoked(AgentId),
    /// Its join token enrols nobody, or somebody else.
    #[error("this host was refused, and needs another join token: {0}")]
    NotAdmitted(String),
    /// The control plane does not take it.
    #[error("this host was refused: {0}")]
    Refused(String),
}

/// A control plane as the agent sees it.
pub trait ControlPlane: Send + Sync + 'static {
    /// Makes sure that it can be said who this agent is, with what stands in its folder; called once, before all else.
    fn identify(&self, _dir: &Path, _agent: AgentId) -> impl Future<Output = Result<(), IdentityError>> + Send {
        std::future::ready(Ok(()))
    }
    /// Tells what there is on this host.
    fn register(&self, body: Register) -> impl Future<Output = Result<Registered, ControlError>> + Send;
    /// Waits for runs and directives.
    fn poll(&self, body: Poll) -> impl Future<Output = Result<Polled, ControlError>> + Send;
    /// Extends leases.
    fn renew(&self, body: Renew) -> impl Future<Output = Result<Renewed, ControlError>> + Send;
    /// Tells that the command was started.
    fn start(&self, run: RunId, body: StartRun) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// Asks for the secrets of a run, sealed.
    fn secrets(&self, run: RunId, body: AskSecrets)
    -> impl Future<Output = Result<SealedSecrets, ControlError>> + Send;
    /// Appends log batches.
    fn append_logs(
        &self,
        run: RunId,
        fenced: Fenced,
        batches: Bytes,
    ) -> impl Future<Output = Result<Appended, ControlError>> + Send;
    /// Appends events.
    fn append_events(&self, run: RunId, body: AppendEvents) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// Uploads the archive of changes, `length` bytes from the start of `file`.
    fn put_changes(
        &self,
        run: RunId,
        fenced: Fenced,
        file: std::fs::File,
        length: u64,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// Tells that the sandbox has ended, while what it left is still being stored.
    fn ended(&self, run: RunId, body: SandboxEnded) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// Tells how the run ended.
    fn finish(&self, run: RunId, body: FinishRun) -> impl Future<Output = Result<(), ControlError>> + Send;
}
