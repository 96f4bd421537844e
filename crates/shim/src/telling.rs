//! What an attempt tells of the run while it is under way, and how that gets into its file.
//!
//! What always holds: events decide nothing, so no run fails because they cannot be written; how many could not be is told
//! with its end.

use std::{convert::Infallible, io};

use holm_domain::run::EventKind;
use holm_runtime::crash::effect;
use holm_wire::host_api::Refused;
use tokio::{sync::mpsc, time::sleep};

use crate::{clock, full_disk::TRY_AGAIN_AFTER, supervise::Attempt};

/// How many refusals of a guest's may wait to be counted.
pub(crate) const REFUSALS_WAITING_MAX: usize = 1_024;

impl Attempt {
    /// Tells an event. Where the disk has no room, it waits for some.
    pub(crate) fn tell(&self, event: EventKind) {
        match effect("event.write", || self.events.borrow_mut().append(event)) {
            Ok(true) => {}
            Ok(false) => self.event_waits.notify_one(),
            Err(error) => tracing::error!(%error, "an event cannot be written"),
        }
        self.progress();
    }

    /// Counts what was refused, as the guest tells of it.
    pub(crate) async fn count_refusals(&self, refusals: &mut mpsc::Receiver<Refused>) -> Infallible {
        while let Some(refused) = refusals.recv().await {
            self.count_refusal(&refused, None);
        }
        std::future::pending().await
    }

    /// Counts what was refused once.
    pub(crate) fn count_refusal(&self, refused: &Refused, reason: Option<String>) {
        let may_tell = self.events.borrow().has_room();
        let event = self.refusals.borrow_mut().count(refused, reason, may_tell, clock::boot());
        if let Some(event) = event {
            self.tell(event);
        }
    }

    /// Tells the last counts and what still waits, as far as that can be written.
    pub(crate) async fn tell_last_events(&self) {
        for event in std::mem::take(&mut *self.refusals.borrow_mut()).finish() {
            self.tell(event);
        }
        if let Err(error) = self.write_last_events().await {
            tracing::error!(%error, "events are lost");
        }
        self.progress();
        self.update(|status| status.events_unwritten = self.events.borrow().unwritten());
    }

    /// Writes the events that wait, for no longer than a full disk is waited for.
    async fn write_last_events(&self) -> io::Result<()> {
        while !self.events.borrow_mut().flush()? {
            if !self.full_disk.wait().await {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        self.full_disk.has_room(clock::boot());
        Ok(())
    }

    /// Writes events for which the disk had no room as soon as it has, up to the end of the run. A disk that fails shows with
    /// the next event.
    pub(crate) async fn write_events_that_wait(&self) -> Infallible {
        loop {
            self.event_waits.notified().await;
            while matches!(self.events.borrow_mut().flush(), Ok(false)) {
                self.progress();
                sleep(TRY_AGAIN_AFTER).await;
            }
            self.progress();
        }
    }
}
