//! The agent protocol. Only `holm agent` uses it; each call may be repeated without harm.

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use holm_domain::RunId;

use super::{Client, ClientError};
use crate::{
    LOG_BATCH, TAR,
    agent::{
        AppendEvents, Appended, Fenced, FinishRun, Poll, Polled, Register, Registered, Renew, Renewed, SandboxEnded,
        StartRun,
    },
    identity::{Enrol, Enrolled, Session},
    run_secrets::{AskSecrets, SealedSecrets},
};

/// How long an upload of changes may take at least, and for each further 64 KiB of it in addition.
const UPLOAD_DEADLINE_BASE: Duration = Duration::from_secs(60);
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

impl Client {
    /// Enrols the key of a host; the token of this client is a join token.
    pub async fn host_enrol(&self, body: &Enrol, deadline: Duration) -> Result<Enrolled, ClientError> {
        self.inner.post("/agent/v1/enrol").body_json(body).deadline(deadline).json().await
    }

    /// Begins a session; the token of this client is what the host has signed.
    pub async fn session_open(&self, deadline: Duration) -> Result<Session, ClientError> {
        self.inner.post("/agent/v1/session").deadline(deadline).json().await
    }

    /// Tells what there is on this host.
    pub async fn agent_register(&self, body: &Register, deadline: Duration) -> Result<Registered, ClientError> {
        self.inner.post("/agent/v1/register").body_json(body).deadline(deadline).json().await
    }

    /// Waits for runs and directives; `deadline` must be longer than what the body asks the server to wait.
    pub async fn agent_poll(&self, body: &Poll, deadline: Duration) -> Result<Polled, ClientError> {
        self.inner.post("/agent/v1/poll").body_json(body).deadline(deadline).json().await
    }

    /// Extends leases.
    pub async fn agent_renew(&self, body: &Renew, deadline: Duration) -> Result<Renewed, ClientError> {
        self.inner.post("/agent/v1/renew").body_json(body).deadline(deadline).json().await
    }

    /// Tells that the command of a run was started.
    pub async fn agent_start(&self, run: RunId, body: &StartRun, deadline: Duration) -> Result<(), ClientError> {
        self.inner.post(format!("/agent/v1/runs/{run}/start")).body_json(body).deadline(deadline).no_content().await
    }

    /// Asks for the secrets of a run, sealed.
    pub async fn agent_secrets(
        &self,
        run: RunId,
        body: &AskSecrets,
        deadline: Duration,
    ) -> Result<SealedSecrets, ClientError> {
        self.inner.post(format!("/agent/v1/runs/{run}/secrets")).body_json(body).deadline(deadline).json().await
    }

    /// Appends log batches, at most 8 MiB at once.
    pub async fn agent_append_logs(
        &self,
        run: RunId,
        fenced: &Fenced,
        batches: Bytes,
    ) -> Result<Appended, ClientError> {
        let call = self.inner.post(format!("/agent/v1/runs/{run}/logs")).query(fenced);
        call.body(LOG_BATCH, batches).json().await
    }

    /// Appends events.
    pub async fn agent_append_events(
        &self,
        run: RunId,
        body: &AppendEvents,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        self.inner.post(format!("/agent/v1/runs/{run}/events")).body_json(body).deadline(deadline).no_content().await
    }

    /// Uploads the archive of changes in pieces. The deadline grows with its length.
    pub async fn agent_put_changes(
        &self,
        run: RunId,
        fenced: &Fenced,
        pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
        length: u64,
    ) -> Result<(), ClientError> {
        let deadline = UPLOAD_DEADLINE_BASE + Duration::from_secs(length / UPLOAD_BYTES_PER_SECOND_MIN);
        let call = self.inner.put(format!("/agent/v1/runs/{run}/changes")).query(fenced).deadline(deadline);
        call.body(TAR, reqwest::Body::wrap_stream(pieces)).no_content().await
    }

    /// Tells that the sandbox of a run has ended, while what it left is still being stored.
    pub async fn agent_ended(&self, run: RunId, body: &SandboxEnded, deadline: Duration) -> Result<(), ClientError> {
        self.inner.post(format!("/agent/v1/runs/{run}/ended")).body_json(body).deadline(deadline).no_content().await
    }

    /// Tells how a run ended.
    pub async fn agent_finish(&self, run: RunId, body: &FinishRun, deadline: Duration) -> Result<(), ClientError> {
        self.inner.post(format!("/agent/v1/runs/{run}/finish")).body_json(body).deadline(deadline).no_content().await
    }
}
