//! How databases are opened, and when a connection to one is used once more.
//!
//! Left out: whether all of a file of SQLite fits together (`pragma quick_check`) is looked at by [`Db::examine_sqlite`] alone
//! and not at the start of a server. It reads every page: 1 to 3 ms for each megabyte that is in memory, 10 to 40 where the
//! disk is to be read, a second or two for 100 MB; and a server that starts again has leases to keep. A page that does not fit
//! is told as damage by the query that meets it, and bytes of a row that are others, which such a look does not see, by who
//! reads the row.

use std::{
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{
    AssertSqlSafe, Connection, Database, PgConnection, PgPool, Row as _, Sqlite, SqliteConnection, SqliteExecutor,
    SqlitePool,
    pool::PoolOptions,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{Db, Files, Sessions, SqliteFiles, WAIT_MAX, broken, in_time, is_busy, places::is_file, wal, within};
use crate::{Error, Result};

const OPENING: &str = "open the database";
const GATHERING: &str = "bring the write-ahead log into the database";
/// How many connections read a SQLite database at once, beside the one that writes.
const SQLITE_READERS: u32 = 4;
/// How long the end of a store waits for its write-ahead log to be brought into its file, and then for its connections.
const CLOSING_MAX: Duration = Duration::from_secs(5);
/// How long it waits for others that keep it from that; it is to be told of them before it gives up.
const GATHERING_WAIT: Duration = Duration::from_secs(3);
/// How many connections one process opens to PostgreSQL, the one that listens included.
const POSTGRES_CONNECTIONS: u32 = 16;
/// How long it waits before it opens a database again that others are about to open.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// How long a connection to PostgreSQL may take to say that it is still one.
pub(super) const PING_MAX: Duration = Duration::from_secs(2);
/// Takes the limit of a session's rest away.
const RESTS: &str = "select set_config(name, '0', false) from pg_settings where name = 'idle_session_timeout'";
/// How often PostgreSQL is asked to find out how long it takes to answer.
const PINGS_MEASURED: u32 = 5;

/// What a file of SQLite is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything, a new one as well.
    Anything,
    /// One that was used before: where it is there, it is not empty.
    Used,
}

impl Db {
    /// Opens a file of SQLite, readable by its owner alone, and makes it if it is not there.
    pub(super) async fn reach_sqlite(path: &str, expect: Expect) -> Result<Self> {
        if !is_file(path) {
            return Err(Error::invalid("the URL of the store", "give the path of a file after `sqlite:`"));
        }
        wal::examine(path).await?;
        if expect == Expect::Used {
            refuse_emptied(path).await?;
        }
        create(path).map_err(|error| Error::unavailable(OPENING, error))?;
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
        let files = Files::default();
        let writer = when_free(WAIT_MAX, |rest| writer(pool(1), &files, &options, rest)).await;
        let writer = writer.map_err(|error| broken(OPENING, error))?;
        // One that is opened later would begin a log of its own where that of the others was removed.
        let kept = pool(SQLITE_READERS).idle_timeout(None).max_lifetime(None);
        let kept = kept.after_connect(|connection, _| Box::pin(begin(connection)));
        let readers = in_time(all_at_once(kept.connect_lazy_with(options.pragma("query_only", "on")))).await;
        Ok(Self::Sqlite { writer, readers: readers.map_err(|error| broken(OPENING, error))?, files })
    }

    /// Reads a file of SQLite that is there, and looks whether all of it fits together. It may be in use.
    pub(crate) async fn examine_sqlite(path: &str, expect: Expect) -> Result<()> {
        wal::examine(path).await?;
        if expect == Expect::Used {
            refuse_emptied(path).await?;
        }
        let connection = SqliteConnection::connect_with(&reading(path)).await;
        let mut connection = connection.map_err(|error| broken(OPENING, error))?;
        let check = sqlx::query_scalar::<_, String>("pragma quick_check(1)");
        let said = check.fetch_one(&mut connection).await.map_err(|error| broken("examine the database", error))?;
        connection.close().await.map_err(|error| broken("close the database", error))?;
        if said == "ok" { Ok(()) } else { Err(Error::damaged(said)) }
    }

    /// Opens a database that is there, to look at it and change nothing. Nothing where it has no tables of Holm's yet.
    pub(crate) async fn look(url: &str) -> Result<Option<Self>> {
        let (db, has_tables) = match url.strip_prefix("sqlite:") {
            Some(path) => {
                wal::examine(path).await?;
                let pool: SqlitePool = for_one().connect_lazy_with(reading(path));
                let has_tables = has_tables(&pool).await;
                (Self::Sqlite { writer: pool.clone(), readers: pool, files: Files::default() }, has_tables)
            }
            None => {
                let pool = for_one().connect_lazy_with(postgres_options(url)?);
                let asked = sqlx::query_scalar("select to_regclass('runs') is not null");
                let has_tables = in_time(asked.fetch_one(&pool)).await;
                (Self::Postgres(Sessions::new(pool)), has_tables)
            }
        };
        Ok(has_tables.map_err(|error| broken(OPENING, error))?.then_some(db))
    }

    /// Ends the connections to a file of SQLite, once all that lies in its write-ahead log is in the file. Where that is not in
    /// its place, the log stays as it is: what is brought into a file without a name is gone with it. A server of PostgreSQL
    /// keeps what it was told, however its connections end.
    pub(crate) async fn close(&self) -> Result<()> {
        let Self::Sqlite { writer, readers, files } = self else { return Ok(()) };
        let gathered = match files.displaced_database() {
            Some(path) => Err(Error::displaced(&path)),
            None => within(CLOSING_MAX, gather(writer)).await.map_err(|error| broken(GATHERING, error)),
        };
        let closing = async {
            readers.close().await;
            writer.close().await;
            Ok(())
        };
        let closed = within(CLOSING_MAX, closing).await.map_err(|error| broken("close the database", error));
        gathered.and(closed)
    }

    /// Connects to a database of PostgreSQL as it is.
    pub(crate) async fn reach_postgres(url: &str) -> Result<Self> {
        let options = postgres_options(url)?;
        // The pool's own tests have no limit: a connection whose other end is lost would keep its place until the kernel
        // gives it up, after a quarter of an hour.
        let pool = PoolOptions::new()
            .max_connections(POSTGRES_CONNECTIONS - 1)
            .acquire_timeout(WAIT_MAX)
            .test_before_acquire(false)
            .after_connect(|connection, _| Box::pin(takes_writes(connection)))
            .before_acquire(|connection, _| Box::pin(async { takes_writes(connection).await.map(|()| true) }))
            .after_release(|connection, _| Box::pin(is_there(connection)));
        match in_time(pool.connect_with(options.clone())).await {
            Ok(pool) => Ok(Self::Postgres(Sessions::new(pool))),
            Err(sqlx::Error::PoolTimedOut) => Err(broken(OPENING, why_not(&options).await)),
            Err(error) => Err(broken(OPENING, error)),
        }
    }

    /// Asks a server of PostgreSQL whether it takes writes, and returns how long it takes at least to answer.
    pub(crate) async fn examine_postgres(url: &str) -> Result<Duration> {
        let options = postgres_options(url)?;
        let asking = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            takes_writes(&mut connection).await?;
            let mut least = Duration::MAX;
            for _ in 0..PINGS_MEASURED {
                let begun = Instant::now();
                connection.ping().await?;
                least = least.min(begun.elapsed());
            }
            connection.close().await.map(|()| least)
        };
        within(WAIT_MAX, asking).await.map_err(|error| broken(OPENING, error))
    }
}

/// A pool of one connection to where `pool` leads, for somebody who keeps it.
pub(super) fn one_more(pool: &PgPool) -> PgPool {
    let keeps = for_one().idle_timeout(None).max_lifetime(None);
    let keeps = keeps.after_connect(|connection, _| {
        Box::pin(async {
            takes_writes(connection).await?;
            // It rests for as long as nothing happens. Older servers than 14 have no such limit.
            within(PING_MAX, sqlx::raw_sql(RESTS).execute(connection)).await.map(drop)
        })
    });
    keeps.connect_lazy_with((*pool.connect_options()).clone())
}

/// How a file of SQLite that is there is opened by somebody who changes nothing.
fn reading(path: &str) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(Path::new(path)).read_only(true).busy_timeout(WAIT_MAX)
}

/// Whether a file of SQLite has tables of Holm's.
async fn has_tables(reader: impl SqliteExecutor<'_>) -> sqlx::Result<bool> {
    let asked = sqlx::query_scalar("select exists (select 1 from sqlite_master where name = 'runs')");
    in_time(asked.fetch_one(reader)).await
}

/// Refuses a file that was used before if it is there and what it held is not. SQLite takes a file of no length for a new
/// one, and a file whose log was removed for what it was before the log, and would say nothing.
async fn refuse_emptied(path: &str) -> Result<()> {
    let files = SqliteFiles::at(Path::new(path)).map_err(|error| Error::unavailable(OPENING, error))?;
    if !files.database.exists() {
        return Ok(());
    }
    let asked = async {
        let mut connection = SqliteConnection::connect_with(&reading(path)).await?;
        let has_tables = has_tables(&mut connection).await?;
        connection.close().await.map(|()| has_tables)
    };
    if asked.await.map_err(|error| broken(OPENING, error))? {
        return Ok(());
    }
    let problem = format!(
        "it is empty, or its log `{}` was removed, and it was used before, unless its first start was cut short",
        files.log.display()
    );
    Err(Error::damaged(problem))
}

/// A pool of one connection, for somebody who looks and goes.
fn for_one<D: Database>() -> PoolOptions<D> {
    PoolOptions::new().max_connections(1).acquire_timeout(WAIT_MAX).test_before_acquire(false)
}

/// How PostgreSQL is connected to.
fn postgres_options(url: &str) -> Result<PgConnectOptions> {
    // The URL may bear a password: it is not repeated in the error.
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        Error::invalid("the URL of the store", "give `postgres://USER:PASSWORD@HOST/DATABASE`, with one host")
    })?;
    let socket = options.get_socket().map(|path| path.to_string_lossy().into_owned());
    let host = socket.unwrap_or_else(|| options.get_host().to_owned());
    if host.contains(',') {
        let problem = format!(
            "`{host}` are several hosts, and one is connected to: give a name or an address that leads to the primary, \
             also after a failover"
        );
        return Err(Error::invalid("the URL of the store", problem));
    }
    Ok(options.application_name("holm").options([
        ("statement_timeout", "30s"),
        ("lock_timeout", "10s"),
        // What a server that was lost in a transaction holds locked, the others have again long before a lease ends.
        ("idle_in_transaction_session_timeout", "10s"),
        ("default_transaction_isolation", "read committed"),
        // Each query has its index. A plan that was made while a table was empty would read all of it once it is full.
        ("enable_seqscan", "off"),
        // No query is worth compiling, and what must read a table as a whole would count as one that is.
        ("jit", "off"),
    ]))
}

/// Makes the file of a database that is not there yet. SQLite gives its write-ahead log and its shared memory the same mode.
/// One that is there is not touched: closing any descriptor of it ends all locks that this process has on it
/// (sqlite.org/howtocorrupt.html, 2.2). For the same reason nobody else in the process may open it before it is closed here.
fn create(path: &str) -> io::Result<()> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(drop),
    }
}

/// Opens a SQLite database that others may open at the same time. Where two want to turn a new one to its write-ahead log,
/// SQLite tells one of them at once that it is locked: waiting for each other, neither would go on. Each attempt is given
/// how much of `limit` is left, and waits for locks no longer.
async fn when_free<T, F: Future<Output = sqlx::Result<T>>>(
    limit: Duration,
    mut open: impl FnMut(Duration) -> F,
) -> sqlx::Result<T> {
    let begun = Instant::now();
    let mut rest = limit;
    loop {
        match open(rest).await {
            Err(error) if is_busy(&error) && begun.elapsed() < limit => tokio::time::sleep(BUSY_PAUSE).await,
            opened => return opened,
        }
        rest = limit.saturating_sub(begun.elapsed());
    }
}

/// Opens the connection that writes, which waits for locks as long as `rest` meanwhile; once it is open, as long as any. It
/// stays open, and with it the log that is noted in `files`: the last connection that ends removes it.
async fn writer(
    pool: PoolOptions<Sqlite>,
    files: &Files,
    options: &SqliteConnectOptions,
    rest: Duration,
) -> sqlx::Result<SqlitePool> {
    let (files, path) = (files.clone(), options.get_filename().to_owned());
    let pool = pool.idle_timeout(None).max_lifetime(None).after_connect(move |connection, _| {
        let (files, path) = (files.clone(), path.clone());
        Box::pin(async move {
            begin(connection).await?;
            Ok(files.note(&path)?)
        })
    });
    let pool = pool.connect_with(options.clone().busy_timeout(rest)).await?;
    // Those that take its place are opened as any.
    pool.set_connect_options(options.clone());
    Ok(pool)
}

/// Opens every connection that a pool may have.
async fn all_at_once(pool: SqlitePool) -> sqlx::Result<SqlitePool> {
    let mut open = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        open.push(pool.acquire().await?);
    }
    drop(open);
    Ok(pool)
}

/// Begins the use of a connection that waits for locks as long as any, once it is open. The first that it reads opens the log.
async fn begin(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let begin = format!("pragma busy_timeout = {}; select 1 from sqlite_master limit 1", WAIT_MAX.as_millis());
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(connection).await.map(drop)
}

/// Brings all that lies in the write-ahead log into the file, and leaves the log empty.
async fn gather(writer: &SqlitePool) -> sqlx::Result<()> {
    let mut writer = writer.acquire().await?;
    let wait = format!("pragma busy_timeout = {}", GATHERING_WAIT.as_millis());
    sqlx::raw_sql(AssertSqlSafe(wait)).execute(&mut *writer).await?;
    let row = sqlx::query("pragma wal_checkpoint(truncate)").fetch_one(&mut *writer).await?;
    if row.try_get_unchecked::<bool, _>(0)? {
        let problem = "another program reads what is only in the log";
        return Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::ResourceBusy, problem)));
    }
    Ok(())
}

/// Why there was no connection: a pool that has waited in vain does not say.
async fn why_not(options: &PgConnectOptions) -> sqlx::Error {
    let look = async { takes_writes(&mut PgConnection::connect_with(options).await?).await };
    match tokio::time::timeout(PING_MAX, look).await {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

/// Whether a connection still is one; an error closes it at once.
async fn is_there(connection: &mut PgConnection) -> sqlx::Result<bool> {
    within(PING_MAX, connection.ping()).await?;
    Ok(true)
}

/// Whether a connection still is one, to a server that takes writes; an error closes it at once. One whose place another has
/// taken may go on answering for ever, and all that it reads is old.
pub(super) async fn takes_writes(connection: &mut PgConnection) -> sqlx::Result<()> {
    let row = within(PING_MAX, sqlx::raw_sql("show transaction_read_only").fetch_one(connection)).await?;
    if row.try_get_unchecked::<String, _>(0)? == "off" {
        return Ok(());
    }
    let problem =
        "the PostgreSQL server is read-only: it may be a standby; name the one that takes writes, or promote it";
    Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, problem)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_attempt_to_open_a_locked_file_has_what_is_left_of_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new().filename(folder.path().join("db")).create_if_missing(true);
        let mut other = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql("begin exclusive").execute(&mut other).await.unwrap();
        let (limit, mut given) = (Duration::from_secs(2), Vec::new());
        let at_once = options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::ZERO);
        let opened = when_free(limit, |rest| {
            given.push(rest);
            let at_once = at_once.clone();
            async move { SqliteConnection::connect_with(&at_once).await }
        });
        assert!(is_busy(&opened.await.unwrap_err()));
        assert!(given.len() > 1, "{given:?}");
        for (pauses, rest) in (0..).zip(&given) {
            assert!(*rest <= limit.saturating_sub(BUSY_PAUSE * pauses), "{given:?}");
        }
    }

    #[tokio::test]
    async fn whoever_writes_waits_in_full_however_little_time_was_left_to_open() {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new().filename(folder.path().join("db")).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal);
        let pool = PoolOptions::new().max_connections(1);
        let pool =
            writer(pool, &Files::default(), &options.clone().busy_timeout(WAIT_MAX), Duration::ZERO).await.unwrap();
        // With the last of all connections SQLite removes the log.
        let mut reader = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql("select 1 from sqlite_master").execute(&mut reader).await.unwrap();
        for _ in 0..2 {
            let mut connection = pool.acquire().await.unwrap();
            let asked = sqlx::query_scalar::<_, i64>("pragma busy_timeout").fetch_one(&mut *connection).await;
            assert_eq!(u128::try_from(asked.unwrap()).unwrap(), WAIT_MAX.as_millis());
            // The next one is opened anew.
            connection.close().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_that_was_closed_holds_all_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let db = Db::open_sqlite(&path("db"), Expect::Anything).await.unwrap();
        let has_tables = async |name| Db::look(&format!("sqlite:{}", path(name))).await.unwrap().is_some();
        std::fs::copy(path("db"), path("early")).unwrap();
        assert!(has_tables("db").await && !has_tables("early").await, "all lies in the log");
        db.close().await.unwrap();
        std::fs::copy(path("db"), path("late")).unwrap();
        assert!(has_tables("late").await);
    }

    #[tokio::test]
    async fn a_file_that_was_used_and_holds_nothing_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let db = Db::open_sqlite(&path("db"), Expect::Used).await.unwrap();
        std::fs::copy(path("db"), path("without its log")).unwrap();
        std::fs::write(path("emptied"), "").unwrap();
        for name in ["without its log", "emptied"] {
            let before = std::fs::read(path(name)).unwrap();
            let opened = Db::open_sqlite(&path(name), Expect::Used).await.map(drop);
            for refused in [opened, Db::examine_sqlite(&path(name), Expect::Used).await] {
                let error = refused.unwrap_err();
                let told = error.to_string();
                assert!(error.is_damage() && told.contains(&format!("{name}-wal` was removed")), "{told}");
            }
            assert_eq!(std::fs::read(path(name)).unwrap(), before);
            Db::examine_sqlite(&path(name), Expect::Anything).await.unwrap();
        }
        db.close().await.unwrap();
        Db::open_sqlite(&path("db"), Expect::Used).await.unwrap();
    }

    #[tokio::test]
    async fn a_log_that_another_program_reads_is_told_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let db = Db::open_sqlite(path.to_str().unwrap(), Expect::Anything).await.unwrap();
        let mut other = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path)).await.unwrap();
        sqlx::raw_sql("begin; select * from orgs").execute(&mut other).await.unwrap();
        let error = db.close().await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("another program"), "{error}");
    }

    #[test]
    fn several_hosts_are_refused_by_name() {
        for url in ["postgres://u:secret@one,two/db", "postgres:///db?host=one,two&password=secret"] {
            let told = postgres_options(url).unwrap_err().to_string();
            assert!(told.contains("`one,two`") && told.contains("the primary") && !told.contains("secret"), "{told}");
        }
        let told = postgres_options("postgres:///db?host=/one,/two").unwrap_err().to_string();
        assert!(told.contains("`/one,/two`"), "{told}");
        let told = postgres_options("postgres://u:secret@one:5432,two:5432/db").unwrap_err().to_string();
        assert!(told.contains("one host") && !told.contains("secret"), "{told}");
        assert_eq!(postgres_options("postgres://u:se,cret@one/d,b").unwrap().get_host(), "one");
    }
}
