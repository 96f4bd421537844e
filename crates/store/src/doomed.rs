//! Objects of runs that were deleted.
//!
//! A deletion removes the rows of a run and notes, in the same transaction, that its objects are doomed. They are removed
//! at once where that works, and by a sweep ([`Store::doomed_sweep`]) otherwise. The note outlives the first sweep by a
//! time of grace: whoever was writing an object while the run was deleted may leave it behind, and the last sweep takes it.
//! A crash at any point leaves the note, so the next sweep comes to the same end.

use std::time::Duration;

use holm_domain::{OrgId, RunId, UnixMicros};

use crate::{
    Backend, Result, Store,
    error::page,
    sql::{Db, Row, args, queries},
};

/// The most runs of one page.
pub const DOOMED_PAGE_MAX: u32 = 1_000;

/// A deleted run whose objects are to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doomed {
    /// The org that had it.
    pub org: OrgId,
    /// The run.
    pub run: RunId,
    /// When it was deleted.
    pub doomed_at: UnixMicros,
    /// When its objects are to be removed next.
    pub sweep_at: UnixMicros,
}

impl Store {
    /// Deleted runs of all orgs whose objects are to be removed at `now`, in the order in which that is due, behind the
    /// place of `after`; for the server's own task.
    pub async fn doomed_due(&self, now: UnixMicros, after: Option<&Doomed>, limit: u32) -> Result<Vec<Doomed>> {
        let limit = page(limit, DOOMED_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.doomed_due(now, after, limit)),
            Backend::Sql(db) => doomed_due(db, now, after, limit).await,
        }
    }

    /// Removes the objects of a deleted run; returns how many there were. Once `grace` has passed since the deletion, nobody
    /// can be writing one any more, and the note is removed as well.
    pub async fn doomed_sweep(&self, doomed: &Doomed, now: UnixMicros, grace: Duration) -> Result<u64> {
        let Doomed { org, run, doomed_at, .. } = *doomed;
        let removed = self.blobs.delete_of_run(org, run).await?;
        let last_at = doomed_at.plus(grace);
        let again_at = (now < last_at).then_some(last_at);
        match &self.backend {
            Backend::Memory(memory) => memory.doomed_swept(run, again_at),
            Backend::Sql(db) => doomed_swept(db, org, run, again_at).await?,
        }
        Ok(removed)
    }
}

queries! {
    of "doomed run" in "org";
    DOOMED_DUE = "select org, run, doomed_at, sweep_at from doomed_runs
        where sweep_at <= $1 and (sweep_at, run) > ($2, $3) order by sweep_at, run limit $4";
    DOOMED_AGAIN = "update doomed_runs set sweep_at = $3 where org = $1 and run = $2";
    DOOMED_DONE = "delete from doomed_runs where org = $1 and run = $2";
}

fn read(row: &Row) -> Result<Doomed> {
    let row = row.of("doomed_runs", "run")?;
    Ok(Doomed {
        org: row.parsed("org")?,
        run: row.parsed("run")?,
        doomed_at: row.at("doomed_at")?,
        sweep_at: row.at("sweep_at")?,
    })
}

async fn doomed_due(db: &Db, now: UnixMicros, after: Option<&Doomed>, limit: usize) -> Result<Vec<Doomed>> {
    let (at, run) =
        after.map_or((UnixMicros(i64::MIN), String::new()), |after| (after.sweep_at, after.run.to_string()));
    db.rows(DOOMED_DUE, args![now, at, run, limit]).await?.iter().map(read).collect()
}

async fn doomed_swept(db: &Db, org: OrgId, run: RunId, again_at: Option<UnixMicros>) -> Result<()> {
    match again_at {
        Some(at) => db.execute(DOOMED_AGAIN, args![org, run, at]).await.map(drop),
        None => db.execute(DOOMED_DONE, args![org, run]).await.map(drop),
    }
}
