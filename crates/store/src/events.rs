//! Events of runs. Their sequence has no gap: the row of the run's log head is locked while the next numbers are taken.

use holm_domain::{
    OrgId, RunId, UnixMicros,
    run::{Event, EventKind},
};

use crate::{
    Backend, Error, Result, Store,
    error::{limit, page},
};

/// The most events that one append may bring.
pub const EVENTS_APPEND_MAX: usize = 256;
/// The most events of a page.
pub const EVENTS_PAGE_MAX: u32 = 10_000;

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventAppended {
    /// Every event is stored, now or before.
    Stored {
        /// The number of the newest event of the run.
        last_seq: u64,
    },
    /// The fence is not that of a live lease; nothing was changed.
    StaleFence,
}

impl Store {
    /// Appends what an agent tells under its lease. `first_source_seq` is the agent's own number of the first event within
    /// that lease, from 1; an event whose number was stored before under the same fence is not stored again.
    pub async fn event_append(
        &self,
        org: OrgId,
        run: RunId,
        fence: u64,
        first_source_seq: u64,
        events: &[EventKind],
        now: UnixMicros,
    ) -> Result<EventAppended> {
        limit("events of an append", events.len(), EVENTS_APPEND_MAX)?;
        if first_source_seq == 0 {
            return Err(Error::invalid("first_source_seq", "the first number is 1"));
        }
        match &self.backend {
            Backend::Memory(memory) => memory.event_append(org, run, fence, first_source_seq, events, now),
        }
    }

    /// Up to `limit` events after the number `after`, in order. Nothing for a run that the org does not have.
    pub async fn event_page(&self, org: OrgId, run: RunId, after: u64, limit: u32) -> Result<Vec<Event>> {
        let limit = page(limit, EVENTS_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.event_page(org, run, after, limit)),
        }
    }
}
