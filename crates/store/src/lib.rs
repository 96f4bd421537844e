//! What Holm remembers: orgs, projects, tokens, hosts, runs with their leases, events and logs; and large objects.
//!
//! [`Store`] is one façade over memory, SQLite and PostgreSQL. Each resource has one file: its types, the methods of the
//! façade, and its SQL, under the same verbs. What is decided about a run is decided in `holm-domain`; here it is saved.
//!
//! What always holds:
//! - every query of a tenant's row takes the org, and the schema refuses a row that refers to another org's; but for what an
//!   agent holds leases of, which is found by the agent, and what a data key sealed, which is found by the key, whichever org
//!   it is of;
//! - a change of a run, its lease, the fence of its log and the events that tell of it are one transaction, made by
//!   compare-and-swap on the version of the run;
//! - an append under a fence that is not the newest changes nothing; an append that is repeated is stored once;
//! - a deletion, of a run or of its log, notes in its transaction that objects are doomed, and they are removed from that
//!   note;
//! - a row that cannot be read is an error that names it ([`Error::Corrupt`]), never a row that is skipped; where servers
//!   look after many runs at once it is the answer of that row alone ([`Due`], [`RunRow`]) and holds no other up;
//! - who changes secrets, tokens, keys, hosts, orgs or pools says what is told of it (`told`), and what is told is appended to
//!   the audit log in the transaction of the change; where nothing was changed, nothing is told;
//! - SQL is one constant a query, the same text for both engines.
//!
//! Left out: who may ask (`holm-server`), retries of conflicts (the caller decides anew), search in logs.

mod audit;
mod blobs;
mod census;
mod doomed;
mod enrol;
mod error;
mod events;
mod examined;
mod hints;
mod hosts;
mod keys;
mod leases;
mod logs;
mod memory;
mod org_limits;
mod orgs;
mod pools;
#[cfg(test)]
#[path = "../tests/support/postgres.rs"]
mod postgres;
mod projects;
mod retention;
mod runs;
mod secrets;
mod sql;
mod tokens;

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use audit::AUDIT_PAGE_MAX;
pub use blobs::{
    BLOB_READ_BYTES_MAX, BlobKey, BlobPlace, BlobStream, Blobs, PutStreamError, S3Keys, S3Place, Unreached,
};
pub use census::RunCensus;
pub use doomed::{DOOMED_PAGE_MAX, Doomed, DoomedPart};
pub use enrol::{JOIN_TOKENS_ENDED_MAX, JOIN_TOKENS_MAX};
pub use error::{Cause, Error, Result};
pub use events::{EVENTS_APPEND_MAX, EVENTS_PAGE_MAX, EventAppended};
pub use examined::{ExaminedRuns, RUNS_EXAMINED_MAX, runs_examine};
pub use hints::{HINT_BYTES_MAX, Hints};
pub use hosts::HOSTS_MAX;
pub use keys::{ENVELOPES_RETIRED_MAX, EnvelopeKey, Resealed, SIGNING_KEYS_MAX, SealedSecret, SigningKey};
pub use leases::{Due, DuePlace, LEASES_PAGE_MAX, LeaseRow, Leased, RENEWALS_MAX, Renewal};
pub use logs::{
    LOG_APPEND_BYTES_MAX, LOG_INLINE_BYTES, LOG_READ_BYTES_MAX, LOG_SEGMENT_BYTES, LogAppended, SEALABLE_PAGE_MAX,
    Sealable, Sealed, Segment,
};
pub use orgs::{ORGS_MAX, Org};
pub use pools::{POOL_ORGS_MAX, POOL_PAIRS_MAX, PoolLeases};
pub use projects::{PROJECTS_MAX, Project};
pub use runs::{
    FILTER_LABELS_MAX, IDEMPOTENCY_KEY_BYTES_MAX, Idempotency, Inserted, RUNS_PAGE_MAX, RunFilter, RunRow, Saved,
};
pub use secrets::{KeptSecret, ResealedSecret, SECRETS_PAGE_MAX, Secret};
pub use tokens::TOKENS_MAX;

pub use memory::Between;
use memory::Memory;
use sql::{Db, args, queries};
pub use sql::{Expect, SqliteFiles};

queries! {
    of "schema step" in "schema";
    PING = "select step from schema_steps limit 1";
}

/// Whether the PostgreSQL server behind `url` answers and takes writes, or the file of SQLite that it names, which must be
/// there, is whole and what is expected. Returns how long an answer of the server takes at least; nothing of a file. Nothing is changed.
pub async fn reach(url: &str, expect: Expect) -> Result<Option<Duration>> {
    match url.strip_prefix("sqlite:") {
        Some(path) => Db::examine_sqlite(path, expect).await.map(|()| None),
        None => Db::examine_postgres(url).await.map(Some),
    }
}

/// The store. Clones share one state.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Backend,
    blobs: Blobs,
}

#[derive(Debug, Clone)]
enum Backend {
    Memory(Memory),
    Sql(Db),
}

impl Store {
    /// Whether other processes may change what is stored: a database of SQLite is one server's own.
    pub fn is_shared(&self) -> bool {
        !matches!(self.backend, Backend::Sql(Db::Sqlite { .. }))
    }

    /// Opens the store that `url` names and brings its schema up to date: `memory:`, `sqlite:PATH` or
    /// `postgres://USER:PASSWORD@HOST/DATABASE`, with one host. Large objects go to `blobs`.
    pub async fn open(url: &str, blobs: Blobs) -> Result<Self> {
        Self::open_expecting(url, Expect::Anything, blobs).await
    }

    /// The same; a file of SQLite that is not what is expected is refused.
    pub async fn open_expecting(url: &str, expect: Expect, blobs: Blobs) -> Result<Self> {
        let backend = match url.split_once(':') {
            Some(("memory", "")) => Backend::Memory(Memory::default()),
            Some(("sqlite", path)) => Backend::Sql(Db::open_sqlite(path, expect).await?),
            Some(("postgres" | "postgresql", _)) => Backend::Sql(Db::open_postgres(url).await?),
            _ => {
                let problem = "give `memory:`, `sqlite:PATH` or `postgres://…`";
                return Err(Error::invalid("the URL of the store", problem));
            }
        };
        Ok(Self { backend, blobs })
    }

    /// A store in memory, for tests and the simulator. It forgets everything with its last clone.
    pub fn memory() -> Self {
        Self { backend: Backend::Memory(Memory::default()), blobs: Blobs::memory() }
    }

    /// A store in memory for the servers of a simulation, with something between, and the same for those who look on.
    pub fn simulated(between: Arc<dyn Between>) -> (Self, Self) {
        let (memory, blobs) = (Memory::default(), Blobs::memory());
        let store = |memory| Self { backend: Backend::Memory(memory), blobs: blobs.clone() };
        (store(memory.with(between)), store(memory))
    }

    /// Where large objects are kept.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The file of SQLite, or its write-ahead log, that is open and not in its place any more: it was removed, or replaced.
    /// It is looked at anew each time.
    pub fn displaced(&self) -> Option<PathBuf> {
        match &self.backend {
            Backend::Sql(Db::Sqlite { files, .. }) => files.displaced(),
            Backend::Sql(Db::Postgres(_)) | Backend::Memory(_) => None,
        }
    }

    /// Ends the use of the store by all its clones, within seconds. What a file of SQLite holds is in the file alone then; if
    /// that fails, a part of it lies in the write-ahead log as before, which is lost if that is [displaced](Self::displaced).
    pub async fn close(&self) -> Result<()> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Sql(db) => db.close().await,
        }
    }

    /// Whether the store answers.
    pub async fn ping(&self) -> Result<()> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Sql(db) => db.row(PING, args![]).await.map(drop),
        }
    }
}
