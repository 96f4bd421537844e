//! The control plane: HTTP API, agent protocol, and the tasks that end what is overdue.
//!
//! A [`Server`] joins the decisions of `holm-domain` with the transactions of `holm-store` and serves them on TCP and on
//! Unix sockets. Layers, each calling only the next: `http` (one endpoint, one file), `ops` (one verb, one transaction),
//! `holm-domain` (what is decided) and `holm-store` (what is remembered). Beside them: `auth` (who asks), `tasks` (what is
//! done without being asked), `wakers` (hints that something changed), `metrics` (what is counted).
//!
//! What always holds:
//! - a handler knows its caller's org from the token alone, and every read and write takes that org;
//! - an operation of an agent carries its id and its fence; under any other fence it changes nothing (SPEC L2);
//! - every error leaves as a problem document with a stable code; every body, page, stream and wait has a limit
//!   ([`config`]);
//! - nothing rests on what is in the memory of one server: any number of them work on one store.
//!
//! Left out: what the words of the API mean (`holm-api`), how a run is executed (`holm-agent`), TLS (a proxy in front).

mod account;
mod activity;
mod app;
pub mod auth;
pub mod clock;
pub mod config;
#[cfg(test)]
mod damaged_rows;
pub mod direct;
mod gate;
mod http;
mod ids;
#[cfg(test)]
mod jumps;
pub mod limited;
mod metrics;
mod ops;
mod pools;
mod problem;
mod restored;
mod serve;
mod tasks;
#[cfg(test)]
mod testing;
mod told;
mod traces;
mod wakers;

use std::sync::Arc;

use holm_domain::error::InvalidField;
use holm_store::Store;

pub use crate::{
    activity::Activity,
    auth::{
        bootstrap::{Bootstrap, DEFAULT_ORG, Wanted, bootstrap},
        keyring::{NotBegun, keys_begin},
        sealing::{SEALING_KEY_BYTES, SealingKey},
    },
    clock::Clock,
    config::{Config, LOG_RETENTION_MIN, STORAGE_FLOOR_BYTES, ServeLimits, StorageFloor},
    http::{cursor, openapi},
    serve::{Listener, ServeError},
};
use app::App;

/// A control plane, ready to serve.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// A server over `store`; refuses times that cannot be.
    pub fn new(config: Config, store: Store) -> Result<Self, InvalidField> {
        config.validate()?;
        Ok(Self { app: Arc::new(App::new(config, store)) })
    }

    /// Whether anybody uses it.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.app.activity)
    }

    /// Takes the database as a restored copy, before it is served: no lease of before counts any more, and no run is granted
    /// until each has run out. Returns how many runs have not ended.
    pub async fn restored(&self) -> Result<usize, String> {
        restored::restored(&self.app).await.map_err(|failure| failure.for_log().to_string())
    }

    /// All routes, to be called in process. The tasks run only in [`Server::serve`].
    pub fn router(&self) -> axum::Router {
        http::router(Arc::clone(&self.app))
    }
}
