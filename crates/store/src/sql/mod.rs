//! One way to speak to SQLite and to PostgreSQL: the same text, the same values, the same rows.
//!
//! What always holds: a transaction that is dropped is rolled back; on SQLite there is one writing connection, whose
//! transactions begin as writers, so none of them fails half-way for want of the lock; every wait has a limit; a database
//! that is damaged is told apart from one that does not answer; no file of SQLite is opened whose write-ahead log is damaged;
//! nothing is asked of a PostgreSQL server that takes no writes.

mod files;
pub(crate) mod migrate;
mod notify;
mod places;
mod pools;
#[cfg(test)]
mod prepared;
mod row;
mod sessions;
mod value;
mod wal;

use std::{future::Future, io, time::Duration};

use sqlx::{Sqlite, SqlitePool, Transaction, sqlite::SqliteError};

pub(crate) use files::Files;
pub(crate) use notify::Listening;
pub use places::SqliteFiles;
pub use pools::Expect;
pub(crate) use row::{Fields, Row, encode};
use sessions::{Session, Sessions};
pub(crate) use value::{Args, Value, args};

use crate::{Error, Result};

/// How long an operation waits for a connection or for a lock.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take altogether. A server that is there gives up a statement itself, sooner.
const ANSWER_MAX: Duration = Duration::from_secs(40);

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
    Sqlite { writer: SqlitePool, readers: SqlitePool, files: Files },
    Postgres(Sessions),
}

/// A transaction that may write.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Session),
}

impl Db {
    /// Opens a file of SQLite and brings its schema up to date.
    pub(crate) async fn open_sqlite(path: &str, expect: Expect) -> Result<Self> {
        let db = Self::reach_sqlite(path, expect).await?;
        migrate::up(&db).await?;
        Ok(db)
    }

    /// Connects to a database of PostgreSQL and brings its schema up to date.
    pub(crate) async fn open_postgres(url: &str) -> Result<Self> {
        let db = Self::reach_postgres(url).await?;
        migrate::up(&db).await?;
        Ok(db)
    }

    /// Begins a transaction that may write.
    pub(crate) async fn begin(&self) -> Result<Tx> {
        let begun = match self {
            // A transaction that begins as a reader could not become a writer once another has written.
            Self::Sqlite { writer, .. } => in_time(writer.begin_with("begin immediate")).await.map(Tx::Sqlite),
            Self::Postgres(sessions) => sessions.begin().await.map(Tx::Postgres),
        };
        begun.map_err(|error| broken("begin a transaction", error))
    }

    /// The rows of a query that changes nothing, as one snapshot. On PostgreSQL also those of a statement that changes some, in
    /// a transaction of its own.
    pub(crate) async fn rows(&self, query: Query, args: Args) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite { readers, .. } => {
                let rows = in_time(value::sqlite(query, args)?.fetch_all(readers)).await;
                rows.map(|rows| rows.into_iter().map(Row::Sqlite).collect()).map_err(|e| failure(query, e))
            }
            Self::Postgres(sessions) => {
                let mut session = sessions.take().await.map_err(|error| failure(query, error))?;
                postgres_rows(&mut session, query, args).await
            }
        }
    }

    /// The rows of two queries that change nothing, one after the other on one connection, each as one snapshot.
    pub(crate) async fn rows_of_both(&self, one: (Query, Args), other: (Query, Args)) -> Result<[Vec<Row>; 2]> {
        let Self::Postgres(sessions) = self else {
            return Ok([self.rows(one.0, one.1).await?, self.rows(other.0, other.1).await?]);
        };
        let mut session = sessions.take().await.map_err(|error| failure(one.0, error))?;
        let one = postgres_rows(&mut session, one.0, one.1).await?;
        Ok([one, postgres_rows(&mut session, other.0, other.1).await?])
    }

    /// The first row of a query that changes nothing, if there is one.
    pub(crate) async fn row(&self, query: Query, args: Args) -> Result<Option<Row>> {
        Ok(self.rows(query, args).await?.into_iter().next())
    }

    /// Executes one statement in a transaction of its own; returns how many rows it changed.
    pub(crate) async fn execute(&self, query: Query, args: Args) -> Result<u64> {
        match self {
            Self::Sqlite { writer, .. } => {
                let done = in_time(value::sqlite(query, args)?.execute(writer)).await;
                done.map(|done| done.rows_affected()).map_err(|error| failure(query, error))
            }
            Self::Postgres(sessions) => {
                let mut session = sessions.take().await.map_err(|error| failure(query, error))?;
                postgres_execute(&mut session, query, args).await
            }
        }
    }
}

impl Tx {
    /// The rows of a query, or those that a statement with `returning` changed.
    pub(crate) async fn rows(&mut self, query: Query, args: Args) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(tx) => {
                let rows = in_time(value::sqlite(query, args)?.fetch_all(&mut **tx)).await;
                rows.map(|rows| rows.into_iter().map(Row::Sqlite).collect()).map_err(|e| failure(query, e))
            }
            Self::Postgres(session) => postgres_rows(session, query, args).await,
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
                let done = in_time(value::sqlite(query, args)?.execute(&mut **tx)).await;
                done.map(|done| done.rows_affected()).map_err(|error| failure(query, error))
            }
            Self::Postgres(session) => postgres_execute(session, query, args).await,
        }
    }

    /// Makes everything in the transaction durable. If this fails, it may or may not be; the caller reads again.
    pub(crate) async fn commit(self) -> Result<()> {
        let committed = match self {
            Self::Sqlite(tx) => in_time(tx.commit()).await,
            Self::Postgres(session) => session.commit().await,
        };
        committed.map_err(|error| broken("commit", error))
    }
}

async fn postgres_rows(session: &mut Session, query: Query, args: Args) -> Result<Vec<Row>> {
    let prepared = value::postgres(query, args)?;
    let rows = session.ask(async |connection| prepared.fetch_all(connection).await).await;
    rows.map(|rows| rows.into_iter().map(Row::Postgres).collect()).map_err(|error| failure(query, error))
}

async fn postgres_execute(session: &mut Session, query: Query, args: Args) -> Result<u64> {
    let prepared = value::postgres(query, args)?;
    let done = session.ask(async |connection| prepared.execute(connection).await).await;
    done.map(|done| done.rows_affected()).map_err(|error| failure(query, error))
}

/// Waits for an answer for as long as it may take. What does not come at all (the other end is lost, and nobody says so) is
/// given up with its connection: the pool looks whether that still answers before it keeps it.
async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    within(ANSWER_MAX, answer).await
}

async fn within<T>(limit: Duration, answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let late = |_| sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")));
    tokio::time::timeout(limit, answer).await.map_err(late)?
}

fn failure(query: Query, error: sqlx::Error) -> Error {
    match &error {
        sqlx::Error::Database(told) if told.is_unique_violation() => Error::Conflict { what: query.of },
        sqlx::Error::Database(told) if told.is_foreign_key_violation() => Error::NotFound { what: query.parent },
        _ => broken(query.name, error),
    }
}

/// Result codes of SQLite (sqlite.org/rescode.html), without their extensions.
const SQLITE_BUSY: u32 = 5;
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_NOTADB: u32 = 26;
/// PostgreSQL's codes for damage to tables and to indexes (Appendix A of its manual).
const POSTGRES_DAMAGED: [&str; 2] = ["XX001", "XX002"];

/// The primary code of what SQLite says, if it was SQLite.
fn sqlite_code(error: &sqlx::Error) -> Option<u32> {
    let sqlx::Error::Database(told) = error else { return None };
    told.try_downcast_ref::<SqliteError>()?;
    told.code()?.parse::<u32>().ok().map(|code| code & 0xff)
}

/// Whether SQLite says that another connection keeps the database locked.
fn is_busy(error: &sqlx::Error) -> bool {
    sqlite_code(error) == Some(SQLITE_BUSY)
}

/// Tells a database that is damaged, and one that another program keeps for itself, from one that does not answer.
fn broken(doing: &'static str, error: sqlx::Error) -> Error {
    let sqlx::Error::Database(told) = &error else { return Error::unavailable(doing, error) };
    let damaged = || Error::damaged(told.message());
    match sqlite_code(&error) {
        Some(SQLITE_BUSY) => Error::unavailable("wait for another program that keeps the database locked", error),
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => damaged(),
        None if POSTGRES_DAMAGED.contains(&&*told.code().unwrap_or_default()) => damaged(),
        _ => Error::unavailable(doing, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::TestDatabase;

    /// As a server that was demoted while connections to it were open.
    #[tokio::test]
    async fn a_connection_that_has_become_read_only_is_not_used_again() {
        let database = TestDatabase::create().await;
        let db = Db::open_postgres(&database.url).await.unwrap();
        let Db::Postgres(sessions) = &db else { panic!("another engine") };
        let all = sessions.pool().options().get_max_connections();
        let mut taken = Vec::new();
        for _ in 0..all {
            let mut session = sessions.take().await.unwrap();
            let demote = sqlx::raw_sql("set default_transaction_read_only = on");
            session.ask(async |connection| demote.execute(connection).await).await.unwrap();
            taken.push(session);
        }
        drop(taken);
        tokio::time::sleep(sessions::ASKED_WITHIN).await;
        for _ in 0..all {
            db.execute(MAKE, args![]).await.unwrap();
        }
        database.remove().await;
    }

    /// As a failover in which the server that is found at first is a standby still.
    #[tokio::test]
    async fn a_server_that_is_read_only_is_waited_for_and_named() {
        let database = TestDatabase::create().await;
        let db = Db::open_postgres(&database.url).await.unwrap();
        database.turn_read_only(true).await;
        let error = db.execute(MAKE, args![]).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        let error = Db::open_postgres(&database.url).await.unwrap_err().to_string();
        assert!(error.contains("is read-only"), "{error}");
        let waiting = tokio::spawn(async move { db.execute(MAKE, args![]).await });
        database.turn_read_only(false).await;
        waiting.await.unwrap().unwrap();
        database.remove().await;
    }

    const MAKE: Query =
        Query { name: "MAKE", of: "filling", parent: "filling", sql: "create table if not exists filling ()" };

    /// A database that is damaged behind the back of those who read it.
    #[tokio::test]
    async fn damage_that_is_met_later_is_told_as_damage() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let text = path.to_str().unwrap();
        let db = Db::open_sqlite(text, Expect::Anything).await.unwrap();
        let Db::Sqlite { writer, readers, .. } = &db else { panic!("another engine") };
        sqlx::query("create table filling (bytes blob)").execute(writer).await.unwrap();
        for _ in 0..20 {
            let mut tx = db.begin().await.unwrap();
            tx.execute(FILL, args![]).await.unwrap();
            tx.commit().await.unwrap();
        }
        writer.close().await;
        readers.close().await;
        Db::examine_sqlite(text, Expect::Anything).await.unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        // Everything but the first page, in which the schema begins.
        for page in 1..file.metadata().unwrap().len() / 4_096 {
            file.write_all_at(&[0x55; 4_096], page * 4_096).unwrap();
        }
        for error in [
            Db::open_sqlite(text, Expect::Anything).await.unwrap_err(),
            Db::examine_sqlite(text, Expect::Anything).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
        }
    }

    const FILL: Query =
        Query { name: "FILL", of: "filling", parent: "filling", sql: "insert into filling values (zeroblob(65536))" };

    /// A database that may not grow stands for a disk that is full.
    #[tokio::test]
    async fn a_full_disk_is_over_when_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open_sqlite(dir.path().join("db").to_str().unwrap(), Expect::Anything).await.unwrap();
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
