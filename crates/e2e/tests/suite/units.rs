//! The units of systemd in `packaging`: what they start, in folders of the test in the place of those of the machine.

use std::{fs, path::PathBuf};

use holm_e2e::{Running, World, eventually};
use rustix::process::Signal;
use serde_json::Value;

/// What a unit has under a name, with the folders of the test in the place of the machine's.
fn told(world: &World, unit: &str, name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd").join(unit);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let values: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect();
    let [value] = values[..] else { panic!("{unit} has {} times {name}", values.len()) };
    let place = |of: &str| world.dir().join(of).display().to_string();
    value.replace("/etc/holm", &place("etc")).replace("/var/lib", &place("lib"))
}

/// What a unit starts, without the program.
fn starts(world: &World, unit: &str) -> Vec<String> {
    let line = told(world, unit, "ExecStart");
    let mut words = line.split(' ').map(str::to_owned);
    assert_eq!(words.next().as_deref(), Some("/usr/local/bin/holm"), "{unit}");
    words.collect()
}

#[test]
fn the_units_start_a_server_and_an_agent_that_executes_runs() {
    let world = World::new();
    let (etc, lib) = (world.folder("etc"), world.folder("lib"));
    let url = format!("unix:{}", lib.join("server.sock").display());
    fs::write(etc.join("config.toml"), format!("[server]\nlisten = \"{url}\"\n")).expect("a file");
    let server = Running::start(world.command().args(starts(&world, "holm-server.service")));
    let token = lib.join("holm/token");
    eventually("the server writes the admin's token", || token.exists().then_some(()));
    let admin = ["--server".to_owned(), url.clone(), "--token-file".to_owned(), token.display().to_string()];
    let holm = |arguments: &[&str]| world.holm(admin.iter().map(String::as_str).chain(arguments.iter().copied()));
    let made = eventually("the server answers", || {
        let made = holm(&["hosts", "join", "isle"]);
        (made.code == 0).then(|| made.word())
    });
    let join_token = etc.join("join-token");
    let variables = format!("HOLM_SERVER={url}\nHOLM_JOIN_TOKEN_FILE={}\n", join_token.display());
    fs::write(&join_token, made).expect("a file");
    fs::write(told(&world, "holm-agent.service", "EnvironmentFile"), variables).expect("a file");
    let environment = fs::read_to_string(etc.join("agent.env")).expect("a file");
    let start_agent = || {
        let mut command = world.command();
        let variables = environment.lines().filter_map(|line| line.split_once('='));
        command.args(starts(&world, "holm-agent.service")).envs(variables);
        command
    };
    let agent = Running::start(&mut start_agent());
    assert_eq!(holm(&["run", "--quiet", "--", "echo", "served"]).succeeds().text(), "served\n");
    assert_eq!(told(&world, "holm-agent.service", "KillMode"), "process", "else a restart would kill all runs");
    agent.signal(Signal::TERM);
    agent.wait_alone().exits(0);
    // Systemd is told of the code with which an agent ends that would end alike if it were started anew.
    let hosts: Value = serde_json::from_str(holm(&["hosts", "--json"]).succeeds().text()).expect("JSON");
    let id = hosts[0]["id"].as_str().expect("a host");
    let for_good: i32 = told(&world, "holm-agent.service", "RestartPreventExitStatus").parse().expect("a number");
    holm(&["hosts", "revoke", id]).succeeds();
    Running::start(&mut start_agent()).wait_alone().exits(for_good);
    fs::remove_file(lib.join("holm-agent/agent/enrolled")).expect("removed");
    fs::remove_file(lib.join("holm-agent/agent/key")).expect("removed");
    let ended = Running::start(&mut start_agent()).wait_alone();
    ended.exits(for_good).complains_of(&["join_token_used"]);
    server.signal(Signal::TERM);
    server.wait_alone().exits(0);
    assert!(!lib.join("server.sock").exists(), "whoever waits for the next server waits for its socket");
}
