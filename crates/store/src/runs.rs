//! Runs: taken in once, saved by compare-and-swap, listed page by page.

mod claim;
mod sql;

use std::collections::BTreeMap;

use holm_domain::{
    OrgId, ProjectId, RunId, UnixMicros,
    run::{EventKind, Run, RunState},
};

use crate::{
    Backend, Due, DuePlace, Error, Result, Store,
    error::{limit, page},
};

/// The most runs of a page.
pub const RUNS_PAGE_MAX: u32 = 1_000;
/// The most labels that a filter may name.
pub const FILTER_LABELS_MAX: usize = 8;
/// The longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// By what a creation that is repeated is known again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The key that the client chose; unique within the org.
    pub key: String,
    /// The digest of the request, to tell a repetition from another request under the same key.
    pub digest: [u8; 32],
}

/// What became of an insertion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// The run is new.
    New,
    /// The key was used before; nothing was changed.
    Existing {
        /// The run that was made under the key, as it is now.
        run: Box<Run>,
        /// The digest of the request that made it.
        digest: [u8; 32],
    },
}

/// What a saved change tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// The sequence that the next new log entry must have.
    pub next_log_seq: u64,
    /// The number of the newest event.
    pub last_event_seq: u64,
}

/// A run as it was found, by itself: one that cannot be read hides no other.
#[derive(Debug)]
pub struct RunRow {
    /// The id of the run, as its row has it.
    pub id: String,
    /// The run, or why it cannot be read.
    pub run: Result<Run>,
}

/// Which runs are listed: those that meet every part that is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunFilter {
    /// Only runs of this project.
    pub project: Option<ProjectId>,
    /// Only runs in one of these states; in any where there is none.
    pub states: Vec<RunState>,
    /// Only runs with all of these labels.
    pub labels: BTreeMap<String, String>,
}

impl Store {
    /// Stores a new run with its deadline (see [`Run::deadline`]) and what is told of it. With an idempotency key that was
    /// used before nothing is stored, and the run of then is returned. Not found if the org has no such project.
    pub async fn run_insert(
        &self,
        run: &Run,
        idempotency: Option<&Idempotency>,
        events: &[EventKind],
        deadline: Option<UnixMicros>,
        now: UnixMicros,
    ) -> Result<Inserted> {
        if let Some(idempotency) = idempotency {
            limit("bytes of an idempotency key", idempotency.key.len(), IDEMPOTENCY_KEY_BYTES_MAX)?;
        }
        check_lease(run)?;
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.run_insert(run, idempotency, events, deadline, now),
            Backend::Sql(db) => sql::run_insert(db, run, idempotency, events, deadline, now).await,
        }
    }

    /// The run, if the org has it.
    pub async fn run_get(&self, org: OrgId, id: RunId) -> Result<Option<Run>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.run_get(org, id)),
            Backend::Sql(db) => sql::run_get(db, org, id).await,
        }
    }

    /// State and version of a run, if the org has it: they are known where the rest of it cannot be read.
    pub async fn run_standing(&self, org: OrgId, id: RunId) -> Result<Option<(RunState, u64)>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.run_get(org, id).map(|run| (run.state, run.version))),
            Backend::Sql(db) => sql::run_standing(db, org, id).await,
        }
    }

    /// Up to `limit` runs of the org that meet `filter`, newest first; only runs older than `before`, where it is given. Those
    /// that cannot be read are among them, each at its place. Going from page to page, each run that was there at the first page is seen exactly once, whatever is added.
    pub async fn run_list(
        &self,
        org: OrgId,
        filter: &RunFilter,
        before: Option<RunId>,
        limit: u32,
    ) -> Result<Vec<RunRow>> {
        let rows_max = page(limit, RUNS_PAGE_MAX)?;
        self::limit("labels of a filter", filter.labels.len(), FILTER_LABELS_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.run_list(org, filter, before, rows_max)),
            Backend::Sql(db) => sql::run_list(db, org, filter, before, rows_max).await,
        }
    }

    /// Up to `limit` queued runs of the org behind the place `after`, in the order of [`Run::queue_at`]: the candidates for a
    /// claim. Those that pause are not among them; those that cannot be read are, each at its place.
    pub async fn run_queue(&self, org: OrgId, after: Option<&DuePlace>, limit: u32) -> Result<Vec<Due>> {
        let limit = page(limit, RUNS_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.run_queue(org, after, limit)),
            Backend::Sql(db) => sql::run_queue(db, org, after, limit).await,
        }
    }

    /// Saves a decision, if the stored version is still `expect_version`; a conflict otherwise. In the same transaction its
    /// lease is written or removed, `deadline` is noted, the log takes appends under the fence of the lease alone (and none
    /// without a lease), and `events` get the next numbers.
    pub async fn run_save(
        &self,
        expect_version: u64,
        run: &Run,
        events: &[EventKind],
        deadline: Option<UnixMicros>,
        now: UnixMicros,
    ) -> Result<Saved> {
        follows(expect_version, run)?;
        check_lease(run)?;
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.run_save(expect_version, run, events, deadline, now),
            Backend::Sql(db) => sql::run_save(db, expect_version, run, events, deadline, now).await,
        }
    }

    /// Removes a run, its events, its log and its objects, if the stored version is still `expect_version`. Objects that are
    /// not removed now are by [`Store::doomed_sweep`].
    pub async fn run_delete(&self, org: OrgId, id: RunId, expect_version: u64, now: UnixMicros) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.turn().await.run_delete(org, id, expect_version, now)?,
            Backend::Sql(db) => sql::run_delete(db, org, id, expect_version, now).await?,
        }
        if let Err(error) = self.blobs.delete_of_run(org, id).await {
            tracing::warn!(run = %id, %error, "objects of a deleted run are left to the next sweep");
        }
        Ok(())
    }
}

pub(crate) use sql::{changed_or_gone, leases_renew, read, read_row};
#[cfg(test)]
pub(crate) use {claim::QUERIES as POSTGRES_QUERIES, sql::QUERIES};

/// Refuses a run whose version is not the one behind the version on which it was decided.
pub(crate) fn follows(expect_version: u64, run: &Run) -> Result<()> {
    if expect_version.checked_add(1) == Some(run.version) {
        return Ok(());
    }
    Err(Error::invalid("the version of a run", format!("{} does not follow {expect_version}", run.version)))
}

/// Refuses a run whose lease bears another fence than the run itself: appends under it could never be told apart.
pub(crate) fn check_lease(run: &Run) -> Result<()> {
    match &run.lease {
        Some(lease) if lease.fence != run.fence || lease.fence == 0 => {
            Err(Error::invalid("the lease of a run", "its fence is not that of the run"))
        }
        _ => Ok(()),
    }
}
