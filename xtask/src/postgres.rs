//! A PostgreSQL server for the length of a test run.
//!
//! It is made in a temporary folder, listens on a free port of the loopback address only, has a password drawn for it, and
//! ends with xtask however xtask ends: when the guard is dropped, and by the parent-death signal otherwise. For tests it trades
//! durability for speed, which is right for them alone; for measurements it keeps what it says.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{exec, places, say};

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(10);
/// A port that was free may be taken by another program before the server binds it.
const START_ATTEMPTS: u32 = 5;

/// A server that is running.
pub struct Postgres {
    child: Child,
    url: String,
    _dir: TempDir,
}

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Many short databases: nothing of them outlives a power cut.
    Tests,
    /// What is committed is on the disk, as in production.
    Measurements,
}

impl Purpose {
    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Tests => &[
                "fsync=off",
                "synchronous_commit=off",
                "full_page_writes=off",
                "autovacuum=off",
                "shared_buffers=64MB",
            ],
            Self::Measurements => {
                &["fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=1GB", "max_wal_size=4GB"]
            }
        }
    }

    /// The folder in which its folder is made: what is in memory alone is on no disk.
    fn place(self) -> PathBuf {
        match self {
            Self::Tests => std::env::temp_dir(),
            Self::Measurements => places::on_disk(),
        }
    }
}

/// The account under which the server runs: it refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Postgres {
    /// Makes a server and waits until it answers.
    pub fn start(purpose: Purpose) -> Result<Self> {
        let bin = bin_dir()?;
        let account = if places::is_root() { Some(account_of("postgres")?) } else { None };
        let dir = tempfile::Builder::new().prefix("holm-postgres-").tempdir_in(purpose.place())?;
        give(dir.path(), account)?;
        let password = password()?;
        init(&bin, dir.path(), account, &password)?;
        for _ in 0..START_ATTEMPTS {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            let mut child = serve(&bin, dir.path(), account, (port, purpose))?;
            if wait_until_ready(&bin, &mut child, port)? {
                let url = format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres");
                return Ok(Self { child, url, _dir: dir });
            }
        }
        let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        bail!("PostgreSQL did not start {START_ATTEMPTS} times; its log:\n{log}")
    }

    /// The URL of the superuser, as the tests expect it in `HOLM_TEST_POSTGRES`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGINT asks for a fast shutdown: sessions are ended, nothing is waited for.
        if let Err(error) = exec::end(&mut self.child, Signal::INT, STOP_GRACE) {
            say::error(&format!("PostgreSQL could not be ended: {error:#}"));
        }
    }
}

/// The folder of the newest server installed.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(initdb) = places::program("initdb") {
        // A link in PATH may stand for one program only; its siblings are where it leads.
        let initdb = initdb.canonicalize()?;
        return Ok(initdb.parent().context("a program lies in a folder")?.to_path_buf());
    }
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir("/usr/lib/postgresql").into_iter().flatten() {
        let path = entry?.path();
        let version = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if let Some(version) = version.filter(|_| path.join("bin/initdb").is_file()) {
            versions.push((version, path.join("bin")));
        }
    }
    versions.sort();
    let newest = versions.pop().context("there is no PostgreSQL server here: run `cargo xtask setup`")?;
    Ok(newest.1)
}

fn account_of(name: &str) -> Result<Account> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    parse_account(&passwd, name).with_context(|| format!("there is no user `{name}`: run `cargo xtask setup`"))
}

fn parse_account(passwd: &str, name: &str) -> Option<Account> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some(Account { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
}

fn password() -> Result<String> {
    let mut bytes = [0u8; 16];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn give(path: &Path, account: Option<Account>) -> Result<()> {
    if let Some(account) = account {
        chown(path, Some(account.uid), Some(account.gid))?;
    }
    Ok(())
}

fn init(bin: &Path, dir: &Path, account: Option<Account>, password: &str) -> Result<()> {
    let secret = dir.join("password");
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&secret)?;
    std::io::Write::write_all(&mut file, password.as_bytes())?;
    give(&secret, account)?;
    let sockets = dir.join("sockets");
    fs::DirBuilder::new().mode(0o700).create(&sockets)?;
    give(&sockets, account)?;
    let mut command = under(account, &bin.join("initdb"), dir);
    command.args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    command.arg("--pwfile").arg(&secret).arg("--pgdata").arg(dir.join("data"));
    exec::read(&mut command)?;
    Ok(())
}

fn serve(bin: &Path, dir: &Path, account: Option<Account>, (port, purpose): (u16, Purpose)) -> Result<Child> {
    let setpriv = places::program("setpriv").context("setpriv (util-linux) is missing")?;
    let log = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join("log"))?;
    // setpriv changes the ids before it asks for the parent-death signal, which a change of ids would take away again.
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "INT"]);
    if let Some(account) = account {
        command.arg(format!("--reuid={}", account.uid)).arg(format!("--regid={}", account.gid)).arg("--clear-groups");
    }
    command.arg(bin.join("postgres")).arg("-D").arg(dir.join("data")).arg("-p").arg(port.to_string());
    command.arg("-k").arg(dir.join("sockets"));
    for setting in purpose.settings().iter().chain(&["listen_addresses=127.0.0.1", "max_connections=400", "jit=off"]) {
        command.args(["-c", setting]);
    }
    // A group of its own: a Ctrl-C at the terminal must reach the tests first, and the database when they have ended.
    command.process_group(0).current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start `{}`", exec::line(&command)))
}

fn wait_until_ready(bin: &Path, child: &mut Child, port: u16) -> Result<bool> {
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        exec::check_interrupt()?;
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        let mut probe = Command::new(bin.join("pg_isready"));
        probe.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        if exec::output(&mut probe)?.status.success() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(50));
    }
    exec::end(child, Signal::QUIT, STOP_GRACE)?;
    Ok(false)
}

fn under(account: Option<Account>, program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(account) = account {
        // The standard library drops the supplementary groups as well when it changes the user as root.
        command.gid(account.gid).uid(account.uid);
    }
    command.current_dir(dir);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:105:112::/var/lib/postgresql:/bin/bash\n";
        assert_eq!(parse_account(passwd, "postgres"), Some(Account { uid: 105, gid: 112 }));
        assert_eq!(parse_account(passwd, "nobody"), None);
    }

    #[test]
    fn a_server_answers_with_its_password_only_and_is_gone_after_the_drop() {
        let server = Postgres::start(Purpose::Tests).expect("a server");
        let psql = |url: &str| {
            let mut command = Command::new(bin_dir().expect("a server is installed").join("psql"));
            exec::output(command.args(["-w", "-tAc", "select 40 + 2", url])).expect("psql runs")
        };
        assert_eq!(psql(server.url()).stdout, b"42\n");
        let (head, tail) = server.url().split_once('@').expect("a password");
        assert!(!psql(&format!("{}x@{tail}", head)).status.success(), "a wrong password must be refused");
        let (pid, dir) = (server.child.id(), server._dir.path().to_path_buf());
        drop(server);
        assert!(!Path::new(&format!("/proc/{pid}")).exists() && !dir.exists());
    }
}
