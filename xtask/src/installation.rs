//! A private installation of Holm for measurements and long tests: its own state folder, driven by the command line alone.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::{exec, places, say};

const READY_DEADLINE: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(30);

/// How the binary is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For measurements.
    Release,
    /// For everything else: what the tests build anyway.
    Dev,
}

/// Builds the binary and returns where it is.
pub fn build(profile: Profile) -> Result<PathBuf> {
    let mut cargo = exec::cargo();
    cargo.args(["build", "--locked", "--package", "holm"]).current_dir(places::root()?);
    let folder = match profile {
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
        Profile::Dev => "debug",
    };
    exec::run(&mut cargo)?;
    Ok(places::target()?.join(folder).join("holm"))
}

/// A state folder and the processes on it; ended when dropped.
pub struct Installation {
    dir: tempfile::TempDir,
    bin: PathBuf,
    server: Option<Child>,
    agent: Option<Child>,
    /// Where commands find a server that is not behind the socket, and the file with the token for it.
    reaches: Option<(String, PathBuf)>,
}

impl Installation {
    /// A folder in `place` that shims can reach into, and nothing that runs yet.
    pub fn new(built: &Path, place: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holm-xtask-").tempdir_in(place)?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let bin = dir.path().join("holm");
        // A copy of its own, so that its processes can be told from those of another installation.
        fs::copy(built, &bin).with_context(|| format!("cannot copy {}", built.display()))?;
        Ok(Self { dir, bin, server: None, agent: None, reaches: None })
    }

    /// `holm up` that answers, with its folder in `place`.
    pub fn up(built: &Path, place: &Path) -> Result<Self> {
        Self::up_with(built, place, &[])
    }

    /// The same with further flags.
    pub fn up_with(built: &Path, place: &Path, flags: &[&str]) -> Result<Self> {
        let mut this = Self::new(built, place)?;
        this.server = Some(this.spawn(&[&["up", "--private"], flags].concat(), "up.log")?);
        this.wait_until_ready()?;
        Ok(this)
    }

    /// A server and an agent as two processes, so that the agent can be killed by itself.
    pub fn server_and_agent(built: &Path) -> Result<Self> {
        let mut this = Self::server(built, &[])?;
        this.start_agent()?;
        Ok(this)
    }

    /// A server alone, with further flags.
    pub fn server(built: &Path, flags: &[&str]) -> Result<Self> {
        let mut this = Self::new(built, &std::env::temp_dir())?;
        let listen = this.server_url();
        this.server = Some(this.spawn(&[&["server", "--listen", &listen], flags].concat(), "server.log")?);
        this.wait_until_ready()?;
        Ok(this)
    }

    /// From now on commands speak to the server with that URL and the token in that file.
    pub fn reach(&mut self, url: &str, token: PathBuf) {
        self.reaches = Some((url.to_owned(), token));
    }

    /// The folder of the installation.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The binary of its processes.
    pub fn bin(&self) -> PathBuf {
        self.bin.clone()
    }

    /// The folder that the agent lends to runs, for reading.
    pub fn lent(&self) -> PathBuf {
        self.dir.path().join("lent")
    }

    /// The socket of a server that has an agent beside it.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("server.sock")
    }

    /// The file with a token of the role admin.
    pub fn token(&self) -> PathBuf {
        self.home().join("token")
    }

    /// The process of the server.
    pub fn server_pid(&self) -> Result<u32> {
        self.server.as_ref().map(Child::id).context("no server runs")
    }

    fn server_url(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) -> Result<()> {
        let mut command = self.command();
        command.env("HOLM_HOME", self.dir.path().join("agent")).env("HOLM_SERVER", self.server_url());
        let token = self.dir.path().join("agent-token");
        if !token.exists() {
            fs::write(&token, self.agent_token()?)?;
            fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
        }
        command.env("HOLM_TOKEN_FILE", token);
        let lent = self.lent();
        fs::create_dir_all(&lent)?;
        self.agent = Some(self.logged(command.args(["agent", "--lend"]).arg(lent), "agent.log")?);
        Ok(())
    }

    /// Makes a token for agents, with which they can do nothing else.
    pub fn agent_token(&self) -> Result<String> {
        let made = self.json(&["token", "create", "agents", "--role", "agent"])?;
        Ok(made["secret"].as_str().context("`holm token create` printed no secret")?.to_owned())
    }

    /// Kills the agent with SIGKILL.
    pub fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    fn spawn(&self, arguments: &[&str], log: &str) -> Result<Child> {
        self.logged(self.command().args(arguments), log)
    }

    /// Starts a command that writes to a file of the installation.
    pub fn logged(&self, command: &mut Command, log: &str) -> Result<Child> {
        let file = fs::OpenOptions::new().append(true).create(true).open(self.dir.path().join(log))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.spawn().with_context(|| format!("cannot start `{}`", exec::line(command)))
    }

    /// The binary with the environment of this installation.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.bin);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HOLM_") {
                command.env_remove(name);
            }
        }
        command.env("HOLM_HOME", self.home()).env("HOLM_CONFIG", self.dir.path().join("config.toml"));
        if let Some((url, token)) = &self.reaches {
            command.env("HOLM_SERVER", url).env("HOLM_TOKEN_FILE", token);
        } else if self.socket().exists() {
            command.env("HOLM_SERVER", self.server_url()).env("HOLM_TOKEN_FILE", self.home().join("token"));
        }
        command
    }

    /// What a command of the binary prints with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = exec::read(self.command().args(arguments).arg("--json"))?;
        serde_json::from_str(&text).with_context(|| format!("`holm {}` printed no JSON", arguments.join(" ")))
    }

    /// The newest runs, at most `count`, as `holm ps` lists them.
    pub fn runs(&self, count: u32) -> Result<Vec<Value>> {
        match self.json(&["ps", "--all", "--last", &count.to_string()])? {
            Value::Array(runs) => Ok(runs),
            Value::Object(mut page) => match page.remove("runs") {
                Some(Value::Array(runs)) => Ok(runs),
                _ => bail!("`holm ps --json` printed no list"),
            },
            _ => bail!("`holm ps --json` printed no list"),
        }
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        while Instant::now() < deadline {
            exec::check_interrupt()?;
            // Not `holm run`: it would start a server of its own where there is none yet.
            let answers = self.home().join("token").exists()
                && exec::output(self.command().arg("hosts")).is_ok_and(|output| output.status.success());
            if answers {
                return Ok(());
            }
            if let Some(status) = self.server.as_mut().and_then(|server| server.try_wait().transpose()).transpose()? {
                bail!("the server ended: {status}\n{}", self.log_tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the server did not answer within {READY_DEADLINE:?}\n{}", self.log_tail())
    }

    fn log_tail(&self) -> String {
        let logs =
            ["up.log", "server.log"].map(|name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default());
        let text = logs.concat();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Asks both processes to end and waits for them.
    pub fn stop(&mut self) -> Result<()> {
        for child in [self.agent.take(), self.server.take()].iter_mut().flatten() {
            let status = exec::end(child, Signal::TERM, STOP_GRACE)?;
            if !status.success() {
                bail!("a process of the installation ended with {status}");
            }
        }
        Ok(())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            say::error(&format!("{error:#}"));
        }
    }
}
