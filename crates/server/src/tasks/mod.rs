//! What the server does without being asked: end what is overdue, seal what has grown.
//!
//! A task takes no input: it looks at what there is, changes what is not as it should be, and comes to rest. It runs at
//! intervals, and earlier when somebody knows of work. So it does not matter whether it was called once too often, whether
//! a call was lost, or whether another server runs the same task at the same time.

pub mod reap;
pub mod seal;

use std::{sync::Arc, time::Duration};

use crate::app::App;

/// Runs all tasks until the server is to end.
pub async fn run(app: Arc<App>) {
    tokio::join!(run_reap(&app), run_seal(&app));
}

/// How often the reaper looks: often enough that an expired lease is noticed within a small part of its length.
fn reap_every(app: &App) -> Duration {
    (app.config.lease.ttl / 8).clamp(Duration::from_millis(50), Duration::from_secs(1))
}

async fn run_reap(app: &App) {
    let mut told = reap::Told::default();
    while !app.shutdown.is_cancelled() {
        if let Err(failure) = reap::reap_telling(app, &mut told).await {
            tracing::error!(%failure, "the reaper could not finish its round; it tries again");
        }
        tokio::select! {
            () = tokio::time::sleep(reap_every(app)) => {}
            () = app.shutdown.cancelled() => {}
        }
    }
}

async fn run_seal(app: &App) {
    while !app.shutdown.is_cancelled() {
        if let Err(failure) = seal::seal(app).await {
            tracing::error!(%failure, "a log could not be sealed; it stays readable as it is, and is tried again");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = app.shutdown.cancelled() => {}
            }
        }
        tokio::select! {
            () = app.wakers.sealable() => {}
            () = app.shutdown.cancelled() => {}
        }
    }
}
