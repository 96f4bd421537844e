//! A fleet: several servers on one PostgreSQL, and agents on hosts of their own, of which a test may end, stop and cut off any.
//!
//! Each agent finds the servers behind one address, where each of its connections is led to the next server that accepts one,
//! as a balancer would. Every sandbox has a witness (`HOLM_TEST_WITNESS`): a start that meets another live sandbox of its run
//! is noted. For root only.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use super::{Role, World};
use crate::{
    POLL, Ran, eventually, host,
    http::Http,
    network::{Cut, Host},
    postgres::Postgres,
    proxy::Proxy,
    ran::send,
};

/// How long leases last and what is waited beyond; runs are given to agents as often as it takes.
const FLAGS: [&str; 6] = ["--lease-ttl", "3s", "--lease-margin", "1s", "--attempts-max", "100"];
/// How many runs an agent may have at once.
const RUNS_MAX: &str = "12";
/// Where starts that met another live sandbox of their run are noted.
const OVERLAPS: &str = "overlaps";
/// What a keeper of a witness, which is a copy of its shim, calls itself.
const KEEPER: &str = "witness";

/// A part of a fleet, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A server.
    Server(usize),
    /// An agent.
    Agent(usize),
}

/// A fleet. Dropping it ends all of it and fails the test if something is left on the host.
pub struct Fleet {
    world: World,
    ports: Vec<u16>,
    balancers: Vec<Proxy>,
    hosts: Vec<Host>,
    witness: PathBuf,
    /// The database, which may be ended as well.
    pub postgres: Postgres,
}

impl Fleet {
    /// A fleet that is complete and answers.
    #[track_caller]
    pub fn start(servers: usize, agents: usize) -> Self {
        let postgres = Postgres::start();
        let world = World::on_database(&postgres.url(postgres.port()));
        let witness = witness(&world);
        let listeners: Vec<TcpListener> =
            (0..servers).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port")).collect();
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().expect("an address").port()).collect();
        drop(listeners);
        let hosts: Vec<Host> = (0..agents).map(|_| Host::new()).collect();
        let balancers = hosts.iter().map(|host| Proxy::at(host.reaches(), ports.iter().copied())).collect();
        let mut fleet = Self { world, ports, balancers, hosts, witness, postgres };
        for server in 0..servers {
            fleet.launch(Part::Server(server));
            fleet.until_ready(server);
        }
        (0..agents).for_each(|agent| fleet.launch(Part::Agent(agent)));
        eventually("all agents are registered", || {
            let hosts = fleet.http(0).get("/v1/hosts").is(200).json();
            (hosts["hosts"].as_array().map_or(0, Vec::len) == agents).then_some(())
        });
        fleet
    }

    /// How many servers there are.
    pub fn servers(&self) -> usize {
        self.ports.len()
    }

    /// The API of one server, which may not be there.
    pub fn http(&self, server: usize) -> Http {
        let token = fs::read_to_string(self.world.home().join("token")).ok().map(|text| text.trim().to_owned());
        Http { socket: self.socket(server), token }
    }

    fn socket(&self, server: usize) -> PathBuf {
        let name = if server == 0 { "server.sock".to_owned() } else { format!("server-{server}.sock") };
        self.world.dir().join(name)
    }

    #[track_caller]
    fn until_ready(&mut self, server: usize) {
        eventually(&format!("server {server} answers"), || {
            self.world.check_alive();
            let http = self.http(server);
            let answer = http.try_send("GET", "/readyz", &[], b"").ok()?;
            (http.token.is_some() && answer.status == 200).then_some(())
        });
    }

    /// Starts a part that does not run, and does not wait for it.
    #[track_caller]
    pub fn launch(&mut self, part: Part) {
        let command = match part {
            Part::Server(number) => {
                let mut command = self.world.command_in(&self.world.home());
                command.args(["server", "--listen", &format!("unix:{}", self.socket(number).display())]);
                command.args(["--listen", &format!("127.0.0.1:{}", self.ports[number])]).args(FLAGS);
                command
            }
            Part::Agent(number) => {
                let mut command = self.world.agent_command(&name(number));
                command.args(["--runs-max", RUNS_MAX]).env("HOLM_SERVER", self.balancers[number].url());
                command.env("HOLM_TEST_WITNESS", &self.witness);
                self.hosts[number].command(&command)
            }
        };
        let mut command = command;
        self.world.start(role(part), &mut command);
    }

    /// Kills a part with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill(&mut self, part: Part) {
        self.world.end(&role(part), Signal::KILL).exits(137);
    }

    /// Asks a part to end with SIGTERM, and waits until it has, in order.
    #[track_caller]
    pub fn stop(&mut self, part: Part) {
        self.world.end(&role(part), Signal::TERM).exits(0);
    }

    /// What leads each connection to the next server that accepts one, for clients on this machine.
    pub fn balancer(&self) -> Proxy {
        Proxy::at(Ipv4Addr::LOCALHOST, self.ports.iter().copied())
    }

    /// `holm` as a client of the servers behind an address.
    pub fn client(&self, servers: &Proxy) -> Command {
        let mut command = self.world.command_in(&self.world.home());
        command.env("HOLM_SERVER", servers.url()).env("HOLM_TOKEN_FILE", self.world.home().join("token"));
        command
    }

    /// Whether a part was started and has not been seen to end since.
    pub fn is_there(&self, part: Part) -> bool {
        self.world.processes.iter().any(|(known, _)| *known == role(part))
    }

    /// Has a part stand still with SIGSTOP.
    #[track_caller]
    pub fn pause(&self, part: Part) {
        send(self.world.pid_of(&role(part)), Signal::STOP);
    }

    /// Has a part go on.
    #[track_caller]
    pub fn resume(&self, part: Part) {
        send(self.world.pid_of(&role(part)), Signal::CONT);
    }

    /// Cuts the wire of the host of an agent.
    #[track_caller]
    pub fn cut(&mut self, agent: usize, cut: Cut) {
        self.hosts[agent].cut(cut);
    }

    /// Mends the wire of the host of an agent.
    #[track_caller]
    pub fn mend(&mut self, agent: usize) {
        self.hosts[agent].mend();
    }

    /// A part that has ended by itself, and what it said; each once.
    #[track_caller]
    pub fn fallen(&mut self) -> Option<(Part, Ran)> {
        let servers = (0..self.servers()).map(Part::Server);
        let parts: Vec<Part> = servers.chain((0..self.hosts.len()).map(Part::Agent)).collect();
        let parts: Vec<Part> = parts.into_iter().filter(|part| self.is_there(*part)).collect();
        parts.into_iter().find_map(|part| Some((part, self.world.ended(&role(part))?)))
    }

    /// The shims that have been given their orders.
    pub fn shims(&self) -> Vec<u32> {
        let is_shim = |pid: &u32| {
            host::command_line(*pid).contains(" shim holm.")
                && host::executable(*pid).is_some_and(|path| path.starts_with(self.world.dir()))
                && host::status_field(*pid, "Name").is_some_and(|name| name != KEEPER)
                // One that waits has no thread that kills.
                && host::status_field(*pid, "Threads").is_some_and(|count| count != "1")
        };
        host::processes().into_iter().filter(is_shim).collect()
    }

    /// The attempts on the host of an agent whose shims have noted that the lease ran out, and that they killed the sandbox.
    pub fn killed_by_deadline(&self, agent: usize) -> BTreeSet<PathBuf> {
        let runs = fs::read_dir(self.world.agent_home(&name(agent)).join("agent/runs"));
        let attempts = runs.into_iter().flatten().flatten().map(|entry| entry.path());
        let is_by_deadline = |attempt: &PathBuf| {
            let status = fs::read(attempt.join("exit.json")).ok();
            let status = status.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            status.is_some_and(|status| status["outcome"]["reason"] == "lease_expired")
        };
        attempts.filter(is_by_deadline).collect()
    }

    /// The starts that met another live sandbox of their run, a line each.
    #[track_caller]
    pub fn overlaps(&self) -> String {
        overlaps(&self.witness)
    }

    /// Whether a sandbox of that run was ever witnessed.
    pub fn is_witnessed(&self, run: &str) -> bool {
        self.witness.join(run).exists()
    }

    /// All runs.
    #[track_caller]
    pub fn runs(&self) -> Vec<Value> {
        self.world.all_runs()
    }

    /// The events of a run, oldest first.
    #[track_caller]
    pub fn events(&self, run: &str) -> Vec<Value> {
        self.world.events(run)
    }

    /// Waits until all runs have ended, at most that long; those that have not.
    #[track_caller]
    pub fn until_all_ended(&self, within: Duration) -> Vec<Value> {
        let deadline = Instant::now() + within;
        loop {
            let mut left = self.runs();
            left.retain(|run| run["state"] != "ended");
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(POLL * 10);
        }
    }

    /// Waits until every server answers again.
    #[track_caller]
    pub fn until_all_ready(&mut self) {
        (0..self.servers()).for_each(|server| self.until_ready(server));
    }
}

fn name(agent: usize) -> String {
    format!("a{agent}")
}

fn role(part: Part) -> Role {
    match part {
        Part::Server(0) => Role::Server,
        Part::Server(number) => Role::Further(number),
        Part::Agent(number) => Role::Agent(name(number)),
    }
}

/// Makes a folder for the witnesses of sandboxes. Each launcher has an id of its own, and none of them may be kept out.
#[track_caller]
pub fn witness(world: &World) -> PathBuf {
    let dir = world.folder("witness");
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    open(&dir, 0o777);
    fs::write(dir.join(OVERLAPS), "").expect("a file");
    open(&dir.join(OVERLAPS), 0o666);
    dir
}

/// What launchers have noted in a folder of witnesses, a line each.
#[track_caller]
pub fn overlaps(witness: &Path) -> String {
    fs::read_to_string(witness.join(OVERLAPS)).expect("the file that launchers write to")
}
