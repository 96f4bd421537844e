//! Runs in SQL.

use holm_domain::{
    OrgId, RunId, UnixMicros,
    run::{Cancel, EventKind, Run, RunState},
};

use super::{FILTER_LABELS_MAX, Idempotency, Inserted, RunFilter, RunRow, Saved, claim::run_claim};
use crate::{
    Due, DuePlace, Error, LOG_INLINE_BYTES, LOG_SEGMENT_BYTES, Renewal, Result,
    events::event_save,
    leases::{behind, due},
    retention::kept_since,
    sql::{Args, Db, Fields, Query, Row, Tx, Value, args, encode, queries},
};

/// How often an insertion looks again for the run of its idempotency key, should that run be deleted meanwhile.
const INSERT_ATTEMPTS: u32 = 4;
/// Sorts after every id of a run.
const AFTER_ALL: &str = "run_~";

macro_rules! run_list {
    ($from:literal) => {
        concat!(
            "select r.id, r.org, r.version, r.state, r.body from ",
            $from,
            " and ($3 = '' or $3 like '%,' || r.state || ',%') and r.id < $4 order by r.id desc limit $5 + 0"
        )
    };
}

queries! {
    of "run" in "project";
    RUN_INSERT = "insert into runs (id, org, project, state, version, fence, queued_at, deadline_at, body, queue_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    RUN_INSERT_LABEL = "insert into run_labels (org, key, value, run) values ($1, $2, $3, $4)";
    RUN_INSERT_HEAD = "insert into log_heads (org, run, fence, next_log_seq, next_event_seq, unsealed_bytes, seal_from,
        newest_at) values ($1, $2, $3, 1, $4, 0, $5, $6)";
    RUN_INSERT_KEY = "insert into idempotency_keys (org, key, digest, run) values ($1, $2, $3, $4)
        on conflict (org, key) do nothing";
    RUN_BY_KEY = "select r.id, r.org, r.version, r.state, r.body, k.digest
        from idempotency_keys k join runs r on r.org = k.org and r.id = k.run where k.org = $1 and k.key = $2";
    RUN_GET = "select id, org, version, state, body from runs where org = $1 and id = $2";
    /// All runs of an org; `$2` is empty.
    RUN_LIST = run_list!("runs r where r.org = $1 and $2 = ''");
    /// The same without those that ended, by the index over the others.
    RUN_LIST_LIVE = run_list!("runs r where r.org = $1 and $2 = '' and r.state <> 'ended'");
    RUN_LIST_OF_PROJECT = run_list!("runs r where r.org = $1 and r.project = $2");
    /// Runs with labels: found by the first, the rest is looked up for each. There are as many places as a filter may name
    /// labels; those left over repeat the first.
    RUN_LIST_LABELLED = run_list!("run_labels l join runs r on r.org = l.org and r.id = l.run
        where l.org = $1 and l.key = $6 and l.value = $7 and l.run < $4 and ($2 = '' or r.project = $2)
        and exists (select 1 from run_labels m where m.org = $1 and m.key = $8 and m.value = $9 and m.run = r.id)
        and exists (select 1 from run_labels m where m.org = $1 and m.key = $10 and m.value = $11 and m.run = r.id)
        and exists (select 1 from run_labels m where m.org = $1 and m.key = $12 and m.value = $13 and m.run = r.id)
        and exists (select 1 from run_labels m where m.org = $1 and m.key = $14 and m.value = $15 and m.run = r.id)
        and exists (select 1 from run_labels m where m.org = $1 and m.key = $16 and m.value = $17 and m.run = r.id)
        and exists (select 1 from run_labels m where m.org = $1 and m.key = $18 and m.value = $19 and m.run = r.id)
        and exists (select 1 from run_labels m where m.org = $1 and m.key = $20 and m.value = $21 and m.run = r.id)");
    /// Those that pause stand nowhere, so they are behind no place.
    RUN_QUEUE = "select id, org, version, state, body, queue_at from runs
        where org = $1 and state = 'queued' and (queue_at, id) > ($2, $3) order by queue_at, id limit $4 + 0";
    RUN_SAVE = "update runs set state = $4, version = $5, fence = $6, deadline_at = $7, body = $8, log_kept_since = $9,
          queue_at = $10
        where org = $1 and id = $2 and version = $3";
    RUN_SAVE_LEASE = "insert into leases (org, run, agent, fence, version, expires_at, cancel)
        values ($1, $2, $3, $4, $5, $6, $7)
        on conflict (org, run) do update set agent = excluded.agent, fence = excluded.fence,
          version = excluded.version, expires_at = excluded.expires_at, cancel = excluded.cancel";
    RUN_SAVE_NO_LEASE = "delete from leases where org = $1 and run = $2";
    RUN_SAVE_HEAD = "update log_heads set fence = $3, next_event_seq = next_event_seq + $4, seal_from = $5
        where org = $1 and run = $2 returning next_log_seq, next_event_seq";
    RUN_DELETE = "delete from runs where org = $1 and id = $2 and version = $3";
    RUN_DELETE_DOOM = "insert into doomed_runs (org, run, doomed_at, sweep_at) values ($1, $2, $3, $3)
        on conflict (org, run) do nothing";
}

/// From how many bytes in rows on the log of the run is worth sealing: as many as fill a blob while more is to come, as many
/// as are worth one once nothing more will.
pub(super) fn seal_from(run: &Run) -> usize {
    if run.state == RunState::Ended { LOG_INLINE_BYTES } else { LOG_SEGMENT_BYTES }
}

/// Reads a run. The columns by which it was found must be those of its body.
pub(crate) fn read(row: &Row) -> Result<Run> {
    read_of(&row.of("runs", "id")?)
}

fn read_of(row: &Fields<'_>) -> Result<Run> {
    let run: Run = row.body("body")?;
    if run.id != row.parsed("id")? || run.org != row.parsed("org")? {
        return Err(row.corrupt("the body is that of another run"));
    }
    if run.version != row.number("version")? || run.state.as_str() != row.text("state")? {
        return Err(row.corrupt("the columns contradict the body"));
    }
    Ok(run)
}

/// Reads a run by itself.
pub(crate) fn read_row(row: &Row) -> Result<RunRow> {
    Ok(RunRow { id: row.of("runs", "id")?.text("id")?, run: read(row) })
}

fn fence_of(run: &Run) -> u64 {
    run.lease.map_or(0, |lease| lease.fence)
}

pub(super) async fn run_insert(
    db: &Db,
    run: &Run,
    idempotency: Option<&Idempotency>,
    events: &[EventKind],
    deadline: Option<UnixMicros>,
    now: UnixMicros,
) -> Result<Inserted> {
    let Some(idempotency) = idempotency else {
        let mut tx = db.begin().await?;
        insert(&mut tx, run, events, deadline, now).await?;
        tx.commit().await?;
        return Ok(Inserted::New);
    };
    for _ in 0..INSERT_ATTEMPTS {
        let mut tx = db.begin().await?;
        insert(&mut tx, run, events, deadline, now).await?;
        let key = args![run.org, idempotency.key.as_str(), &idempotency.digest, run.id];
        // Waits for another transaction that is inserting the same key; if that one wins, this one is rolled back.
        if tx.execute(RUN_INSERT_KEY, key).await? == 1 {
            tx.commit().await?;
            return Ok(Inserted::New);
        }
        drop(tx);
        if let Some(row) = db.row(RUN_BY_KEY, args![run.org, idempotency.key.as_str()]).await? {
            let digest = row.of("idempotency_keys", "id")?.digest("digest")?;
            return Ok(Inserted::Existing { run: Box::new(read(&row)?), digest });
        }
    }
    Err(Error::Conflict { what: "idempotency key" })
}

async fn insert(
    tx: &mut Tx,
    run: &Run,
    events: &[EventKind],
    deadline: Option<UnixMicros>,
    now: UnixMicros,
) -> Result<()> {
    let body = encode("a run", run)?;
    let Run { id, org, project, state, version, fence, queued_at, .. } = run;
    let place = run.queue_at();
    let values = args![*id, *org, *project, state.as_str(), *version, *fence, *queued_at, deadline, body, place];
    tx.execute(RUN_INSERT, values).await?;
    for (key, value) in run.labels() {
        tx.execute(RUN_INSERT_LABEL, args![*org, key.as_str(), value.as_str(), *id]).await?;
    }
    let head = args![*org, *id, fence_of(run), events.len() + 1, seal_from(run), UnixMicros(i64::MIN)];
    tx.execute(RUN_INSERT_HEAD, head).await?;
    if run.lease.is_some() {
        save_lease(tx, run).await?;
    }
    event_save(tx, run, 1, events, now).await
}

async fn save_lease(tx: &mut Tx, run: &Run) -> Result<()> {
    let Some(lease) = &run.lease else {
        return tx.execute(RUN_SAVE_NO_LEASE, args![run.org, run.id]).await.map(drop);
    };
    let cancel = run.cancel.map(Cancel::as_str);
    let values = args![run.org, run.id, lease.agent, lease.fence, run.version, lease.expires_at, cancel];
    tx.execute(RUN_SAVE_LEASE, values).await.map(drop)
}

pub(super) async fn run_get(db: &Db, org: OrgId, id: RunId) -> Result<Option<Run>> {
    db.row(RUN_GET, args![org, id]).await?.as_ref().map(read).transpose()
}

pub(super) async fn run_standing(db: &Db, org: OrgId, id: RunId) -> Result<Option<(RunState, u64)>> {
    let Some(row) = db.row(RUN_GET, args![org, id]).await? else { return Ok(None) };
    let row = row.of("runs", "id")?;
    // Columns and body count alike: where they contradict each other, nothing is known.
    if row.body::<Run>("body").is_ok() {
        return read_of(&row).map(|run| Some((run.state, run.version)));
    }
    let state = row.text("state")?;
    let state = RunState::parse(&state).ok_or_else(|| row.corrupt(format!("`state` is `{state}`")))?;
    Ok(Some((state, row.number("version")?)))
}

pub(super) async fn run_list(
    db: &Db,
    org: OrgId,
    filter: &RunFilter,
    before: Option<RunId>,
    limit: usize,
) -> Result<Vec<RunRow>> {
    let before = before.map_or_else(|| AFTER_ALL.to_owned(), |id| id.to_string());
    let project = filter.project.map_or_else(String::new, |id| id.to_string());
    let states: String = filter.states.iter().map(|state| format!(",{},", state.as_str())).collect();
    let query = list_query(filter);
    let mut values: Args = args![org, project, states, before, limit];
    if !filter.labels.is_empty() {
        let labels = filter.labels.iter().cycle().take(FILTER_LABELS_MAX);
        values.extend(labels.flat_map(|(key, value)| [Value::from(key.as_str()), Value::from(value.as_str())]));
    }
    db.rows(query, values).await?.iter().map(read_row).collect()
}

/// The query whose index fits the filter best.
fn list_query(filter: &RunFilter) -> Query {
    let live = !filter.states.is_empty() && !filter.states.contains(&RunState::Ended);
    match (filter.labels.is_empty(), filter.project.is_some(), live) {
        (false, _, _) => RUN_LIST_LABELLED,
        (true, true, _) => RUN_LIST_OF_PROJECT,
        (true, false, true) => RUN_LIST_LIVE,
        (true, false, false) => RUN_LIST,
    }
}

pub(super) async fn run_queue(db: &Db, org: OrgId, after: Option<&DuePlace>, limit: usize) -> Result<Vec<Due>> {
    let (at, id) = behind(after);
    db.rows(RUN_QUEUE, args![org, at, id, limit]).await?.iter().map(|row| due(row, "queue_at")).collect()
}

pub(super) async fn run_save(
    db: &Db,
    expect_version: u64,
    run: &Run,
    events: &[EventKind],
    deadline: Option<UnixMicros>,
    now: UnixMicros,
) -> Result<Saved> {
    if let Some(saved) = run_claim(db, expect_version, run, events, deadline, now).await? {
        return Ok(saved);
    }
    let mut tx = db.begin().await?;
    if !save_itself(&mut tx, expect_version, run, deadline).await? {
        drop(tx);
        return Err(changed_or_gone(db, run.org, run.id).await?);
    }
    let head = tx.row(RUN_SAVE_HEAD, args![run.org, run.id, fence_of(run), events.len(), seal_from(run)]).await?;
    let head = head.ok_or_else(|| Error::corrupt("log_heads", run.id.to_string(), "the row is missing"))?;
    let head = head.under("log_heads", run.id);
    let (next_log_seq, next_event_seq) = (head.number("next_log_seq")?, head.number("next_event_seq")?);
    let count = u64::try_from(events.len()).unwrap_or(u64::MAX);
    event_save(&mut tx, run, next_event_seq.saturating_sub(count), events, now).await?;
    tx.commit().await?;
    Ok(Saved { next_log_seq, last_event_seq: next_event_seq.saturating_sub(1) })
}

/// Saves a run and its lease, if the stored version is still the expected one; whether it was.
async fn save_itself(tx: &mut Tx, expect_version: u64, run: &Run, deadline: Option<UnixMicros>) -> Result<bool> {
    let body = encode("a run", run)?;
    let (state, version, fence) = (run.state.as_str(), run.version, run.fence);
    let (kept, place) = (kept_since(run), run.queue_at());
    let values = args![run.org, run.id, expect_version, state, version, fence, deadline, body, kept, place];
    if tx.execute(RUN_SAVE, values).await? == 0 {
        return Ok(false);
    }
    save_lease(tx, run).await?;
    Ok(true)
}

/// In the order of their ids: two transactions that save the same runs never wait for each other in a circle. State, fence
/// and events are as they were, so nothing else is written.
pub(crate) async fn leases_renew(db: &Db, renewals: &[Renewal]) -> Result<Vec<bool>> {
    let mut order: Vec<usize> = (0..renewals.len()).collect();
    order.sort_by_key(|index| renewals[*index].run.id);
    let mut saved = vec![false; renewals.len()];
    let mut tx = db.begin().await?;
    for index in order {
        let Renewal { expect_version, run, deadline } = &renewals[index];
        saved[index] = save_itself(&mut tx, *expect_version, run, *deadline).await?;
    }
    tx.commit().await?;
    Ok(saved)
}

pub(super) async fn run_delete(db: &Db, org: OrgId, id: RunId, expect_version: u64, now: UnixMicros) -> Result<()> {
    let mut tx = db.begin().await?;
    if tx.execute(RUN_DELETE, args![org, id, expect_version]).await? == 0 {
        drop(tx);
        return Err(changed_or_gone(db, org, id).await?);
    }
    tx.execute(RUN_DELETE_DOOM, args![org, id, now]).await?;
    tx.commit().await
}

pub(crate) async fn changed_or_gone(db: &Db, org: OrgId, id: RunId) -> Result<Error> {
    Ok(match db.row(RUN_GET, args![org, id]).await? {
        Some(_) => Error::Conflict { what: "run" },
        None => Error::NotFound { what: "run" },
    })
}
