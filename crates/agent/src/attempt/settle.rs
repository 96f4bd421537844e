//! How a sandbox ended whose shim is gone.

use std::{path::Path, sync::Arc};

use holm_shim::{client::read_exit, protocol::Status};
use tokio::sync::watch;

use super::seen::Seen;
use crate::{control::ControlPlane, journal::Record, occupancy::Stay, reaper, shared::Shared};

/// Finds out how one sandbox ended.
pub(crate) struct Settler<'a, C> {
    pub(crate) shared: &'a Arc<Shared<C>>,
    pub(crate) stay: &'a Arc<Stay>,
    pub(crate) dir: &'a Path,
}

impl<C: ControlPlane> Settler<'_, C> {
    /// Takes the shim's last word. Where it left none, the sandbox may still live: it is removed before anything is told.
    pub(crate) async fn settle(&self, seen: &watch::Sender<Seen>) {
        let fence = self.stay.attempt().fence;
        let (shared, stay, dir) = (self.shared.clone(), self.stay.clone(), self.dir.to_owned());
        let task = tokio::task::spawn_blocking(move || last_word_or_removal(&shared, &stay, &dir));
        let status = task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "removing a sandbox whose shim is gone");
            None
        });
        seen.send_modify(|seen| {
            if let Some(status) = status {
                seen.take(fence, &status);
            }
            // A final status that speaks of no end is no word at all.
            seen.lose();
        });
    }
}

fn last_word_or_removal<C>(shared: &Shared<C>, stay: &Stay, dir: &Path) -> Option<Status> {
    let attempt = stay.attempt();
    match read_exit(dir) {
        Ok(Some(status)) if status.fence == attempt.fence => return Some(status),
        Ok(_) => tracing::error!(run = %attempt.run, fence = attempt.fence, "a shim is gone and left no word"),
        Err(error) => tracing::error!(run = %attempt.run, fence = attempt.fence, %error, "the last word of a shim"),
    }
    match Record::read(dir, attempt) {
        Ok(Some(record)) => {
            reaper::destroy(&shared.runtimes, &record.resources);
        }
        Ok(None) => {}
        Err(problem) => tracing::error!(run = %attempt.run, fence = attempt.fence, %problem, "removing a sandbox"),
    }
    None
}
