//! Objects of runs that were deleted, and of logs that were.
//!
//! A deletion removes rows and notes, in the same transaction, that their objects are doomed. They are removed at once
//! where that works, and by a sweep ([`Store::doomed_sweep`]) otherwise. The note outlives the first sweep by a time of
//! grace: whoever was writing an object meanwhile may leave it behind, and the last sweep takes it. A crash at any point
//! leaves the note, so the next sweep comes to the same end.

use std::time::Duration;

use holm_domain::{OrgId, RunId, UnixMicros};

use crate::{
    Backend, Result, Store,
    error::page,
    sql::{Args, Db, Query, Row, args, queries},
};

/// The most runs of one page.
pub const DOOMED_PAGE_MAX: u32 = 1_000;

/// Which objects of a run are doomed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DoomedPart {
    /// All of them: the run was deleted.
    Run,
    /// Those of its log.
    Log,
}

impl DoomedPart {
    /// Every part.
    pub const ALL: [DoomedPart; 2] = [DoomedPart::Run, DoomedPart::Log];
}

/// A run of which objects are to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doomed {
    /// Which of them.
    pub part: DoomedPart,
    /// The org that has or had it.
    pub org: OrgId,
    /// The run.
    pub run: RunId,
    /// When it, or its log, was deleted.
    pub doomed_at: UnixMicros,
    /// When its objects are to be removed next.
    pub sweep_at: UnixMicros,
}

impl Store {
    /// Runs of all orgs of which `part` is to be removed at `now`, in the order in which that is due, behind the place of
    /// `after`; for the server's own task.
    pub async fn doomed_due(
        &self,
        part: DoomedPart,
        now: UnixMicros,
        after: Option<&Doomed>,
        limit: u32,
    ) -> Result<Vec<Doomed>> {
        let limit = page(limit, DOOMED_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.doomed_due(part, now, after, limit)),
            Backend::Sql(db) => doomed_due(db, part, now, after, limit).await,
        }
    }

    /// Removes doomed objects of a run; returns how many there were. Once `grace` has passed since the deletion, nobody
    /// can be writing one any more, and the note is removed as well.
    pub async fn doomed_sweep(&self, doomed: &Doomed, now: UnixMicros, grace: Duration) -> Result<u64> {
        let Doomed { part, org, run, doomed_at, .. } = *doomed;
        let removed = match part {
            DoomedPart::Run => self.blobs.delete_of_run(org, run).await?,
            DoomedPart::Log => self.blobs.delete_of_log(org, run).await?,
        };
        let last_at = doomed_at.plus(grace);
        let again_at = (now < last_at).then_some(last_at);
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.doomed_swept(part, run, again_at),
            Backend::Sql(db) => doomed_swept(db, doomed, again_at).await?,
        }
        Ok(removed)
    }
}

macro_rules! due {
    ($table:literal) => {
        concat!(
            "select org, run, doomed_at, sweep_at from ",
            $table,
            " where sweep_at <= $1 and (sweep_at, run) > ($2, $3) order by sweep_at, run limit $4 + 0"
        )
    };
}

queries! {
    of "doomed run" in "org";
    DOOMED_DUE = due!("doomed_runs");
    DOOMED_AGAIN = "update doomed_runs set sweep_at = $3 where org = $1 and run = $2";
    DOOMED_DONE = "delete from doomed_runs where org = $1 and run = $2";
    DOOMED_LOG_DUE = due!("doomed_logs");
    DOOMED_LOG_AGAIN = "update doomed_logs set sweep_at = $3 where org = $1 and run = $2";
    DOOMED_LOG_DONE = "delete from doomed_logs where org = $1 and run = $2";
}

fn read(part: DoomedPart, row: &Row) -> Result<Doomed> {
    let table = match part {
        DoomedPart::Run => "doomed_runs",
        DoomedPart::Log => "doomed_logs",
    };
    let row = row.of(table, "run")?;
    Ok(Doomed {
        part,
        org: row.parsed("org")?,
        run: row.parsed("run")?,
        doomed_at: row.at("doomed_at")?,
        sweep_at: row.at("sweep_at")?,
    })
}

async fn doomed_due(
    db: &Db,
    part: DoomedPart,
    now: UnixMicros,
    after: Option<&Doomed>,
    limit: usize,
) -> Result<Vec<Doomed>> {
    let (at, run) =
        after.map_or((UnixMicros(i64::MIN), String::new()), |after| (after.sweep_at, after.run.to_string()));
    let query = match part {
        DoomedPart::Run => DOOMED_DUE,
        DoomedPart::Log => DOOMED_LOG_DUE,
    };
    db.rows(query, args![now, at, run, limit]).await?.iter().map(|row| read(part, row)).collect()
}

async fn doomed_swept(db: &Db, doomed: &Doomed, again_at: Option<UnixMicros>) -> Result<()> {
    let key = args![doomed.org, doomed.run];
    let (query, values): (Query, Args) = match (doomed.part, again_at) {
        (DoomedPart::Run, Some(at)) => (DOOMED_AGAIN, [key, args![at]].concat()),
        (DoomedPart::Run, None) => (DOOMED_DONE, key),
        (DoomedPart::Log, Some(at)) => (DOOMED_LOG_AGAIN, [key, args![at]].concat()),
        (DoomedPart::Log, None) => (DOOMED_LOG_DONE, key),
    };
    db.execute(query, values).await.map(drop)
}
