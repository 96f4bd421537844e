//! The server of this machine: found, or started in the background.
//!
//! What always holds: at most one server has a home, because it holds the lock of it; whoever starts one waits until it
//! answers, or says why it does not with the end of its log, or with its last word where the log could not be written. Several that start at once end up with the same server: the
//! processes that come second end by themselves ([`EXIT_LOCKED`]), and who started them goes on waiting.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use holm_api::client::{Client, Endpoint};

use crate::{
    config::{Source, read_token, tells_of_traces},
    home::{Home, open_nofollow},
    output::{escaped, told},
};

/// The exit code of `holm up` when another one has the home (EX_TEMPFAIL of sysexits.h).
pub const EXIT_LOCKED: u8 = 75;
/// How long a server may take until it answers.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a server that was started without need leaves its place to the one that has the lock.
const SETTLE: Duration = Duration::from_millis(300);
const POLL_EVERY: Duration = Duration::from_millis(5);
/// When the log is longer it is put aside before the next start.
const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;
const LOG_TAIL_BYTES: u64 = 4 * 1024;
/// The most of its last word that a server tells its starter, in bytes. A pipe holds it, so nobody waits for who reads it.
const LAST_WORD_BYTES_MAX: usize = 4 * 1024;

/// A client of the server of this machine, which is started if it does not run.
pub async fn connect_or_start(home: &Home) -> anyhow::Result<Client> {
    // Somebody who listens is enough here: a request that meets a server on its way out is made again.
    if home.listener().await?.is_some()
        && let Some(client) = client(home)?
    {
        return Ok(client);
    }
    match connect(home).await? {
        Some(client) => Ok(client),
        None => start(home).await,
    }
}

fn client(home: &Home) -> anyhow::Result<Option<Client>> {
    let path = home.socket();
    if !path.exists() {
        return Ok(None);
    }
    let token = match read_token(&home.token(), &Source::Default) {
        Ok(token) => token,
        Err(_) if !home.token().exists() => return Ok(None),
        Err(error) => return Err(error.context(format!("the token of the server under {}", home.0.display()))),
    };
    Ok(Some(Client::new(Endpoint::Unix(path), token.value)?))
}

/// A client of the server of this machine, if it runs.
pub async fn connect(home: &Home) -> anyhow::Result<Option<Client>> {
    // The token is for a server of this user's only.
    if home.listener().await?.is_none() {
        return Ok(None);
    }
    let Some(client) = client(home)? else { return Ok(None) };
    match client.ready(Duration::from_secs(10)).await {
        Ok(()) => Ok(Some(client)),
        // A socket without a listener is what a server leaves that was killed.
        Err(holm_api::client::ClientError::Transport { .. }) => Ok(None),
        Err(error) if error.is_transient() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn start(home: &Home) -> anyhow::Result<Client> {
    home.create().with_context(|| home.not_made())?;
    let begun = Instant::now();
    let mut child = spawn(home)?;
    let mut settle_until = None;
    loop {
        if let Some(client) = connect(home).await? {
            return Ok(client);
        }
        if begun.elapsed() > START_DEADLINE {
            // It may be about to answer; whoever comes next finds it.
            bail!("the server did not answer within {:?}; {}", begun.elapsed(), tail(home));
        }
        match (settle_until, child.try_wait()?) {
            (None, Some(status)) if lost_the_race(status) => settle_until = Some(Instant::now() + SETTLE),
            (None, Some(status)) => {
                bail!("the server could not start ({status}); {}", why(home, &last_word(&mut child)))
            }
            (Some(until), _) if Instant::now() > until => {
                // The one that had the lock may have been about to end.
                child = spawn(home)?;
                settle_until = None;
            }
            _ => {}
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

fn lost_the_race(status: ExitStatus) -> bool {
    status.code() == Some(i32::from(EXIT_LOCKED))
}

fn spawn(home: &Home) -> anyhow::Result<Child> {
    let log = open_log(home).with_context(|| format!("cannot write {}", home.log().display()))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("holm")
        .args(["up", "--private", "--detached", "--idle-exit", "10m", "--home"])
        .arg(&home.0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    // The server is this machine's own: what names another one is not for it.
    for name in ["HOLM_SERVER", "HOLM_TOKEN", "HOLM_TOKEN_FILE", "HOLM_CONTEXT"] {
        command.env_remove(name);
    }
    // It outlives the command, and records what its configuration file says.
    std::env::vars_os().map(|(name, _)| name).filter(|name| tells_of_traces(name)).for_each(|name| {
        command.env_remove(name);
    });
    command.spawn().context("cannot start `holm up` in the background")
}

/// The last word of a server in the background to its starter, for whom the log may not have had room.
pub fn tell_starter(error: &anyhow::Error) {
    let told = told(error);
    let word = &told[..told.floor_char_boundary(LAST_WORD_BYTES_MAX)];
    // The log is told all of it, and whoever started this may have gone.
    let _nobody_listens = io::stdout().write_all(word.as_bytes()).and_then(|()| io::stdout().flush());
}

/// What a server that has ended left in its pipe; nothing is waited for.
fn last_word(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = child.stdout.take()
        && rustix::io::ioctl_fionbio(&pipe, true).is_ok()
    {
        // What was read before an error is what there is.
        let _read = pipe.take(LAST_WORD_BYTES_MAX as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why a server did not start: the end of its log, and its last word if that is not in there.
fn why(home: &Home, last_word: &str) -> String {
    let tail = tail(home);
    match last_word.lines().next_back().map(escaped) {
        Some(end) if !tail.contains(&end) => format!("{tail}; it said: {}", escaped(last_word)),
        _ => tail,
    }
}

fn open_log(home: &Home) -> io::Result<File> {
    let path = home.log();
    if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        std::fs::rename(&path, path.with_extension("log.1"))?;
    }
    open_nofollow(OpenOptions::new().append(true).create(true).mode(0o600), &path)
}

/// The last lines of the log, for a message.
fn tail(home: &Home) -> String {
    let path = home.log();
    let read = || -> io::Result<String> {
        let mut file = open_nofollow(OpenOptions::new().read(true), &path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let last: Vec<String> = lines.iter().skip(lines.len().saturating_sub(10)).map(|line| escaped(line)).collect();
        Ok(last.join("\n"))
    };
    match read() {
        Ok(text) if text.is_empty() => format!("{} is empty", path.display()),
        Ok(text) => format!("{} ends with:\n{text}", path.display()),
        Err(error) => format!("{} cannot be read: {error}", path.display()),
    }
}
