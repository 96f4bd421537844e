//! One installation of Holm, with its own copy of the binary, its own folders and its own store.

pub mod fleet;

use std::{
    cell::Cell,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    DEADLINE, POLL, Ran, Running, eventually, host,
    http::Http,
    leftovers::Marks,
    ran::{run, send},
    store::Store,
};

/// An installation. Dropping it ends all of it and fails the test if something is left on the host.
pub struct World {
    dir: tempfile::TempDir,
    store: Store,
    bin: PathBuf,
    processes: Vec<(Role, Running)>,
    runs: Vec<String>,
    disks: Vec<PathBuf>,
    variables: Vec<(&'static str, String)>,
}

/// A long-running process of a world.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Up,
    Server,
    /// Another server on the same database, by its number.
    Further(usize),
    Agent(String),
}

thread_local! {
    static UNCHECKED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Does something with worlds whose proxies lack the check of that name.
pub fn without<T>(check: &'static str, act: impl FnOnce() -> T) -> T {
    UNCHECKED.set(Some(check));
    let done = act();
    UNCHECKED.set(None);
    done
}

/// The configuration file of a world.
const CONFIG_FILE: &str = "config/holm/config.toml";
/// The times of leases that tests wait for: short, and far enough apart for a slow machine.
const SHORT_LEASES: &str = "lease_ttl = \"2s\"\nlease_margin = \"1s\"\n";

impl World {
    /// Folders and a binary; nothing runs yet.
    #[track_caller]
    pub fn new() -> Self {
        Self::with_config("", "")
    }

    /// The same with lines for the tables `[server]` and `[agent]` of the configuration.
    #[track_caller]
    pub fn with_config(server: &str, agent: &str) -> Self {
        Self::on(Store::from_environment(), server, agent)
    }

    /// The same on the database behind that URL, which the test looks after.
    #[track_caller]
    pub fn on_database(url: &str) -> Self {
        Self::on_database_with(url, "")
    }

    /// The same with lines for the table `[server]` of the configuration.
    #[track_caller]
    pub fn on_database_with(url: &str, server: &str) -> Self {
        Self::on(Store::Sqlite, &format!("database = \"{url}\"\n{server}"), "")
    }

    /// The same on a file in the state folder, whatever other tests stand on.
    #[track_caller]
    pub fn on_file() -> Self {
        Self::on_file_with("")
    }

    /// With lines for the server in the file of settings.
    #[track_caller]
    pub fn on_file_with(server: &str) -> Self {
        Self::on(Store::Sqlite, server, "")
    }

    #[track_caller]
    fn on(store: Store, server: &str, agent: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("holm-e2e-").tempdir().expect("a temporary folder");
        // Shims run under ids of their own and must reach what is theirs below.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        fs::create_dir(dir.path().join("user")).expect("a folder");
        let bin = dir.path().join("holm");
        bring(&built_binary(), &bin);
        let database = store.url().map(|url| format!("database = \"{url}\"\n")).unwrap_or_default();
        let config = format!("[server]\n{database}{server}\n[agent]\n{agent}\n");
        // Where a user has it: in a folder of Holm's own.
        let config_file = dir.path().join(CONFIG_FILE);
        fs::create_dir_all(config_file.parent().expect("a folder")).expect("a folder");
        fs::write(&config_file, config).expect("a configuration");
        fs::set_permissions(&config_file, fs::Permissions::from_mode(0o600)).expect("a mode");
        let (processes, runs, disks, variables) = Default::default();
        Self { dir, store, bin, processes, runs, disks, variables }
    }

    /// A world in which `holm up` runs and answers.
    #[track_caller]
    pub fn up() -> Self {
        let mut world = Self::new();
        world.start_up();
        world
    }

    /// A world in which a server runs that gives short leases; agents are started by name.
    #[track_caller]
    pub fn with_short_leases() -> Self {
        let mut world = Self::with_config(SHORT_LEASES, "");
        world.start_server();
        world
    }

    /// A world in which a server runs as it does unless it is told otherwise; agents are started by name.
    #[track_caller]
    pub fn with_server() -> Self {
        let mut world = Self::new();
        world.start_server();
        world
    }

    /// Starts a server without an agent and waits until it answers.
    #[track_caller]
    pub fn start_server(&mut self) {
        self.start_server_with(&[]);
    }

    /// The same with further flags.
    #[track_caller]
    pub fn start_server_with(&mut self, flags: &[&str]) {
        let listen = format!("unix:{}", self.dir.path().join("server.sock").display());
        let mut command = self.command_in(&self.home());
        self.start(Role::Server, command.args(["server", "--listen", &listen]).args(flags));
        self.wait_until_ready();
    }

    /// What `holm doctor` says of the state in which the world is; it contains every word.
    #[track_caller]
    pub fn doctor_says(&self, code: i32, words: &[&str]) -> Ran {
        let doctor = self.holm(["doctor"]).exits(code);
        for word in words {
            assert!(doctor.text().contains(word), "`{word}` is not in {doctor}");
        }
        doctor
    }

    /// The folder of the world, readable to everybody, gone in the end.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The state folder of `holm up` or of the server.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Makes a folder in the world for a test's own files.
    #[track_caller]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// A file system of its own, of that size and with further options, at a place in the world's folder; for root only.
    #[track_caller]
    pub fn small_disk(&mut self, place: &str, size: &str) -> PathBuf {
        let path = self.folder(place);
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&path).status();
        assert!(mounted.is_ok_and(|status| status.success()), "cannot mount a tmpfs at {}", path.display());
        self.disks.push(path.clone());
        path
    }

    /// Gives a small disk room for more files.
    #[track_caller]
    pub fn more_files(&self, disk: &Path) {
        let mounted = Command::new("mount").args(["-o", "remount,nr_inodes=10000"]).arg(disk).status();
        assert!(mounted.is_ok_and(|status| status.success()), "cannot remount {}", disk.display());
    }

    /// What `holm up` has said on its standard output.
    #[track_caller]
    pub fn up_says(&self) -> String {
        let found = self.processes.iter().find(|(role, _)| *role == Role::Up);
        found.map(|(_, running)| running.stdout()).expect("`holm up` runs")
    }

    /// What `holm up` has said on its standard error.
    #[track_caller]
    pub fn up_complains(&self) -> String {
        let found = self.processes.iter().find(|(role, _)| *role == Role::Up);
        found.map(|(_, running)| running.stderr()).expect("`holm up` runs")
    }

    /// Sets a variable for everything that is started from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }

    /// The binary with the world's environment.
    pub fn command(&self) -> Command {
        self.command_in(&self.home())
    }

    fn command_in(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.bin);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.dir.path().join("user")).env("TMPDIR", std::env::temp_dir());
        command.env("HOLM_HOME", home).env("HOLM_CONFIG", self.dir.path().join(CONFIG_FILE));
        // No pressure is known but what a test writes there, however busy this machine is.
        command.env("HOLM_TEST_PROC", self.proc_dir());
        command.env("HOLM_LOG", "info").current_dir(self.dir.path().join("user"));
        if self.processes.iter().any(|(role, _)| *role == Role::Server) {
            command.env("HOLM_SERVER", format!("unix:{}", self.socket().display()));
            command.env("HOLM_TOKEN_FILE", self.home().join("token"));
        }
        command.envs(UNCHECKED.get().map(|check| ("HOLM_TEST_UNCHECKED", check)));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn proc_dir(&self) -> PathBuf {
        self.dir.path().join("proc")
    }

    /// Has the kernel tell that all tasks of the host stall for want of memory, for so many percent of the time, while little
    /// of it is available.
    #[track_caller]
    pub fn memory_stalls(&self, percent: u32) {
        let dir = self.proc_dir();
        fs::create_dir_all(dir.join("pressure")).expect("a folder");
        let write = |name: &str, text: &str| {
            fs::write(dir.join("new"), text).expect("a file");
            fs::rename(dir.join("new"), dir.join(name)).expect("a file");
        };
        let rest = "avg60=0.00 avg300=0.00 total=0";
        write("meminfo", "MemTotal: 1000 kB\nMemAvailable: 10 kB\n");
        write("pressure/memory", &format!("some avg10={percent}.00 {rest}\nfull avg10={percent}.00 {rest}\n"));
    }

    /// `holm ARGUMENTS…` to its end.
    #[track_caller]
    pub fn holm<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        run(self.command().args(arguments))
    }

    /// The same under another state folder, where a server of its own is started if need be: `down` is to end it.
    #[track_caller]
    pub fn holm_in<S: AsRef<OsStr>>(&self, home: &Path, arguments: impl IntoIterator<Item = S>) -> Ran {
        run(self.command_in(home).args(arguments))
    }

    /// `holm run ARGUMENTS…` to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        run(self.command().arg("run").args(arguments))
    }

    /// `holm run -- sh -c SCRIPT` to its end.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Ran {
        self.run(["--", "sh", "-c", script])
    }

    /// `holm run --detach ARGUMENTS…`: the id of the run.
    #[track_caller]
    pub fn detach<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let id = run(self.command().args(["run", "--detach"]).args(arguments)).succeeds().word();
        assert!(id.starts_with("run_") && id.len() == 30, "{id:?} is not the id of a run");
        id
    }

    /// `holm run ARGUMENTS…` while it runs.
    #[track_caller]
    pub fn running<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        Running::start(self.command().arg("run").args(arguments))
    }

    fn socket(&self) -> PathBuf {
        if self.processes.iter().any(|(role, _)| *role == Role::Server) {
            self.dir.path().join("server.sock")
        } else {
            self.home().join("up.sock")
        }
    }

    /// The API, as the holder of the first token.
    pub fn http(&self) -> Http {
        let token = fs::read_to_string(self.home().join("token")).ok().map(|text| text.trim().to_owned());
        Http { socket: self.socket(), token }
    }

    /// Starts `holm up` and waits until it answers.
    #[track_caller]
    pub fn start_up(&mut self) {
        let mut command = self.command();
        // On its socket only, so that worlds do not meet at a port; what the user may read may be brought in.
        self.start(Role::Up, command.args(["up", "--private"]));
        self.wait_until_ready();
    }

    /// The same with further flags.
    #[track_caller]
    pub fn start_up_with(&mut self, flags: &[&str]) {
        let mut command = self.command();
        self.start(Role::Up, command.args(["up", "--private"]).args(flags));
        self.wait_until_ready();
    }

    /// Starts `holm up` with further variables and does not wait for it: it may end by itself.
    #[track_caller]
    pub fn launch_up(&mut self, variables: &[(&str, PathBuf)]) {
        let mut command = self.command();
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        self.start(Role::Up, command.args(["up", "--private"]));
    }

    /// What became of `holm up`, if it has ended.
    #[track_caller]
    pub fn up_ended(&mut self) -> Option<Ran> {
        self.ended(&Role::Up)
    }

    /// What became of an agent, if it has ended.
    #[track_caller]
    pub fn agent_ended(&mut self, name: &str) -> Option<Ran> {
        self.ended(&Role::Agent(name.to_owned()))
    }

    #[track_caller]
    fn ended(&mut self, wanted: &Role) -> Option<Ran> {
        let index = self.processes.iter().position(|(role, _)| role == wanted);
        let index = index.unwrap_or_else(|| panic!("{wanted:?} was not started"));
        if self.processes[index].1.is_alive() {
            return None;
        }
        let (_, running) = self.processes.remove(index);
        Some(running.wait_alone())
    }

    /// Starts an agent with a state folder of its own and waits until the server knows it.
    #[track_caller]
    pub fn start_agent(&mut self, name: &str) {
        self.start_agent_with(name, &[]);
    }

    /// The same with further flags.
    #[track_caller]
    pub fn start_agent_with(&mut self, name: &str, flags: &[&str]) {
        let mut command = self.agent_command(name);
        self.start(Role::Agent(name.to_owned()), command.args(flags));
        let http = self.http();
        eventually(&format!("agent {name} registered"), || {
            self.check_alive();
            let hosts = http.get("/v1/hosts").is(200).json();
            let known = hosts["hosts"].as_array().into_iter().flatten().any(|host| host["name"] == name);
            known.then_some(())
        });
    }

    /// Starts an agent with further variables and does not wait for it: it may end by itself.
    #[track_caller]
    pub fn launch_agent(&mut self, name: &str, variables: &[(&str, PathBuf)]) {
        let mut command = self.agent_command(name);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        self.start(Role::Agent(name.to_owned()), &mut command);
    }

    #[track_caller]
    fn agent_command(&self, name: &str) -> Command {
        let mut command = self.command_in(&self.agent_home(name));
        command.env("HOLM_TOKEN_FILE", self.agent_token());
        command.args(["agent", "--name", name, "--lend", "/:rw"]);
        command
    }

    /// The file with the join token of an agent that is to enrol, made when it is asked for first.
    #[track_caller]
    pub fn join_token(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(format!("join-{name}"));
        if !path.exists() {
            let secret = self.holm(["hosts", "join", name]).succeeds().text().to_owned();
            fs::write(&path, secret).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        }
        path
    }

    /// Starts an agent that enrols with what is in the file `token`, or has enrolled before, and waits until the server knows
    /// it.
    #[track_caller]
    pub fn start_joining_agent(&mut self, name: &str, token: &Path) {
        self.launch_joining_agent(name, token, &[]);
        let http = self.http();
        eventually(&format!("agent {name} registered"), || {
            self.check_alive();
            let hosts = http.get("/v1/hosts").is(200).json();
            let mut known = hosts["hosts"].as_array().into_iter().flatten();
            known.any(|host| host["name"] == name && host["alive"] == true).then_some(())
        });
    }

    /// The same with further variables, and does not wait for it: it may end by itself.
    #[track_caller]
    pub fn launch_joining_agent(&mut self, name: &str, token: &Path, variables: &[(&str, PathBuf)]) {
        let mut command = self.command_in(&self.agent_home(name));
        command.env_remove("HOLM_TOKEN_FILE").args(["agent", "--name", name, "--lend", "/:rw", "--join-token-file"]);
        command.arg(token).envs(variables.iter().map(|(name, value)| (name, value)));
        self.start(Role::Agent(name.to_owned()), &mut command);
    }

    /// What the server and an agent have said, on both outputs.
    #[track_caller]
    pub fn all_said(&self, name: &str) -> String {
        self.said_by_each(name).concat()
    }

    /// The same, each by itself.
    #[track_caller]
    pub fn said_by_each(&self, name: &str) -> [String; 2] {
        [Role::Server, Role::Agent(name.to_owned())].map(|meant| {
            let said = self.processes.iter().filter(|(role, _)| *role == meant);
            said.map(|(_, running)| running.stdout() + &running.stderr()).collect()
        })
    }

    /// The state folder of an agent.
    pub fn agent_home(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("agent-{name}"))
    }

    /// The file with a token for agents, made when it is asked for first.
    #[track_caller]
    fn agent_token(&self) -> PathBuf {
        let path = self.dir.path().join("agent-token");
        if !path.exists() {
            let made = self.http().post("/v1/tokens", &json!({ "name": "agents", "role": "agent" }));
            assert!(made.status < 300, "{}", made.status);
            let made = made.json();
            fs::write(&path, made["secret"].as_str().expect("a secret")).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        }
        path
    }

    /// Fails the test if a process that should run has ended.
    #[track_caller]
    fn check_alive(&mut self) {
        for (role, running) in &mut self.processes {
            assert!(running.is_alive(), "{role:?} ended: {}", running.stderr());
        }
    }

    /// The process of an agent.
    #[track_caller]
    pub fn agent_pid(&self, name: &str) -> u32 {
        self.pid_of(&Role::Agent(name.to_owned()))
    }

    /// The process of `holm up`.
    #[track_caller]
    pub fn up_pid(&self) -> u32 {
        self.pid_of(&Role::Up)
    }

    #[track_caller]
    fn pid_of(&self, wanted: &Role) -> u32 {
        let found = self.processes.iter().find(|(role, _)| role == wanted);
        found.map(|(_, running)| running.pid()).unwrap_or_else(|| panic!("{wanted:?} does not run"))
    }

    /// Kills an agent with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill_agent(&mut self, name: &str) {
        self.end(&Role::Agent(name.to_owned()), Signal::KILL).exits(137);
    }

    /// Asks an agent to end and waits until it has: what ended before is removed.
    #[track_caller]
    pub fn stop_agent(&mut self, name: &str) -> Ran {
        self.end(&Role::Agent(name.to_owned()), Signal::TERM).exits(0)
    }

    /// Asks the server to end and waits until it has.
    #[track_caller]
    pub fn stop_server(&mut self) -> Ran {
        self.end(&Role::Server, Signal::TERM).exits(0)
    }

    /// Asks the server to end and does not wait for it.
    #[track_caller]
    pub fn leaving_server(&mut self) -> Running {
        let running = self.taken(&Role::Server);
        running.signal(Signal::TERM);
        running
    }

    /// Waits until an agent was killed with SIGKILL by somebody else.
    #[track_caller]
    pub fn agent_is_killed(&mut self, name: &str) {
        self.taken(&Role::Agent(name.to_owned())).wait_alone().exits(137);
    }

    /// Kills the server with SIGKILL and waits until it is gone; agents go on.
    #[track_caller]
    pub fn kill_server(&mut self) {
        self.end(&Role::Server, Signal::KILL).exits(137);
    }

    /// Kills `holm up` with SIGKILL and waits until it is gone.
    #[track_caller]
    pub fn kill_up(&mut self) {
        self.end(&Role::Up, Signal::KILL).exits(137);
    }

    /// Asks `holm up` to end and waits until it has.
    #[track_caller]
    pub fn stop_up(&mut self) -> Ran {
        self.end(&Role::Up, Signal::TERM)
    }

    #[track_caller]
    fn end(&mut self, wanted: &Role, signal: Signal) -> Ran {
        let running = self.taken(wanted);
        running.signal(signal);
        running.wait_alone()
    }

    #[track_caller]
    fn taken(&mut self, wanted: &Role) -> Running {
        let index = self.processes.iter().position(|(role, _)| role == wanted);
        let index = index.unwrap_or_else(|| panic!("{wanted:?} does not run"));
        self.processes.remove(index).1
    }

    #[track_caller]
    fn start(&mut self, role: Role, command: &mut Command) {
        self.processes.push((role, Running::start(command)));
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let http = self.http();
            let ready = http.token.is_some()
                && http.try_send("GET", "/readyz", &[], b"").is_ok_and(|answer| answer.status == 200);
            if ready {
                return;
            }
            self.check_alive();
            assert!(Instant::now() < deadline, "no answer on {}", http.socket.display());
            std::thread::sleep(POLL);
        }
    }

    /// A run as the API shows it.
    #[track_caller]
    pub fn show(&self, run: &str) -> Value {
        self.http().get(&format!("/v1/runs/{run}")).is(200).json()
    }

    /// Waits until the run is in that state.
    #[track_caller]
    pub fn until_state(&self, run: &str, state: &str) -> Value {
        eventually(&format!("{run} is {state}"), || {
            let view = self.show(run);
            assert!(state == "ended" || view["state"] != "ended", "{run} ended before it was {state}: {view}");
            (view["state"] == state).then_some(view)
        })
    }

    /// Waits for the end of the run.
    #[track_caller]
    pub fn until_ended(&self, run: &str) -> Value {
        self.until_state(run, "ended")
    }

    /// The events of a run, oldest first.
    #[track_caller]
    pub fn events(&self, run: &str) -> Vec<Value> {
        let page = self.http().get(&format!("/v1/runs/{run}/events?limit=10000")).is(200).json();
        page["events"].as_array().expect("a list of events").clone()
    }

    /// The events of a run of one kind.
    #[track_caller]
    pub fn events_of(&self, run: &str, kind: &str) -> Vec<Value> {
        self.events(run).into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// The output of a run, as the command line prints it.
    #[track_caller]
    pub fn logs(&self, run: &str) -> Ran {
        self.holm(["logs", run]).succeeds()
    }

    /// The newest run.
    #[track_caller]
    pub fn newest(&self) -> String {
        let page = self.http().get("/v1/runs?limit=1").is(200).json();
        page["runs"][0]["id"].as_str().expect("there is a run").to_owned()
    }

    /// By what the traces of this world are known.
    pub fn marks(&self) -> Marks {
        Marks { dir: self.dir.path().to_path_buf(), runs: self.runs.clone(), disks: self.disks.clone() }
    }

    /// The ids of all runs, from page to page.
    #[track_caller]
    pub fn all_runs(&self) -> Vec<Value> {
        let mut runs = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.http().get(&format!("/v1/runs?limit=200{cursor}")).is(200).json();
            runs.extend(page["runs"].as_array().expect("a list of runs").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return runs,
            }
        }
    }

    /// Ends what still runs, then every process, then looks for what is left.
    #[track_caller]
    fn conclude(&mut self) {
        if !self.processes.is_empty() {
            let runs = self.all_runs();
            let id = |run: &Value| run["id"].as_str().unwrap_or_default().to_owned();
            self.runs.extend(runs.iter().map(id));
            for run in runs.iter().filter(|run| run["state"] != "ended").map(id) {
                let answer = self.http().post(&format!("/v1/runs/{run}/cancel"), &json!({ "kill": true }));
                assert!(answer.status < 300, "cancel {run}: {}", String::from_utf8_lossy(&answer.body));
                self.until_ended(&run);
            }
        }
        // Runs that have ended are still being cleaned up; what that leaves is what counts.
        let marks = self.marks();
        let own: Vec<u32> = self.processes.iter().map(|(_, running)| running.pid()).collect();
        let mut left = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            left = marks.find();
            left.retain(|line| !own.iter().any(|pid| line.starts_with(&format!("process {pid}:"))));
            if left.is_empty() {
                break;
            }
            std::thread::sleep(POLL);
        }
        while let Some((role, running)) = self.processes.pop() {
            running.signal(Signal::CONT);
            running.signal(Signal::TERM);
            let ran = running.wait_alone();
            assert_eq!(ran.code, 0, "{role:?} did not end as it should: {ran}");
        }
        assert!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        let left = marks.find();
        assert!(left.is_empty(), "left on the host after the end:\n{}", left.join("\n"));
    }

    /// Whatever became of the test: a folder with a mount cannot be removed.
    fn unmount(&mut self) {
        for disk in self.disks.drain(..) {
            let done = Command::new("umount").arg("--lazy").arg(&disk).status();
            assert!(done.is_ok_and(|it| it.success()) || std::thread::panicking(), "cannot unmount {}", disk.display());
        }
    }

    /// After a failure: what became of the runs.
    fn tell_runs(&self) {
        let listed = self.command().args(["ps", "--all", "--json"]).output();
        let told =
            listed.map_or_else(|error| error.to_string(), |ran| String::from_utf8_lossy(&ran.stdout).into_owned());
        std::io::Write::write_all(&mut std::io::stderr(), format!("Runs:\n{told}\n").as_bytes()).unwrap_or_default();
    }

    /// After a failure: ends everything of this world by its id, without a word.
    fn sweep(&mut self) {
        for (role, running) in &self.processes {
            let said = running.stderr();
            let tail: Vec<&str> = said.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            std::io::Write::write_all(&mut std::io::stderr(), format!("{role:?}:\n{}\n", tail.join("\n")).as_bytes())
                .unwrap_or_default();
        }
        self.processes.clear();
        for pid in self.marks().processes() {
            let children: Vec<u32> =
                host::processes().into_iter().filter(|child| host::parent(*child) == Some(pid)).collect();
            send(pid, Signal::KILL);
            children.into_iter().for_each(|child| send(child, Signal::KILL));
        }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_runs();
            self.sweep();
            self.unmount();
            return;
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.conclude()));
        self.unmount();
        if let Err(panic) = result {
            self.sweep();
            std::panic::resume_unwind(panic);
        }
        drop(std::mem::replace(&mut self.store, Store::Sqlite));
    }
}

/// The binary under test: `HOLM_BIN`, or what cargo built beside these tests.
#[track_caller]
fn built_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("HOLM_BIN") {
        return PathBuf::from(path);
    }
    let own = std::env::current_exe().expect("a program knows its own file");
    let path = own.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("holm");
    assert!(path.is_file(), "{} is not there: `cargo build --package holm` makes it", path.display());
    path
}

/// A second name where the file system and the rights allow it, a copy otherwise.
#[track_caller]
fn bring(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
    }
}
