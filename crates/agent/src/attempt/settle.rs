//! How a sandbox ended whose shim is gone.

use std::{path::Path, sync::Arc};

use holm_shim::{
    client::{may_have_started, read_exit},
    protocol::{EXIT_FILE_NAME, Status},
};
use tokio::sync::watch;

use super::{seen::Seen, spawn_blocking};
use crate::{
    backoff::Backoff, control::ControlPlane, folder::note_damage, journal::Record, occupancy::Stay, reaper,
    station::Shared,
};

/// Finds out how one sandbox ended.
pub(crate) struct Settler<'a, C> {
    pub(crate) shared: &'a Arc<Shared<C>>,
    pub(crate) stay: &'a Arc<Stay>,
    pub(crate) dir: &'a Path,
}

/// What is left of a shim that is gone.
enum Remains {
    /// Its last word. The sandbox is removed.
    Word(Box<Status>),
    /// It left none, or one that cannot be read. The sandbox is removed.
    Silence { started: bool, unreadable: Option<String> },
    /// It left none, and the sandbox may still live: something of it could not be removed.
    Unsettled,
}

impl<C: ControlPlane> Settler<'_, C> {
    /// Takes the shim's last word, if it left one. Whatever it says, nothing is told before the sandbox is removed, however
    /// often that has to be tried: a shim that died on the way may have spoken too early. Whoever waits for this gives up
    /// when the lease is lost.
    pub(crate) async fn settle(self, seen: watch::Sender<Seen>) {
        let fence = self.stay.attempt().fence;
        let mut backoff = Backoff::default();
        loop {
            let (shared, stay, dir) = (self.shared.clone(), self.stay.clone(), self.dir.to_owned());
            let remains = spawn_blocking(move || look(&shared, &stay, &dir)).await;
            let remains = remains.unwrap_or_else(|error| {
                tracing::error!(%error, "removing a sandbox whose shim is gone");
                Remains::Unsettled
            });
            if matches!(remains, Remains::Unsettled) {
                backoff.wait().await;
                continue;
            }
            seen.send_modify(|seen| {
                let unreadable = match remains {
                    Remains::Word(status) => {
                        seen.take(fence, &status);
                        None
                    }
                    Remains::Silence { started, unreadable } => {
                        seen.started |= started;
                        unreadable
                    }
                    Remains::Unsettled => None,
                };
                // A final status that speaks of no end is no word at all.
                seen.lose(unreadable.as_deref());
            });
            return;
        }
    }
}

fn look<C>(shared: &Shared<C>, stay: &Stay, dir: &Path) -> Remains {
    let attempt = stay.attempt();
    let fence = attempt.fence;
    let is_removed = match Record::read(dir, attempt) {
        Ok(Some(record)) => reaper::destroy(&shared.runtimes, &record.resources),
        Ok(None) => true,
        Err(problem) => {
            tracing::error!(%problem, "a sandbox is removed by what is found of it");
            reaper::destroy_found(&shared.runtimes, attempt)
        }
    };
    if !is_removed {
        return Remains::Unsettled;
    }
    let unreadable = match read_exit(dir) {
        Ok(Some(status)) if status.fence == fence => return Remains::Word(Box::new(status)),
        Ok(_) => {
            tracing::error!("a shim is gone and left no word");
            None
        }
        Err(error) => {
            let problem = format!("{EXIT_FILE_NAME}: {error}");
            tracing::error!(problem, "the last word of a shim cannot be read");
            note_damage(dir, &problem);
            Some(problem)
        }
    };
    let started = may_have_started(dir).unwrap_or_else(|error| {
        tracing::error!(%error, "whether the command was started");
        true
    });
    Remains::Silence { started, unreadable }
}
