//! A PostgreSQL server of one test's own, which it may stop, kill and start again. The one that `HOLM_TEST_POSTGRES` names is
//! other tests' as well.
//!
//! It does without fsync(2), for the machine does not fail here; what it acknowledged outlives the end of its processes.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{Running, eventually, host, ran::run};

/// A server, whether it runs or not. It ends with this.
pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
    account: (u32, u32),
    port: u16,
    server: Option<Running>,
}

/// The user of its database.
const USER: &str = "holm";

impl Postgres {
    /// Makes a server and waits until it answers.
    #[track_caller]
    pub fn start() -> Self {
        let mut postgres = Self::without_data();
        let mut command = postgres.command("initdb");
        command.arg(format!("--username={USER}"));
        command.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"]);
        run(command.arg(postgres.data())).succeeds();
        postgres.start_again();
        postgres
    }

    /// Makes a hot standby of this server, and waits until it answers.
    #[track_caller]
    pub fn standby(&self) -> Self {
        let mut standby = Self::without_data();
        let mut command = standby.command("pg_basebackup");
        command.args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()]);
        command.args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--pgdata"]);
        run(command.arg(standby.data())).succeeds();
        standby.start_again();
        standby
    }

    /// Has it take no writes any more: it goes on answering who is connected. Returns once `standby` has all that was
    /// written.
    #[track_caller]
    pub fn hands_over_to(&self, standby: &Self) {
        self.asked("alter system set default_transaction_read_only = on");
        self.asked("select pg_reload_conf()");
        eventually("the last writes are over", || {
            let writing = "select count(*) from pg_stat_activity where backend_xid is not null";
            (self.asked("show transaction_read_only") == "on" && self.asked(writing) == "0").then_some(())
        });
        let written = self.asked("select pg_current_wal_lsn()");
        let is_there = format!("select pg_last_wal_replay_lsn() >= '{written}'");
        eventually("the standby has all of it", || (standby.asked(&is_there) == "t").then_some(()));
    }

    /// Makes a standby the server that takes writes.
    #[track_caller]
    pub fn is_promoted(&self) {
        assert_eq!(self.asked("select pg_promote()"), "t");
    }

    /// What it answers to a query, as text.
    #[track_caller]
    pub fn asked(&self, query: &str) -> String {
        let mut command = self.command("psql");
        command.args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string(), "-d", "postgres"]);
        run(command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-c", query])).succeeds().word()
    }

    /// Has the tables that are made from now on lie in a folder, which becomes its own; for root only.
    #[track_caller]
    pub fn keeps_tables_in(&self, dir: &Path) {
        let (user, group) = self.account;
        chown(dir, Some(user), Some(group)).expect("an owner");
        self.asked(&format!("create tablespace elsewhere location '{}'", dir.display()));
        self.asked("alter database postgres set default_tablespace = elsewhere");
    }

    /// Whether it has said so since it was started last.
    #[track_caller]
    pub fn has_said(&self, words: &str) -> bool {
        self.server.as_ref().expect("it runs").stderr().contains(words)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    #[track_caller]
    fn without_data() -> Self {
        let dir = tempfile::Builder::new().prefix("holm-e2e-postgres-").tempdir().expect("a temporary folder");
        let account = (id_of("-u"), id_of("-g"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        if host::is_root() {
            chown(dir.path(), Some(account.0), Some(account.1)).expect("an owner");
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = port.expect("a free port").port();
        Self { dir, bin: bin_dir(), account, port, server: None }
    }

    /// The URL of its database, through another port if something stands before it.
    pub fn url(&self, port: u16) -> String {
        format!("postgres://{USER}@127.0.0.1:{port}/postgres")
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts a server that was ended, and waits until it answers.
    #[track_caller]
    pub fn start_again(&mut self) {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        let server = self.server.insert(Running::start(&mut command));
        let mut probe = Command::new(self.bin.join("pg_isready"));
        probe.args(["-q", "-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()]);
        eventually("PostgreSQL answers", || {
            assert!(server.is_alive(), "PostgreSQL ended: {}", server.stderr());
            (run(&mut probe).code == 0).then_some(())
        });
    }

    /// Asks it to end: sessions are told, and their transactions rolled back.
    #[track_caller]
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    /// Ends it without a word, as a crash would: it recovers when it is started again.
    #[track_caller]
    pub fn crash(&mut self) {
        self.end(Signal::QUIT);
    }

    #[track_caller]
    fn end(&mut self, signal: Signal) {
        let server = self.server.take().expect("it runs");
        server.signal(signal);
        server.wait();
    }

    /// One of its programs, ended with the test. They refuse to run as root, and as a user whom no account file knows.
    fn command(&self, program: &str) -> Command {
        let (uid, gid) = self.account;
        let mut command = Command::new(if host::is_root() { "setpriv" } else { "unshare" });
        if host::is_root() {
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        } else {
            command.arg("--user").arg(format!("--map-user={uid}")).arg(format!("--map-group={gid}")).arg("setpriv");
        }
        command.args(["--pdeathsig", "INT"]);
        command.arg(self.bin.join(program)).current_dir(self.dir.path()).process_group(0);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal(Signal::QUIT);
            if !std::thread::panicking() {
                server.wait();
            }
        }
    }
}

#[track_caller]
fn id_of(flag: &str) -> u32 {
    let ran = run(Command::new("id").args([flag, "postgres"])).succeeds();
    ran.word().parse().expect("the user `postgres`: run `cargo xtask setup`")
}

/// The folder of the newest server installed.
#[track_caller]
fn bin_dir() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").is_file());
    let number = |bin: &PathBuf| bin.parent().and_then(Path::file_name)?.to_str()?.parse::<u32>().ok();
    found.max_by_key(number).expect("there is no PostgreSQL server here: run `cargo xtask setup`")
}
