//! What every handler, operation and task of one server shares.

use std::sync::Arc;

use holm_domain::UnixMicros;
use holm_store::Store;
use tokio_util::sync::CancellationToken;

use crate::{activity::Activity, config::Config, gate::Gate, wakers::Wakers};

/// What every handler, operation and task of one server shares.
#[derive(Debug)]
pub struct App {
    /// What the server was told.
    pub config: Config,
    /// What is remembered.
    pub store: Store,
    /// Hints that something changed.
    pub wakers: Wakers,
    /// Live streams of each org.
    pub streams: Arc<Gate>,
    /// Waiting polls of each org.
    pub polls: Arc<Gate>,
    /// Whether anybody uses the server.
    pub activity: Arc<Activity>,
    /// Cancelled when the server is to end: waits and streams end at once.
    pub shutdown: CancellationToken,
}

impl App {
    /// Puts the parts together.
    pub fn new(config: Config, store: Store) -> Self {
        Self {
            streams: Gate::new("streams", config.limits.streams_per_org_max),
            polls: Gate::new("polls", config.limits.polls_per_org_max),
            config,
            store,
            wakers: Wakers::default(),
            activity: Arc::default(),
            shutdown: CancellationToken::new(),
        }
    }

    /// The time now.
    pub fn now(&self) -> UnixMicros {
        self.config.clock.now()
    }
}
