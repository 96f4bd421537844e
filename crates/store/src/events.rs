//! Events of runs. Their sequence has no gap: the row of the run's log head is locked while the next numbers are taken.

use holm_domain::{
    OrgId, RunId, UnixMicros,
    run::{Event, EventKind, Run},
};

use crate::{
    Backend, Error, Result, Store,
    error::{NUMBER_MAX, limit, page},
    logs::log_head,
    sql::{Db, Row, Tx, args, encode, queries},
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
        if first_source_seq == 0 || first_source_seq > NUMBER_MAX - EVENTS_APPEND_MAX as u64 {
            let problem = format!("{first_source_seq} is not within 1 and {}", NUMBER_MAX - EVENTS_APPEND_MAX as u64);
            return Err(Error::invalid("first_source_seq", problem));
        }
        // A head without a lease stands at 0: nobody may append under that.
        if fence == 0 || fence > NUMBER_MAX {
            return Ok(EventAppended::StaleFence);
        }
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.event_append(org, run, fence, first_source_seq, events, now),
            Backend::Sql(db) => event_append(db, org, run, fence, first_source_seq, events, now).await,
        }
    }

    /// Up to `limit` events after the number `after`, in order. Nothing for a run that the org does not have.
    pub async fn event_page(&self, org: OrgId, run: RunId, after: u64, limit: u32) -> Result<Vec<Event>> {
        let limit = page(limit, EVENTS_PAGE_MAX)?;
        let after = after.min(NUMBER_MAX);
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.event_page(org, run, after, limit)),
            Backend::Sql(db) => event_page(db, org, run, after, limit).await,
        }
    }
}

queries! {
    of "event" in "run";
    /// Locks the head of the run, if it takes appends under the fence.
    EVENT_APPEND_LOCK = "update log_heads set next_event_seq = next_event_seq
        where org = $1 and run = $2 and fence = $3 returning next_event_seq";
    EVENT_APPEND = "insert into events (org, run, seq, told_at, fence, source_seq, body)
        values ($1, $2, $3, $4, $5, $6, $7) on conflict (org, run, fence, source_seq) do nothing";
    EVENT_APPEND_DONE = "update log_heads set next_event_seq = $3 where org = $1 and run = $2";
    EVENT_SAVE = "insert into events (org, run, seq, told_at, body) values ($1, $2, $3, $4, $5)";
    EVENT_PAGE = "select seq, told_at, body from events where org = $1 and run = $2 and seq > $3 order by seq limit $4 + 0";
}

async fn event_append(
    db: &Db,
    org: OrgId,
    run: RunId,
    fence: u64,
    first_source_seq: u64,
    events: &[EventKind],
    now: UnixMicros,
) -> Result<EventAppended> {
    let mut tx = db.begin().await?;
    let Some(head) = tx.row(EVENT_APPEND_LOCK, args![org, run, fence]).await? else {
        drop(tx);
        return log_head(db, org, run).await.map(|_| EventAppended::StaleFence);
    };
    let mut next = head.under("log_heads", run).number("next_event_seq")?;
    for (source_seq, kind) in (first_source_seq..).zip(events) {
        let body = encode("an event", kind)?;
        next += tx.execute(EVENT_APPEND, args![org, run, next, now, fence, source_seq, body]).await?;
    }
    tx.execute(EVENT_APPEND_DONE, args![org, run, next]).await?;
    tx.commit().await?;
    Ok(EventAppended::Stored { last_seq: next.saturating_sub(1) })
}

/// Stores what the server tells, from the number `first` on; the head is locked by the caller's transaction.
pub(crate) async fn event_save(
    tx: &mut Tx,
    run: &Run,
    first: u64,
    events: &[EventKind],
    now: UnixMicros,
) -> Result<()> {
    for (seq, kind) in (first..).zip(events) {
        tx.execute(EVENT_SAVE, args![run.org, run.id, seq, now, encode("an event", kind)?]).await?;
    }
    Ok(())
}

async fn event_page(db: &Db, org: OrgId, run: RunId, after: u64, limit: usize) -> Result<Vec<Event>> {
    let rows = db.rows(EVENT_PAGE, args![org, run, after, limit]).await?;
    let read = |row: &Row| {
        let row = row.under("events", run);
        Ok(Event { seq: row.number("seq")?, at: row.at("told_at")?, kind: row.body("body")? })
    };
    rows.iter().map(read).collect()
}
