//! What an attempt tells of the run while it is under way, and how that gets into its file.
//!
//! What always holds: events decide nothing, so no run fails because the disk has no room for them.

use std::{convert::Infallible, io};

use holm_domain::run::EventKind;
use holm_runtime::crash::effect;
use holm_wire::host_api::Refused;
use tokio::sync::mpsc;

use crate::{clock, full_disk::TRY_AGAIN_AFTER, supervise::Attempt};

/// How many refusals of a guest's may wait to be counted.
pub(crate) const REFUSALS_WAITING_MAX: usize = 1_024;

impl Attempt {
    /// Tells an event.
    pub(crate) fn tell(&self, event: EventKind) -> io::Result<()> {
        if !effect("event.write", || self.events.borrow_mut().append(event))? {
            self.event_waits.notify_one();
        }
        self.progress();
        Ok(())
    }

    /// Counts what was refused, as the guest tells of it; returns only when that cannot be told.
    pub(crate) async fn count_refusals(&self, refusals: &mut mpsc::Receiver<Refused>) -> io::Error {
        while let Some(refused) = refusals.recv().await {
            if let Err(error) = self.count_refusal(&refused) {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Counts what was refused once.
    pub(crate) fn count_refusal(&self, refused: &Refused) -> io::Result<()> {
        let may_tell = self.events.borrow().has_room();
        let event = self.refusals.borrow_mut().count(refused, may_tell, clock::boot());
        event.map_or(Ok(()), |event| self.tell(event))
    }

    /// Tells the last counts, and what still waits. Events decide nothing, so no run fails by them: the agent sees that the
    /// file has fewer than were told, and says so.
    pub(crate) async fn tell_last_events(&self) {
        let mut told = Ok(());
        for event in std::mem::take(&mut *self.refusals.borrow_mut()).finish() {
            told = told.and(self.tell(event));
        }
        let written = self.write_last_events().await;
        if let Err(error) = told.and(written) {
            tracing::error!(%error, "events are lost");
        }
        self.update(|status| status.events = self.events.borrow().told());
    }

    /// Writes the events that wait, for no longer than a full disk is waited for.
    async fn write_last_events(&self) -> io::Result<()> {
        while !self.events.borrow_mut().flush()? {
            if !self.full_disk.wait().await {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        Ok(())
    }

    /// Writes events for which the disk had no room as soon as it has. A disk that fails is for the next one to tell.
    pub(crate) async fn write_events_that_wait(&self) -> Infallible {
        loop {
            self.event_waits.notified().await;
            while matches!(self.events.borrow_mut().flush(), Ok(false)) {
                clock::sleep_until(Some(clock::boot().plus(TRY_AGAIN_AFTER))).await;
            }
            self.progress();
        }
    }
}
