//! procrastinate, a queue of jobs on PostgreSQL, from PyPI in an environment of its own.
//!
//! What is called is `JobManager.fetch_job` of the library itself, over its own connector, by as many tasks as there are
//! pollers: one call is one transaction that locks a job (`for update skip locked`), notes who has it and stores an event of
//! that. It is what a worker of procrastinate does between two jobs, without the jobs, their ends, and the single loop of one
//! worker that fetches one after the other. There is no HTTP and no second process between the task and the database, which
//! there is for a poller of Holm. How it is spread over processes and connections is tried first, and the best is taken.

use std::{
    collections::HashSet,
    fmt, fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::seed::psql;
use crate::{exec, say};

const VERSION: &str = "3.10.0";
const SCRIPT: &str = include_str!("peer.py");
/// How many jobs each setting is tried with.
const TRIED_JOBS: u64 = 4_000;
/// Processes, and connections of each; there are 400 in all on the server.
const SETTINGS: [Setting; 5] = [
    Setting { processes: 1, connections: 15 },
    Setting { processes: 2, connections: 15 },
    Setting { processes: 2, connections: 50 },
    Setting { processes: 4, connections: 15 },
    Setting { processes: 4, connections: 50 },
];

/// How the tasks are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Setting {
    processes: u32,
    connections: u32,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} processes with {} connections each", self.processes, self.connections)
    }
}

/// procrastinate with a database of its own.
pub struct Peer {
    python: PathBuf,
    script: PathBuf,
    url: String,
    tasks: u32,
    /// The setting with which it is fastest.
    pub setting: Setting,
}

/// What one process of it tells.
#[derive(Deserialize)]
struct Told {
    seconds: f64,
    claimed: Vec<u64>,
}

impl Peer {
    /// Installs it in `dir`, makes its tables in the database at `url`, and finds its best setting for so many tasks.
    pub fn prepare(dir: &Path, url: &str, tasks: u32) -> Result<Self> {
        let venv = dir.join("procrastinate");
        exec::read(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let wanted = [format!("procrastinate=={VERSION}"), "psycopg[binary,pool]".to_owned()];
        exec::read(Command::new(venv.join("bin/pip")).args(["install", "--quiet"]).args(wanted))
            .context("procrastinate comes from PyPI")?;
        let script = dir.join("peer.py");
        fs::write(&script, SCRIPT)?;
        let python = venv.join("bin/python");
        let schema = "import procrastinate.schema; print(procrastinate.schema.SchemaManager.get_schema())";
        let sql = dir.join("procrastinate.sql");
        fs::write(&sql, exec::read(Command::new(&python).args(["-c", schema]))?)?;
        psql(url, &["-f", sql.to_str().context("a path that is no text")?])?;
        let mut this = Self { python, script, url: url.to_owned(), tasks, setting: SETTINGS[0] };
        let mut best = 0.0;
        for setting in SETTINGS {
            let rate = this.round_with(setting, TRIED_JOBS)?;
            say::note(&format!("{setting}: {rate:.0} claims/s"));
            if rate > best {
                (best, this.setting) = (rate, setting);
            }
        }
        Ok(this)
    }

    /// Queues so many jobs and has all of them claimed; returns how many a second.
    pub fn round(&self, jobs: u64) -> Result<f64> {
        self.round_with(self.setting, jobs)
    }

    fn round_with(&self, setting: Setting, jobs: u64) -> Result<f64> {
        let fill = format!(
            "truncate procrastinate_jobs, procrastinate_workers, procrastinate_events restart identity cascade;
             insert into procrastinate_jobs (queue_name, task_name, args) select 'default', 'nothing', '{{}}'
             from generate_series(1, {jobs})"
        );
        psql(&self.url, &["-c", &fill, "-c", "vacuum analyze"])?;
        let each = self.tasks / setting.processes;
        let mut processes: Vec<Process> =
            (0..setting.processes).map(|_| Process::start(self, each, setting)).collect::<Result<_>>()?;
        processes.iter_mut().try_for_each(Process::wait_until_ready)?;
        processes.iter_mut().try_for_each(Process::go)?;
        let told: Vec<Told> = processes.into_iter().map(Process::told).collect::<Result<_>>()?;
        // From the first claim to the last, without the beginning and the end of the processes.
        let seconds = told.iter().map(|told| told.seconds).fold(0.0, f64::max);
        let claimed: Vec<u64> = told.into_iter().flat_map(|told| told.claimed).collect();
        let once: HashSet<&u64> = claimed.iter().collect();
        ensure!(
            once.len() as u64 == jobs && claimed.len() as u64 == jobs,
            "{} jobs of {jobs} were claimed",
            claimed.len()
        );
        Ok(jobs as f64 / seconds)
    }
}

/// One process of the peer; killed when it is dropped before it has told what it did.
struct Process {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(peer: &Peer, tasks: u32, setting: Setting) -> Result<Self> {
        let mut command = Command::new(&peer.python);
        command.arg(&peer.script).arg(&peer.url).args([tasks.to_string(), setting.connections.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
        Ok(Self { child, output })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line == "ready\n", "procrastinate is not ready: {line:?}");
        Ok(())
    }

    fn go(&mut self) -> Result<()> {
        let mut input = self.child.stdin.take().context("standard input is a pipe")?;
        Ok(input.write_all(b"go\n")?)
    }

    fn told(mut self) -> Result<Told> {
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "procrastinate ended with {status}");
        serde_json::from_str(&text).context("procrastinate told no JSON")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended is left alone by both.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
