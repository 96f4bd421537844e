//! The database: whether it answers, is whole and takes writes, and how long that takes; and whether its runs can be read.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use holm_store::{ExaminedRuns, Expect, RUNS_EXAMINED_MAX, SqliteFiles};
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Probe, Status,
    deadline::{self, LOOK_DEADLINE},
    good, less, missing,
};
use crate::{home::Home, lock::Served, output::told, serve, session::Session, units::show_duration};

/// How long the database may take to answer, and a large file to be read.
const DATABASE_DEADLINE: Duration = Duration::from_secs(20);
/// Above this an answer of PostgreSQL is slow: one operation of a server takes several.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(20);
/// How long a file is locked if another program keeps it locked. A server lets it go after each of its transactions.
const LOCKED_FOR: Duration = Duration::from_secs(2);
/// How often is looked in that time.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The byte of the shared memory beside a file of SQLite that whoever writes keeps locked (sqlite.org/walformat.html, 2.3.1).
const WRITE_LOCK_AT: u64 = 120;
/// The byte of it that all who have the file open keep locked, for reading.
const OPEN_LOCK_AT: u64 = 128;
/// Where its counter of changes is.
const CHANGES_AT: u64 = 8;
/// How many runs that cannot be read are named.
const RUNS_NAMED_MAX: usize = 3;

/// The files of the database, if it is one of SQLite and there; also its log alone, which is not to be without it.
async fn files(name: &'static str, url: &SecretString) -> Result<Option<(SqliteFiles, bool)>, Probe> {
    let Some(path) = url.expose_secret().strip_prefix("sqlite:").map(PathBuf::from) else { return Ok(None) };
    let url = url.clone();
    let found = deadline::look(name, &path, LOOK_DEADLINE, move || {
        let files = serve::files(&url)?;
        anyhow::Ok(files.map(|files| (files.clone(), files.database.exists() || files.log.exists())))
    });
    found.await?.map_err(|error| missing(name, told(&error), "see the message"))
}

/// Looks at it, and at the runs in it if it can be read.
pub async fn probes(session: &Session, home: &Home) -> Vec<Probe> {
    let name = "database";
    let named = session.config.database.as_ref().map(|database| &database.value);
    let url = match named {
        Some(url) => url.clone(),
        None => match serve::own_database(home) {
            Ok(url) => url,
            Err(error) => return vec![missing(name, told(&error), "see the message")],
        },
    };
    let expect = serve::expect(home, named);
    let files = match files(name, &url).await {
        Ok(Some((files, false))) => return vec![absent(&files)],
        Ok(files) => files.map(|(files, _)| files),
        Err(silent) => return vec![silent],
    };
    if let Some(files) = &files {
        if let Err(error) = serve::one_name(files) {
            return vec![missing(name, told(&error), "see the message")];
        }
        // What keeps this from being told is met by the look that follows, and told there.
        if is_log_lost(files).is_ok_and(|lost| lost) {
            let found = format!("the log {} was removed or replaced under a live server", files.log.display());
            let way_out = "put it back, or end the server in order (`holm down`), which brings all that it holds into the \
                           database; until then it takes no runs";
            return vec![missing(name, found, way_out)];
        }
    }
    let mut probes = vec![itself(&url, files, expect).await];
    if probes[0].status == Status::Missing {
        return probes;
    }
    probes.push(runs(&url).await);
    probes
}

/// What there is to say of a file that is not there.
fn absent(files: &SqliteFiles) -> Probe {
    let name = "database";
    if matches!(serve::served_by(files), Ok(Served::By(_))) {
        let found = format!("{} was removed or replaced under a live server", files.database.display());
        return missing(name, found, "put it back, and its log beside it; until then the server takes no runs");
    }
    good(name, "none yet; the first start of a server makes it")
}

async fn itself(url: &SecretString, files: Option<SqliteFiles>, expect: Expect) -> Probe {
    let name = "database";
    let what = serve::database_name(url);
    match tokio::time::timeout(DATABASE_DEADLINE, serve::database_ping(url.expose_secret(), expect)).await {
        Ok(Ok(answer_time)) => match (files, answer_time) {
            (Some(files), _) => whole(&files).await,
            (None, answer_time) => answers(what, answer_time.unwrap_or_default()),
        },
        Ok(Err(error)) => {
            let found = format!("{what}: {}", without_url(&error, url));
            missing(name, found, "see the message; without it no server works")
        }
        Err(_) if files.is_some() => less(
            name,
            format!("{what} was not read to its end within {}", show_duration(DATABASE_DEADLINE)),
            "look again",
        ),
        Err(_) => missing(name, format!("the one {what} does not answer"), "start PostgreSQL, or correct the URL"),
    }
}

/// What a database says may quote the URL, and the URL has a password in it.
fn without_url(error: &anyhow::Error, url: &SecretString) -> String {
    error.to_string().replace(url.expose_secret(), "the database")
}

/// Whether the runs that have not ended can be read.
async fn runs(url: &SecretString) -> Probe {
    let name = "runs";
    match tokio::time::timeout(DATABASE_DEADLINE, serve::runs_examine(url.expose_secret())).await {
        Ok(Ok(examined)) => judge(&examined),
        Ok(Err(error)) => less(name, without_url(&error, url), "see the message"),
        Err(_) => less(name, format!("not read within {}", show_duration(DATABASE_DEADLINE)), "look again"),
    }
}

fn judge(ExaminedRuns { count, unreadable }: &ExaminedRuns) -> Probe {
    let name = "runs";
    let first = if *count < RUNS_EXAMINED_MAX { "" } else { "first " };
    if unreadable.is_empty() {
        return good(name, format!("the {first}{count} that have not ended can be read"));
    }
    let named: Vec<String> = unreadable.iter().take(RUNS_NAMED_MAX).map(ToString::to_string).collect();
    let found =
        format!("{} of the {first}{count} that have not ended cannot be read; {}", unreadable.len(), named.join("; "));
    let way_out = "restore the database from a copy, and look after its disk; until then nobody executes these runs or renews \
                   their leases, and other runs go on";
    less(name, found, way_out)
}

/// What there is to say of a server of PostgreSQL that answers within `answer_time`.
fn answers(what: &str, answer_time: Duration) -> Probe {
    let found = format!("the one {what} answers within {} ms", answer_time.as_millis() + 1);
    if answer_time <= ANSWER_TIME_MAX {
        return good("database", found);
    }
    let way_out = "that is slow, and an operation of a server takes several answers: look after the load of PostgreSQL, and \
                   after the network between";
    less("database", found, way_out)
}

/// What there is to say of a file that is whole.
async fn whole(files: &SqliteFiles) -> Probe {
    let (name, path) = ("database", &files.database);
    match locked_by(files).await {
        Ok(None) => good(name, format!("{} is whole", path.display())),
        Ok(Some(holder)) => {
            let found = format!("{} is whole, and {holder} keeps the database locked", path.display());
            missing(name, found, "end that program, or wait for it; until then no server can store anything")
        }
        Err(error) => {
            let found = format!("{} is whole; whether it is locked cannot be told: {error}", path.display());
            less(name, found, "look as the user of the server")
        }
    }
}

/// Who keeps a file of SQLite locked for writing all the while, and lets nothing be written in that time. To look takes no
/// lock, so nobody waits for it.
async fn locked_by(files: &SqliteFiles) -> io::Result<Option<String>> {
    let shared = match File::open(&files.shared) {
        Ok(file) => file,
        // Nobody has it open.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = Flock { start: WRITE_LOCK_AT, length: 1, ..FlockType::ReadLock.into() };
    let (begun, changes) = (Instant::now(), changes(&shared)?);
    loop {
        let Some(lock) = fcntl_getlk(&shared, &read)? else { return Ok(None) };
        if self::changes(&shared)? != changes {
            // Whoever has the lock now has not had it all the while.
            return Ok(None);
        }
        if begun.elapsed() >= LOCKED_FOR {
            return Ok(Some(lock.pid.map_or_else(|| "a process of another pid namespace".to_owned(), named)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether somebody has the file open, and knows of more in its log than the one under its name holds; or it is served, and
/// has no log.
fn is_log_lost(files: &SqliteFiles) -> io::Result<bool> {
    let is_begun = fs::metadata(&files.database).is_ok_and(|file| file.len() > 0);
    if is_begun && !files.log.exists() {
        return Ok(matches!(serve::served_by(files)?, Served::By(_)));
    }
    let shared = File::open(&files.shared)?;
    let write = Flock { start: OPEN_LOCK_AT, length: 1, ..FlockType::WriteLock.into() };
    if fcntl_getlk(&shared, &write)?.is_none() {
        return Ok(false);
    }
    let known = known_bytes(&shared)?;
    let there = match fs::metadata(&files.log) {
        Ok(log) => log.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    // It may have been emptied meanwhile; then less of it is known, too.
    Ok(there < known && known_bytes(&shared)? == known)
}

/// How long a log is at least by the head of the shared memory (walformat.html, 2.1, szPage and mxFrame). The largest page,
/// of 65,536 bytes, is told as 1.
fn known_bytes(shared: &File) -> io::Result<u64> {
    let (mut page, mut frames) = ([0; 2], [0; 4]);
    shared.read_exact_at(&mut page, 14)?;
    shared.read_exact_at(&mut frames, 16)?;
    let page = match u16::from_ne_bytes(page) {
        1 => 65_536,
        bytes => u64::from(bytes),
    };
    let frames = u64::from(u32::from_ne_bytes(frames));
    Ok(if frames == 0 { 0 } else { 32 + frames * (24 + page) })
}

/// What every transaction that writes changes: the counter in the head of the shared memory (walformat.html, 2.1, iChange).
fn changes(shared: &File) -> io::Result<[u8; 4]> {
    let mut counter = [0; 4];
    shared.read_exact_at(&mut counter, CHANGES_AT)?;
    Ok(counter)
}

/// A process, for people.
fn named(pid: Pid) -> String {
    let number = pid.as_raw_nonzero();
    match fs::read_to_string(format!("/proc/{number}/comm")) {
        Ok(name) => format!("process {number} ({})", name.trim_end()),
        Err(_) => format!("process {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[test]
    fn a_database_that_answers_slowly_is_told() {
        assert_eq!(answers("here", Duration::from_micros(300)).status, Status::Good);
        let slow = answers("here", Duration::from_millis(161));
        assert_eq!((slow.status, slow.found.as_str()), (Status::Less, "the one here answers within 162 ms"));
    }
}
