//! Logs of runs that have ended: found by how long they have been kept, and deleted while their runs stay.
//!
//! A deletion is one transaction: the run says that its log is gone, the rows of it go, and its objects are doomed
//! ([`crate::doomed`]). A crash before it changed nothing, a crash behind it leaves the note.

use holm_domain::{
    UnixMicros,
    run::{Run, RunState},
};

use crate::{
    Backend, Due, DuePlace, Error, LEASES_PAGE_MAX, Result, Store,
    error::page,
    leases::{behind, due},
    runs::follows,
    sql::{Db, args, encode, queries},
};

impl Store {
    /// Runs of all orgs whose logs are kept since `ended_by` or longer, the longest first, behind the place `after`; for the
    /// server's own task. One that an earlier program ended is among them until its end is noted ([`Self::log_keep`]).
    pub async fn logs_kept(&self, ended_by: UnixMicros, after: Option<&DuePlace>, limit: u32) -> Result<Vec<Due>> {
        let limit = page(limit, LEASES_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.logs_kept(ended_by, after, limit)),
            Backend::Sql(db) => logs_kept(db, ended_by, after, limit).await,
        }
    }

    /// Notes since when the log of a run is kept: since its end.
    pub async fn log_keep(&self, run: &Run) -> Result<()> {
        match &self.backend {
            // In memory there is no run of an earlier program.
            Backend::Memory(_) => Ok(()),
            Backend::Sql(db) => {
                db.execute(LOG_KEEP, args![run.org, run.id, run.version, kept_since(run)]).await.map(drop)
            }
        }
    }

    /// Deletes the log of a run: saves `run`, which says so, if the stored version is still `expect_version`; a conflict
    /// otherwise. Its objects that are not removed now are by [`Store::doomed_sweep`].
    pub async fn log_delete(&self, expect_version: u64, run: &Run, now: UnixMicros) -> Result<()> {
        follows(expect_version, run)?;
        if run.state != RunState::Ended || run.logs_deleted_at.is_none() {
            return Err(Error::invalid(
                "the deletion of a log",
                format!("{} does not say that its log is gone", run.id),
            ));
        }
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.log_delete(expect_version, run, now)?,
            Backend::Sql(db) => log_delete(db, expect_version, run, now).await?,
        }
        if let Err(error) = self.blobs.delete_of_log(run.org, run.id).await {
            tracing::warn!(run = %run.id, %error, "objects of a deleted log are left to the next sweep");
        }
        Ok(())
    }
}

queries! {
    of "run" in "project";
    LOGS_KEPT = "select id, org, version, state, body, log_kept_since from runs
        where state = 'ended' and log_kept_since <= $1 and (log_kept_since, id) > ($2, $3)
        order by log_kept_since, id limit $4 + 0";
    LOG_KEEP = "update runs set log_kept_since = $4 where org = $1 and id = $2 and version = $3";
    LOG_DELETE_SAVE = "update runs set version = $4, log_kept_since = null, body = $5
        where org = $1 and id = $2 and version = $3";
    LOG_DELETE = "delete from log_segments where org = $1 and run = $2";
    LOG_DELETE_HEAD = "update log_heads set unsealed_bytes = 0 where org = $1 and run = $2";
    LOG_DELETE_DOOM = "insert into doomed_logs (org, run, doomed_at, sweep_at) values ($1, $2, $3, $3)
        on conflict (org, run) do nothing";
}

/// Since when the log of a run is kept. A run that goes on is not looked for by this.
pub(crate) fn kept_since(run: &Run) -> Option<UnixMicros> {
    if run.logs_deleted_at.is_some() { None } else { Some(run.ended_at.unwrap_or(UnixMicros(0))) }
}

async fn logs_kept(db: &Db, ended_by: UnixMicros, after: Option<&DuePlace>, limit: usize) -> Result<Vec<Due>> {
    let (at, id) = behind(after);
    let rows = db.rows(LOGS_KEPT, args![ended_by, at, id, limit]).await?;
    rows.iter().map(|row| due(row, "log_kept_since")).collect()
}

async fn log_delete(db: &Db, expect_version: u64, run: &Run, now: UnixMicros) -> Result<()> {
    let (org, id) = (run.org, run.id);
    let body = encode("a run", run)?;
    let mut tx = db.begin().await?;
    if tx.execute(LOG_DELETE_SAVE, args![org, id, expect_version, run.version, body]).await? == 0 {
        drop(tx);
        return Err(crate::runs::changed_or_gone(db, org, id).await?);
    }
    // The head first, as who appends and who seals has it: a statement sees no row that was added while it waited.
    tx.execute(LOG_DELETE_HEAD, args![org, id]).await?;
    tx.execute(LOG_DELETE, args![org, id]).await?;
    tx.execute(LOG_DELETE_DOOM, args![org, id, now]).await?;
    tx.commit().await
}
