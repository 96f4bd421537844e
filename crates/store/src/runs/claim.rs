//! A claim on PostgreSQL: one statement, which is a transaction of its own.
//!
//! What always holds: it changes what [`super::sql::run_save`] would change, or nothing. Where it changes nothing, that says
//! why. It is for claims alone, which need no more than one event and touch no other run.

use holm_domain::{
    UnixMicros,
    run::{Cancel, EventKind, Run},
};

use super::{Saved, sql::seal_from};
use crate::{
    Result,
    retention::kept_since,
    sql::{Db, args, encode, queries},
};

queries! {
    of "run" in "project";
    /// Nothing where the run has another version, or no log head.
    RUN_CLAIM = "with saved as (
          update runs set state = $4, version = $5, fence = $6, deadline_at = $7, body = $8, log_kept_since = $9,
            queue_at = $10
          where org = $1 and id = $2 and version = $3
            and exists (select 1 from log_heads h where h.org = $1 and h.run = $2)
          returning org, id),
        leased as (
          insert into leases (org, run, agent, fence, version, expires_at, cancel)
          select org, id, $11, $6, $5, $12, $16 from saved
          on conflict (org, run) do update set agent = excluded.agent, fence = excluded.fence,
            version = excluded.version, expires_at = excluded.expires_at, cancel = excluded.cancel),
        head as (
          update log_heads h set fence = $6, next_event_seq = h.next_event_seq + 1, seal_from = $13 from saved
          where h.org = saved.org and h.run = saved.id
          returning h.org, h.run, h.next_log_seq, h.next_event_seq),
        told as (
          insert into events (org, run, seq, told_at, body) select org, run, next_event_seq - 1, $14, $15 from head)
        select next_log_seq, next_event_seq from head";
}

/// Saves a claim, if it is one and this is PostgreSQL; nothing where it is to be saved otherwise, or cannot be.
pub(super) async fn run_claim(
    db: &Db,
    expect_version: u64,
    run: &Run,
    events: &[EventKind],
    deadline: Option<UnixMicros>,
    now: UnixMicros,
) -> Result<Option<Saved>> {
    let (Db::Postgres(_), Some(lease), [told @ EventKind::Claimed { .. }]) = (db, &run.lease, events) else {
        return Ok(None);
    };
    let values = args![
        run.org,
        run.id,
        expect_version,
        run.state.as_str(),
        run.version,
        run.fence,
        deadline,
        encode("a run", run)?,
        kept_since(run),
        run.queue_at(),
        lease.agent,
        lease.expires_at,
        seal_from(run),
        now,
        encode("an event", told)?,
        run.cancel.map(Cancel::as_str),
    ];
    let Some(head) = db.row(RUN_CLAIM, values).await? else { return Ok(None) };
    let head = head.under("log_heads", run.id);
    let last_event_seq = head.number("next_event_seq")?.saturating_sub(1);
    Ok(Some(Saved { next_log_seq: head.number("next_log_seq")?, last_event_seq }))
}
