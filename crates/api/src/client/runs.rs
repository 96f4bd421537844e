//! Runs: submit, look at, list, cancel, delete; their logs, events and changes.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use holm_domain::{RunId, trace::TRACEPARENT};

use super::{
    Client, ClientError,
    follow::{BatchFollower, EventFollower, LogFollower},
    transport::chain,
};
use crate::{
    IDEMPOTENCY_KEY,
    egress::EgressPage,
    logs::{LogMatches, LogPage, LogRange, LogRangeOf, SearchLogs},
    runs::{After, CancelRun, CreateRun, EventPage, ListRuns, RunPage, RunView},
};

impl Client {
    /// Submits a run. With the same `idempotency_key` the same run is answered again, so it may be repeated.
    pub async fn run_create(&self, body: &CreateRun, idempotency_key: Option<&str>) -> Result<RunView, ClientError> {
        let mut call = self.inner.post("/v1/runs").body_json(body);
        if let Some(key) = idempotency_key {
            call = call.header(IDEMPOTENCY_KEY, key);
        }
        if let Some(trace) = &self.trace {
            call = call.header(TRACEPARENT, &trace.to_string());
        }
        call.json().await
    }

    /// One run.
    pub async fn run_get(&self, id: RunId) -> Result<RunView, ClientError> {
        self.inner.get(format!("/v1/runs/{id}")).json().await
    }

    /// A page of runs, newest first.
    pub async fn run_list(&self, query: &ListRuns) -> Result<RunPage, ClientError> {
        self.inner.get("/v1/runs").query(query).json().await
    }

    /// Asks that a run end.
    pub async fn run_cancel(&self, id: RunId, body: &CancelRun) -> Result<RunView, ClientError> {
        self.inner.post(format!("/v1/runs/{id}/cancel")).body_json(body).json().await
    }

    /// Forgets a run that has ended, with its logs and events.
    pub async fn run_delete(&self, id: RunId) -> Result<(), ClientError> {
        self.inner.delete(format!("/v1/runs/{id}")).no_content().await
    }

    /// A page of log entries.
    pub async fn run_logs(&self, id: RunId, query: &After) -> Result<LogPage, ClientError> {
        self.inner.get(format!("/v1/runs/{id}/logs")).query(query).json().await
    }

    /// A page of events.
    pub async fn run_events(&self, id: RunId, query: &After) -> Result<EventPage, ClientError> {
        self.inner.get(format!("/v1/runs/{id}/events")).query(query).json().await
    }

    /// A page of what a run reached, and what it was refused.
    pub async fn run_egress(&self, id: RunId, query: &After) -> Result<EgressPage, ClientError> {
        self.inner.get(format!("/v1/runs/{id}/egress")).query(query).json().await
    }

    /// Which part of the log a time or a number of lines means.
    pub async fn run_logs_range(&self, id: RunId, of: &LogRangeOf) -> Result<LogRange, ClientError> {
        self.inner.get(format!("/v1/runs/{id}/logs/range")).query(of).json().await
    }

    /// Lines that contain something: what is found in a moment, and from where to go on.
    pub async fn run_logs_search(&self, id: RunId, query: &SearchLogs) -> Result<LogMatches, ClientError> {
        self.inner.get(format!("/v1/runs/{id}/logs/search")).query(query).json().await
    }

    /// Reads the log after sequence `after` as batches: up to `upto`, or, without it, until the run has ended. The last
    /// batch may go on behind `upto`.
    pub fn run_logs_batches(&self, id: RunId, after: u64, upto: Option<u64>) -> BatchFollower {
        let query = upto.map_or_else(|| "follow=true".to_owned(), |upto| format!("upto={upto}"));
        BatchFollower::new(self.clone(), format!("/v1/runs/{id}/logs/batches?{query}"), after)
    }

    /// Follows the log entries after sequence `after` until the run has ended. Nothing is sent before the first
    /// [`next`](super::follow::Follower::next).
    pub fn run_logs_follow(&self, id: RunId, after: u64) -> LogFollower {
        LogFollower::new(self.clone(), format!("/v1/runs/{id}/logs/follow"), after)
    }

    /// Follows the events after sequence `after` until the terminal one.
    pub fn run_events_follow(&self, id: RunId, after: u64) -> EventFollower {
        EventFollower::new(self.clone(), format!("/v1/runs/{id}/events/follow"), after)
    }

    /// What a run changed in its work dir, as a tar archive in pieces. The caller limits how long it reads.
    pub async fn run_changes(
        &self,
        id: RunId,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + 'static, ClientError> {
        let response = self.inner.get(format!("/v1/runs/{id}/changes")).stream().await?;
        let endpoint = self.endpoint().to_string();
        Ok(response.bytes_stream().map(move |piece| {
            piece.map_err(|error| ClientError::Transport { endpoint: endpoint.clone(), problem: chain(&error) })
        }))
    }
}
