//! What a server and an agent of this home stand on: the database, the folder of large objects, what was set aside, and the
//! clock.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use holm_agent::{DAMAGE_NAME, SET_ASIDE_NAME};
use holm_api::client::Client;
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use rustix::fs::{Access, access, statvfs};
use secrecy::ExposeSecret as _;

use super::{HOME_FREE_BYTES, Probe, good, less, missing};
use crate::{
    config::Target,
    home::Home,
    local, serve,
    session::Session,
    units::{show_bytes, show_duration},
};

/// How long the database may take to answer, and a large file to be read.
const DATABASE_DEADLINE: Duration = Duration::from_secs(20);
/// How long a server may take to say what time it has.
const CLOCK_DEADLINE: Duration = Duration::from_secs(5);
/// How far the times of two machines may be apart: the margin of leases where nobody says.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(5);

/// Looks at all of it.
pub async fn probes(session: &Session) -> Vec<Probe> {
    let home = session.home();
    let mut probes = vec![database(session, &home).await, blobs(&home.blobs())];
    probes.push(set_aside(&home.agent().join(SET_ASIDE_NAME)));
    probes.extend(clock(session, &home).await);
    probes
}

/// Whether the time of the server that is meant is the one of this machine; nothing where no server answers.
async fn clock(session: &Session, home: &Home) -> Option<Probe> {
    let client = match session.config.target().ok()? {
        Target::Local => local::connect(home).await.ok().flatten()?,
        Target::Named { endpoint, token } => Client::new(endpoint, token.value).ok()?,
    };
    let date = client.date(CLOCK_DEADLINE).await.ok().flatten()?;
    let there = DateTimeParser::new().parse_timestamp(&date).ok()?;
    Some(compare(there, jiff::Timestamp::now()))
}

fn compare(there: Timestamp, here: Timestamp) -> Probe {
    let name = "clock";
    let apart = Duration::from_secs(there.as_second().abs_diff(here.as_second()));
    if apart <= CLOCKS_APART_MAX {
        return good(name, "the server's agrees with this machine's");
    }
    let where_to = if there < here { "behind" } else { "ahead of" };
    let found = format!("the server's is {} {where_to} this machine's", show_duration(apart));
    let way_out = "a server goes on by the time at which it started, and follows slowly where that is set: restart it; \
                   or set the clock of the other machine right";
    less(name, found, way_out)
}

async fn database(session: &Session, home: &Home) -> Probe {
    let name = "database";
    let url = match &session.config.file.server.database {
        Some(url) => url.clone(),
        None => match serve::own_database(home) {
            Ok(url) => url,
            Err(error) => return missing(name, format!("{error:#}"), "see the message"),
        },
    };
    let file = url.expose_secret().strip_prefix("sqlite:").map(PathBuf::from);
    if file.as_ref().is_some_and(|path| !path.exists()) {
        return good(name, "none yet; the first start of a server makes it");
    }
    let what = serve::database_name(&url);
    match tokio::time::timeout(DATABASE_DEADLINE, serve::database_ping(url.expose_secret())).await {
        Ok(Ok(())) if file.is_some() => good(name, format!("{what} is whole")),
        Ok(Ok(())) => good(name, format!("the one {what} answers")),
        // What a database says may quote the URL, and the URL has a password in it.
        Ok(Err(error)) => {
            let problem = format!("{error:#}").replace(url.expose_secret(), "the database");
            missing(name, format!("{what}: {problem}"), "see the message; without it no server works")
        }
        Err(_) if file.is_some() => less(
            name,
            format!("{what} was not read to its end within {}", show_duration(DATABASE_DEADLINE)),
            "look again",
        ),
        Err(_) => missing(name, format!("the one {what} does not answer"), "start PostgreSQL, or correct the URL"),
    }
}

fn blobs(path: &Path) -> Probe {
    let name = "blobs";
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return good(name, "none yet; the first start of a server makes their folder");
        }
        Err(error) => return missing(name, format!("{}: {error}", path.display()), "look after that disk"),
        Ok(meta) if !meta.is_dir() => {
            let way_out = "move it away; the server makes the folder, or restore it from a copy";
            return missing(name, format!("{} is not a folder", path.display()), way_out);
        }
        Ok(_) => {}
    }
    let free = match statvfs(path) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return missing(name, format!("{}: {error}", path.display()), "look after that disk"),
    };
    if free < HOME_FREE_BYTES {
        let found =
            format!("{}: {} free, {} are needed", path.display(), show_bytes(free), show_bytes(HOME_FREE_BYTES));
        return missing(name, found, "make room there; what waits to be stored is then stored");
    }
    match access(path, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => good(name, path.display().to_string()),
        Err(error) => missing(name, format!("{} cannot be written: {error}", path.display()), "give it to this user"),
    }
}

fn set_aside(path: &Path) -> Probe {
    let name = "set aside";
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return good(name, "nothing"),
        Err(error) => return less(name, format!("{}: {error}", path.display()), "look as the user of the agent"),
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort_unstable();
    let Some(last) = found.last() else { return good(name, "nothing") };
    let folder = last.file_name().unwrap_or_default().to_string_lossy();
    let note = fs::read_to_string(last.join(DAMAGE_NAME)).unwrap_or_default();
    let why = if note.is_empty() { String::new() } else { format!(": {}", note.trim_end()) };
    let found = format!("{} of an attempt that could not be read, the last {folder}{why}", found.len());
    less(name, found, format!("look into {}; what was looked at may be removed", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[test]
    fn clocks_that_differ_are_told() {
        let here = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |seconds: i64| compare(Timestamp::from_second(1_700_000_000 + seconds).unwrap(), here);
        for near in [-5, 0, 5] {
            assert_eq!(at(near).status, Status::Good, "{near}");
        }
        for (far, words) in [(-259_200, "3 d 0 h behind"), (3_600, "1 h 0 min ahead of"), (6, "6 s ahead of")] {
            let probe = at(far);
            assert_eq!(probe.status, Status::Less);
            assert!(probe.found.contains(words), "{}", probe.found);
        }
    }
}
