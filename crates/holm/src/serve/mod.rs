//! The long-running processes: server, agent, and both in one.

pub mod agent;
pub mod blobs;
mod idle;
mod label;
pub mod logging;
mod root_key;
pub mod server;
mod signals;
pub mod socket;
pub mod up;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use holm_api::client::SecretString;
use holm_runtime::{
    SharedRuntime,
    process::{Config as ProcessConfig, Label, ProcessRuntime},
};
use holm_store::{Expect, SqliteFiles, Store};
use holm_trace::Tracer;
use secrecy::ExposeSecret as _;

use crate::{
    config::Environment,
    home::{Home, create_dir},
    lock::{self, Lock, Served},
    session::Session,
};
use blobs::BlobsTold;
use signals::Signals;

/// Prints the OpenAPI document.
pub fn openapi(session: &Session) -> anyhow::Result<u8> {
    session.output.value(&holm_server::openapi())?;
    Ok(0)
}

/// How long threads that read and write files are waited for once all else has ended: a disk may not answer.
const THREADS_WITHIN: Duration = Duration::from_secs(5);

/// How long a collector is waited for at the end of a process, which has let go of everything else by then.
const SPANS_WITHIN: Duration = Duration::from_millis(500);

/// Executes `main` with threads for every processor and what it records to; what waits then is sent.
fn block_on<F>(session: Session, main: impl FnOnce(Session, Tracer) -> F) -> anyhow::Result<u8>
where
    F: Future<Output = anyhow::Result<u8>>,
{
    let tracer = session.config.tracer(|problem| tracing::warn!("{problem}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (ended, signals) = runtime.block_on(async {
        let ended = main(session, tracer.clone()).await;
        // What arrives from now on is from somebody who does not want to wait.
        (ended, Signals::listen())
    });
    let begun = Instant::now();
    runtime.shutdown_timeout(THREADS_WITHIN);
    let is_alone = begun.elapsed() < THREADS_WITHIN;
    if !is_alone {
        tracing::warn!(after = ?begun.elapsed(), "threads that wait for a disk are left behind");
    }
    let is_in_order = is_alone && ended.is_ok();
    if is_in_order {
        lock::let_go();
    }
    if tracer.is_on() {
        // Who did not end in order has its locks still, for which somebody may wait.
        let within = if is_in_order { SPANS_WITHIN } else { Duration::ZERO };
        if let Err(error) = signals.and_then(|signals| end_spans(&tracer, signals, within)) {
            tracing::warn!(%error, "spans that wait cannot be sent");
        }
    }
    ended
}

/// Sends the spans that wait, unless a signal comes first.
fn end_spans(tracer: &Tracer, mut signals: Signals, within: Duration) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lost = runtime.block_on(async {
        tokio::select! {
            lost = tracer.end(within) => Some(lost),
            _ = signals.next() => None,
        }
    });
    match lost {
        Some(0) => {}
        Some(lost) => tracing::warn!(lost, "not all spans were taken by the collector"),
        None => tracing::warn!("asked to end twice; spans may be lost"),
    }
    Ok(())
}

/// Opens the store: the one that was named, or SQLite under the home.
async fn open_store(home: &Home, database: Option<&SecretString>, blobs: &BlobsTold) -> anyhow::Result<Store> {
    let dir = home.server();
    create_dir(&dir).with_context(|| format!("cannot use {}", dir.display()))?;
    let url = match database {
        Some(url) => url.clone(),
        None => own_database(home)?,
    };
    own_file(&url)?;
    let blobs = blobs.open(home, &Environment::of_process()).await?;
    let opened = Store::open_expecting(url.expose_secret(), expect(home, database), blobs).await;
    opened.with_context(|| format!("cannot open the database {}", database_name(&url)))
}

/// Has the file of a database that is a file for this process alone, to its end: a server of SQLite hears of nothing that
/// another one writes.
fn own_file(database: &SecretString) -> anyhow::Result<()> {
    let name = database_name(database);
    let Some(files) = files(database)? else { return Ok(()) };
    one_name(&files)?;
    let lock = lock_of(&files);
    match Lock::take(&lock).with_context(|| format!("cannot lock {}", lock.display()))? {
        Ok(lock) => lock.keep(),
        Err(pid) => {
            let who = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
            bail!(
                "another server{who} has the database {name}: end it first, or give this one a --home of its own; several \
                 servers on one database need PostgreSQL"
            );
        }
    }
    Ok(())
}

/// Refuses a file that has several names.
pub fn one_name(files: &SqliteFiles) -> anyhow::Result<()> {
    if fs::metadata(&files.database).is_ok_and(|file| file.nlink() > 1) {
        let name = files.database.display();
        bail!("the database {name} has several names (hard links), and SQLite keeps a log for each: leave it one");
    }
    Ok(())
}

/// Who serves a database that is one of SQLite.
pub fn served_by(files: &SqliteFiles) -> io::Result<Served> {
    lock::served_by(&lock_of(files))
}

/// The files of a database that is one of SQLite.
pub fn files(database: &SecretString) -> anyhow::Result<Option<SqliteFiles>> {
    let files = SqliteFiles::of(database.expose_secret());
    files.with_context(|| format!("cannot find the database {}", database_name(database)))
}

/// The file that a server which has a database keeps locked.
fn lock_of(files: &SqliteFiles) -> PathBuf {
    files.database.with_added_extension("lock")
}

/// The database under a home.
pub fn own_database(home: &Home) -> anyhow::Result<SecretString> {
    let path = home.database();
    let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(format!("sqlite:{path}").into())
}

/// What the database under a home, or one that was named, is expected to be. A home that was used before has a token.
pub fn expect(home: &Home, named: Option<&SecretString>) -> Expect {
    if named.is_none() && home.token().exists() { Expect::Used } else { Expect::Anything }
}

/// Lets go of the store at an orderly end. What is not brought into the file of SQLite now is found beside it at the next start,
/// if it is still there.
async fn close(store: &Store) -> anyhow::Result<()> {
    let displaced = store.displaced();
    match (store.close().await, displaced) {
        (Ok(()), _) => {}
        (Err(error), None) => {
            tracing::warn!(%error, "the store was not closed in order; nothing is lost, keep the log of the database beside it");
        }
        (Err(error), Some(path)) => bail!("{} was removed or replaced: {error}", path.display()),
    }
    Ok(())
}

/// What may be said of a database: the path of a file, but not the URL of a server, which may bear a password.
pub fn database_name(url: &SecretString) -> &str {
    let url = url.expose_secret();
    url.strip_prefix("sqlite:").unwrap_or("that --database or `[server] database` names")
}

/// The files of a database that no run may have lent: the journals beside it hold what it holds.
fn guarded(database: &SecretString) -> anyhow::Result<Vec<PathBuf>> {
    let guarded = |files: SqliteFiles| {
        let lock = lock_of(&files);
        vec![files.database, files.log, files.shared, lock]
    };
    Ok(files(database)?.map(guarded).unwrap_or_default())
}

/// Whether the database that `url` names answers, and within which time if it is a server. What it holds is not looked at,
/// and nothing is changed.
pub async fn database_ping(url: &str, expect: Expect) -> anyhow::Result<Option<Duration>> {
    Ok(holm_store::reach(url, expect).await?)
}

/// Reads the runs that have not ended in the database that `url` names. Nothing is changed.
pub async fn runs_examine(url: &str) -> anyhow::Result<holm_store::ExaminedRuns> {
    Ok(holm_store::runs_examine(url).await?)
}

/// The `process` runtime of the agent under `home`.
pub fn process_runtime(home: &Home, lending: agent::Lending) -> anyhow::Result<SharedRuntime> {
    let mut config = ProcessConfig::new(label::label(home)?, home.agent().join("images"));
    config.lend = lending.lends;
    config.guarded = lending.guarded;
    Ok(Arc::new(ProcessRuntime::new(config)))
}

/// The runtimes as a shim knows them: it was handed what it needs, and neither label nor folders matter to it.
pub fn runtime_of_shim(name: &str) -> Option<SharedRuntime> {
    let label: Label = "shim".parse().ok()?;
    let process = ProcessRuntime::new(ProcessConfig::new(label, PathBuf::from("/nonexistent")));
    let runtime: SharedRuntime = Arc::new(process);
    (runtime.name() == name).then_some(runtime)
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{:016x}", rand::random::<u64>()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
