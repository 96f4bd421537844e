//! One way to speak to SQLite and to PostgreSQL: the same text, the same values, the same rows.
//!
//! What always holds: a transaction that is dropped is rolled back; on SQLite there is one writing connection, whose
//! transactions begin as writers, so none of them fails half-way for want of the lock; every wait has a limit.

pub(crate) mod migrate;
#[cfg(test)]
mod prepared;
mod row;
mod value;

use std::{os::unix::fs::OpenOptionsExt, path::Path, str::FromStr, time::Duration};

use sqlx::{
    Connection as _, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool, Transaction,
    pool::PoolOptions,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

pub(crate) use row::{Fields, Row, encode};
pub(crate) use value::{Args, Value, args};

use crate::{Error, Result};

/// How long an operation waits for a connection or for a lock.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How many connections read a SQLite database at once, beside the one that writes.
const SQLITE_READERS: u32 = 4;
/// How many connections one process opens to PostgreSQL.
const POSTGRES_CONNECTIONS: u32 = 16;

/// A query: its text, and the words for its errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    /// The name of its constant.
    pub(crate) name: &'static str,
    /// What its rows are; a violated uniqueness is a conflict about that.
    pub(crate) of: &'static str,
    /// What its rows belong to; a violated reference means that there is no such thing.
    pub(crate) parent: &'static str,
    /// The text, for both engines.
    pub(crate) sql: &'static str,
}

/// Defines the queries of a resource as constants, and lists them for the test that prepares each on both engines.
macro_rules! queries {
    (of $of:literal in $parent:literal; $($(#[$doc:meta])* $name:ident = $sql:expr;)+) => {
        $($(#[$doc])* const $name: $crate::sql::Query =
            $crate::sql::Query { name: stringify!($name), of: $of, parent: $parent, sql: $sql };)+

        #[cfg(test)]
        pub(crate) const QUERIES: &[$crate::sql::Query] = &[$($name),+];
    };
}
pub(crate) use queries;

/// A database.
#[derive(Debug, Clone)]
pub(crate) enum Db {
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    Postgres(PgPool),
}

/// A transaction that may write.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Db {
    /// Opens a file of SQLite and brings its schema up to date.
    pub(crate) async fn open_sqlite(path: &str) -> Result<Self> {
        let db = Self::reach_sqlite(path).await?;
        migrate::up(&db).await?;
        Ok(db)
    }

    /// Opens a file of SQLite as it is, readable by its owner alone, and makes it if it is not there.
    pub(crate) async fn reach_sqlite(path: &str) -> Result<Self> {
        let opening = |error: crate::Cause| Error::unavailable("open the database", error);
        if path.is_empty() || path.starts_with(":memory:") {
            return Err(Error::invalid("the URL of the store", "give the path of a file after `sqlite:`"));
        }
        // SQLite makes its write-ahead log and its shared memory with the mode of the database.
        let create = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        drop(create.map_err(|error| opening(error.into()))?);
        let options = SqliteConnectOptions::new()
            .filename(Path::new(path))
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WAIT_MAX);
        // A file does not hang up: asking whether it is still there would cost each query a second way to the thread that
        // holds the connection and back.
        let pool = |connections| {
            let pool = PoolOptions::new().max_connections(connections).acquire_timeout(WAIT_MAX);
            pool.test_before_acquire(false).before_acquire(|connection, _| Box::pin(is_fit(connection)))
        };
        let writer = pool(1).connect_with(options.clone()).await.map_err(|error| opening(error.into()))?;
        Ok(Self::Sqlite { writer, readers: pool(SQLITE_READERS).connect_lazy_with(options.pragma("query_only", "on")) })
    }

    /// Connects to a database of PostgreSQL and brings its schema up to date.
    pub(crate) async fn open_postgres(url: &str) -> Result<Self> {
        let db = Self::reach_postgres(url).await?;
        migrate::up(&db).await?;
        Ok(db)
    }

    /// Connects to a database of PostgreSQL as it is.
    pub(crate) async fn reach_postgres(url: &str) -> Result<Self> {
        // The URL may bear a password: it is not repeated in the error.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| Error::invalid("the URL of the store", "give `postgres://USER:PASSWORD@HOST/DATABASE`"))?
            .application_name("holm")
            .options([
                ("statement_timeout", "30s"),
                ("lock_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "60s"),
                ("default_transaction_isolation", "read committed"),
            ]);
        let pool = PoolOptions::new().max_connections(POSTGRES_CONNECTIONS).acquire_timeout(WAIT_MAX);
        let pool = pool.connect_with(options).await.map_err(|error| Error::unavailable("open the database", error))?;
        Ok(Self::Postgres(pool))
    }

    /// Begins a transaction that may write.
    pub(crate) async fn begin(&self) -> Result<Tx> {
        let begun = match self {
            // A transaction that begins as a reader could not become a writer once another has written.
            Self::Sqlite { writer, .. } => writer.begin_with("begin immediate").await.map(Tx::Sqlite),
            Self::Postgres(pool) => pool.begin().await.map(Tx::Postgres),
        };
        begun.map_err(|error| Error::unavailable("begin a transaction", error))
    }

    /// The rows of a query that changes nothing, as one snapshot.
    pub(crate) async fn rows(&self, query: Query, args: Args) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite { readers, .. } => {
                let rows = value::sqlite(query, args)?.fetch_all(readers).await;
                rows.map(|rows| rows.into_iter().map(Row::Sqlite).collect()).map_err(|e| failure(query, e))
            }
            Self::Postgres(pool) => {
                let rows = value::postgres(query, args)?.fetch_all(pool).await;
                rows.map(|rows| rows.into_iter().map(Row::Postgres).collect()).map_err(|e| failure(query, e))
            }
        }
    }

    /// The first row of a query that changes nothing, if there is one.
    pub(crate) async fn row(&self, query: Query, args: Args) -> Result<Option<Row>> {
        Ok(self.rows(query, args).await?.into_iter().next())
    }

    /// Executes one statement in a transaction of its own; returns how many rows it changed.
    pub(crate) async fn execute(&self, query: Query, args: Args) -> Result<u64> {
        match self {
            Self::Sqlite { writer, .. } => {
                let done = value::sqlite(query, args)?.execute(writer).await;
                done.map(|done| done.rows_affected()).map_err(|error| failure(query, error))
            }
            Self::Postgres(pool) => {
                let done = value::postgres(query, args)?.execute(pool).await;
                done.map(|done| done.rows_affected()).map_err(|error| failure(query, error))
            }
        }
    }
}

impl Tx {
    /// The rows of a query, or those that a statement with `returning` changed.
    pub(crate) async fn rows(&mut self, query: Query, args: Args) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(tx) => {
                let rows = value::sqlite(query, args)?.fetch_all(&mut **tx).await;
                rows.map(|rows| rows.into_iter().map(Row::Sqlite).collect()).map_err(|e| failure(query, e))
            }
            Self::Postgres(tx) => {
                let rows = value::postgres(query, args)?.fetch_all(&mut **tx).await;
                rows.map(|rows| rows.into_iter().map(Row::Postgres).collect()).map_err(|e| failure(query, e))
            }
        }
    }

    /// The first of the rows, if there is one.
    pub(crate) async fn row(&mut self, query: Query, args: Args) -> Result<Option<Row>> {
        Ok(self.rows(query, args).await?.into_iter().next())
    }

    /// Executes a statement; returns how many rows it changed.
    pub(crate) async fn execute(&mut self, query: Query, args: Args) -> Result<u64> {
        match self {
            Self::Sqlite(tx) => {
                let done = value::sqlite(query, args)?.execute(&mut **tx).await;
                done.map(|done| done.rows_affected()).map_err(|error| failure(query, error))
            }
            Self::Postgres(tx) => {
                let done = value::postgres(query, args)?.execute(&mut **tx).await;
                done.map(|done| done.rows_affected()).map_err(|error| failure(query, error))
            }
        }
    }

    /// Makes everything in the transaction durable. If this fails, it may or may not be; the caller reads again.
    pub(crate) async fn commit(self) -> Result<()> {
        let committed = match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        };
        committed.map_err(|error| Error::unavailable("commit", error))
    }
}

/// Whether a connection may be used once more. SQLite itself rolls a transaction back when the disk is full, and the
/// rollback that follows fails then: the connection counts as in a transaction for ever, and another takes its place.
async fn is_fit(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    if connection.is_in_transaction() {
        // The rollback of a transaction that was dropped may still be under way; this waits behind it.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

fn failure(query: Query, error: sqlx::Error) -> Error {
    match &error {
        sqlx::Error::Database(told) if told.is_unique_violation() => Error::Conflict { what: query.of },
        sqlx::Error::Database(told) if told.is_foreign_key_violation() => Error::NotFound { what: query.parent },
        _ => Error::unavailable(query.name, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILL: Query =
        Query { name: "FILL", of: "filling", parent: "filling", sql: "insert into filling values (zeroblob(65536))" };

    /// A database that may not grow stands for a disk that is full.
    #[tokio::test]
    async fn a_full_disk_is_over_when_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_sqlite(dir.path().join("db").to_str().unwrap()).await.unwrap();
        let Db::Sqlite { writer, .. } = &db else { panic!("another engine") };
        sqlx::query("create table filling (bytes blob)").execute(writer).await.unwrap();
        sqlx::query("pragma max_page_count = 1").execute(writer).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        tx.execute(FILL, args![]).await.unwrap_err();
        drop(tx);
        // Another connection knows of no such limit.
        let mut tx = db.begin().await.unwrap();
        tx.execute(FILL, args![]).await.unwrap();
        tx.commit().await.unwrap();
    }
}
