//! Events: append what an agent tells, read a page, follow.

use holm_api::{agent::AppendEvents, runs::EventPage};
use holm_domain::{
    OrgId, RunId,
    error::InvalidField,
    lease::{Claimant, grant::StaleFence},
    run::{EventKind, RunState},
};
use holm_store::EventAppended;

use super::{leases::written_run, run_of};
use crate::{
    app::App,
    auth::speaker::Speaker,
    config::EVENTS_MAX,
    http::follow::{ALIVE_COMMENT, EVENT_STREAM, Source, Step, write_event},
    problem::Failure,
};

/// How many events one look of a follower reads.
const FOLLOW_READ: u32 = 1_000;

/// Stores what an agent tells of a run that it holds; an event that was stored before is not stored again. One that cannot
/// be accepted is stored as refused, so that it does not stand in the way of those after it.
pub async fn event_append(app: &App, speaker: &Speaker, id: RunId, body: AppendEvents) -> Result<(), Failure> {
    check(&body)?;
    let AppendEvents { agent, instance, fence, first_seq, events } = body;
    let events: Vec<EventKind> = events.into_iter().map(EventKind::from).collect();
    let run = written_run(app, speaker, id, Claimant { agent, instance }, fence).await?;
    match app.store.event_append(run.org, id, fence, first_seq, &events, app.now()).await? {
        EventAppended::Stored { .. } => {
            app.wakers.ring_run(id);
            Ok(())
        }
        EventAppended::StaleFence => Err(StaleFence { given: fence, newest: run.fence }.into()),
    }
}

fn check(body: &AppendEvents) -> Result<(), InvalidField> {
    if body.events.is_empty() || body.events.len() > EVENTS_MAX {
        return Err(InvalidField::new("events", body.events.len(), format!("give 1 to {EVENTS_MAX} events")));
    }
    let last = body.first_seq.checked_add(EVENTS_MAX as u64).filter(|last| *last <= i64::MAX.unsigned_abs());
    if body.first_seq == 0 || last.is_none() {
        return Err(InvalidField::new("first_seq", body.first_seq, "number the events of a lease from 1"));
    }
    Ok(())
}

/// Up to `limit` events after the number `after`.
pub async fn event_page(app: &App, org: OrgId, id: RunId, after: u64, limit: u32) -> Result<EventPage, Failure> {
    run_of(app, org, id).await?;
    let events = app.store.event_page(org, id, after, limit).await?;
    let last_seq = events.last().map_or(after, |event| event.seq);
    Ok(EventPage { events, last_seq })
}

/// The events of a run, followed from a position on.
#[derive(Debug)]
pub struct EventSource {
    org: OrgId,
    run: RunId,
    after: u64,
}

impl EventSource {
    /// Follows the events of `run` after the number `after`.
    pub fn new(org: OrgId, run: RunId, after: u64) -> Self {
        Self { org, run, after }
    }
}

impl Source for EventSource {
    const MEDIA_TYPE: &'static str = EVENT_STREAM;
    const ALIVE: &'static [u8] = ALIVE_COMMENT;

    async fn step(&mut self, app: &App) -> Result<Step, Failure> {
        let ended = run_of(app, self.org, self.run).await?.state == RunState::Ended;
        let events = app.store.event_page(self.org, self.run, self.after, FOLLOW_READ).await?;
        let mut out = Vec::new();
        for event in &events {
            write_event(&mut out, "event", Some(event.seq), event)?;
            self.after = event.seq;
        }
        let over = events.len() < FOLLOW_READ as usize && ended;
        match (out.is_empty(), over) {
            (_, true) => Ok(Step::End(out.into())),
            (false, false) => Ok(Step::New(out.into())),
            (true, false) => Ok(Step::Quiet),
        }
    }
}
