//! One request and its answer, and what is told of them.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use holm_domain::secret::SecretName;
use http::request;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};

use super::{
    super::{Refusal, Told, relay::Counts},
    At,
};

/// How many characters of a method and of a path are told.
const METHOD_MAX: usize = 32;
const PATH_MAX: usize = 1_024;

/// A request that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldRequest {
    /// The name of the host.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The method.
    pub method: String,
    /// The path, without a query.
    pub path: String,
    /// The names of the secrets that were added to it.
    pub secrets: Vec<SecretName>,
    /// With which status the server answered.
    pub status: Option<u16>,
    /// Why it was not passed on, or not to its end.
    pub refused: Option<Refusal>,
    /// How many bytes of its body were sent.
    pub sent: u64,
    /// How many bytes of the body of its answer came.
    pub received: u64,
    /// How long it took, to the end of the answer.
    pub duration: Duration,
}

/// A request that is under way; told of when the last part of it has ended.
pub struct Exchange {
    at: Arc<At>,
    method: String,
    path: String,
    begun: Instant,
    secrets: OnceLock<Vec<SecretName>>,
    status: OnceLock<u16>,
    outcome: OnceLock<Result<(), Refusal>>,
    /// How much of the bodies has passed.
    pub counts: Counts,
    told: Option<mpsc::OwnedPermit<Told>>,
    _place: OwnedSemaphorePermit,
}

impl Exchange {
    /// One that has just begun.
    pub fn new(
        at: Arc<At>,
        head: &request::Parts,
        told: mpsc::OwnedPermit<Told>,
        place: OwnedSemaphorePermit,
    ) -> Arc<Self> {
        at.begin();
        let part = |text: &str, most| text.chars().take(most).collect();
        Arc::new(Self {
            at,
            method: part(head.method.as_str(), METHOD_MAX),
            path: part(head.uri.path(), PATH_MAX),
            begun: Instant::now(),
            secrets: OnceLock::new(),
            status: OnceLock::new(),
            outcome: OnceLock::new(),
            counts: Counts::default(),
            told: Some(told),
            _place: place,
        })
    }

    /// Whether what looks like the end of its body is none.
    pub fn is_cut(&self) -> bool {
        self.at.is_cut()
    }

    /// These secrets were added to it.
    pub fn bears(&self, secrets: Vec<SecretName>) {
        self.secrets.get_or_init(|| secrets);
    }

    /// The server has answered.
    pub fn answered(&self, status: http::StatusCode) {
        self.status.get_or_init(|| status.as_u16());
    }

    /// All of the answer was passed on.
    pub fn complete(&self) {
        self.outcome.get_or_init(|| Ok(()));
    }

    /// It was not passed on, or not to its end. What was said first counts.
    pub fn refuse(&self, refusal: Refusal) {
        self.outcome.get_or_init(|| Err(refusal));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.at.end();
        let Some(told) = self.told.take() else { return };
        let (sent, received) = self.counts.get();
        told.send(Told::Request(ToldRequest {
            host: self.at.name.to_string(),
            port: self.at.port,
            method: std::mem::take(&mut self.method),
            path: std::mem::take(&mut self.path),
            secrets: self.secrets.take().unwrap_or_default(),
            status: self.status.get().copied(),
            // Who asked has gone, unless something else is known.
            refused: self.outcome.get().map_or(Some(Refusal::BrokenOff), |outcome| outcome.err()),
            sent,
            received,
            duration: self.begun.elapsed(),
        }));
    }
}
