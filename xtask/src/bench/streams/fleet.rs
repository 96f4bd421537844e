//! Two servers on one PostgreSQL and one folder for large objects, and agents, all behind one balancer.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::balancer::Balancer;
use crate::{
    exec,
    installation::Installation,
    postgres::{Postgres, Purpose},
    say,
};

const READY_DEADLINE: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(30);
const SERVERS: usize = 2;

/// The fleet; its processes are ended when it is dropped, the database last.
pub struct Fleet {
    servers: Vec<Option<Child>>,
    agents: Vec<Child>,
    /// Its commands speak to the balancer.
    pub installation: Installation,
    balancer: Balancer,
    _postgres: Postgres,
}

impl Fleet {
    /// Servers that answer, and no agents yet.
    pub fn start(mut installation: Installation) -> Result<Self> {
        let postgres = Postgres::start(Purpose::Measurements)?;
        let listeners = [(); SERVERS].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let mut ports = Vec::new();
        for listener in listeners {
            ports.push(listener?.local_addr()?.port());
        }
        let balancer = Balancer::before(ports.iter().copied())?;
        let blobs = format!("file:{}", installation.dir().join("blobs").display());
        // Servers on one database share it; the first makes it.
        let root_key = installation.dir().join("root-key");
        let mut servers = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let home = installation.dir().join(format!("server-{number}"));
            let mut command = installation.command();
            command.args(["server", "--listen", &format!("127.0.0.1:{port}"), "--blobs", &blobs]);
            command.env("HOLM_HOME", &home).env("HOLM_DATABASE", postgres.url()).env("HOLM_ROOT_KEY_FILE", &root_key);
            servers.push(Some(installation.logged(&mut command, &format!("server-{number}.log"))?));
            // The first server makes the token that all know.
            let token = installation.dir().join("server-0/token");
            installation.reach(&format!("http://127.0.0.1:{port}"), token);
            until_ready(&installation, number)?;
        }
        let token = installation.dir().join("server-0/token");
        installation.reach(&balancer.url(), token);
        Ok(Self { servers, agents: Vec::new(), installation, balancer, _postgres: postgres })
    }

    /// Where the fleet is found.
    pub fn url(&self) -> String {
        self.balancer.url()
    }

    /// The file with a token of the role admin.
    pub fn token(&self) -> PathBuf {
        self.installation.dir().join("server-0/token")
    }

    /// Starts agents of which each may have so many runs.
    pub fn start_agents(&mut self, count: u32, runs_max: u32) -> Result<()> {
        let token = self.installation.dir().join("agent-token");
        let made = self.installation.json(&["token", "create", "agents", "--role", "agent"])?;
        fs::write(&token, made["secret"].as_str().context("`holm token create` printed no secret")?)?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
        for number in 0..count {
            let name = format!("agent-{number}");
            let mut command = self.installation.command();
            command.env("HOLM_HOME", self.installation.dir().join(&name)).env("HOLM_TOKEN_FILE", &token);
            // What is measured is not whether a host with as many runs is in a hurry.
            command.args(["agent", "--name", &name, "--runs-max", &runs_max.to_string(), "--host-pressure", "off"]);
            self.agents.push(self.installation.logged(&mut command, &format!("{name}.log"))?);
        }
        Ok(())
    }

    /// Kills the first server with SIGKILL.
    pub fn kill_server(&mut self) -> Result<()> {
        let mut server = self.servers[0].take().context("the server has been killed before")?;
        server.kill()?;
        server.wait()?;
        Ok(())
    }

    /// Asks all processes to end and waits for them.
    pub fn stop(&mut self) -> Result<()> {
        for child in self.agents.drain(..).chain(self.servers.drain(..).flatten()).collect::<Vec<_>>().iter_mut() {
            let status = exec::end(child, Signal::TERM, STOP_GRACE)?;
            if !status.success() {
                bail!("a process of the fleet ended with {status}");
            }
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            say::error(&format!("{error:#}"));
        }
    }
}

fn until_ready(installation: &Installation, number: usize) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < READY_DEADLINE {
        exec::check_interrupt()?;
        if exec::output(installation.command().arg("hosts")).is_ok_and(|output| output.status.success()) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let log = fs::read_to_string(installation.dir().join(format!("server-{number}.log"))).unwrap_or_default();
    bail!("server {number} did not answer within {READY_DEADLINE:?}; its log:\n{log}")
}
