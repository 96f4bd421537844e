//! Keys and tokens: rotation without downtime, withdrawal within a second, the root key that servers share; hosts that enrol
//! with a join token and speak with keys of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_e2e::{Running, World, eventually, http::Http};
use serde_json::{Value, json};

/// An agent of the tests' own, which executes nothing.
pub struct Speaker {
    http: Http,
    agent: &'static str,
    instance: &'static str,
}

/// A lease as the agent was told of it.
#[derive(Clone)]
pub struct Granted {
    pub run: String,
    pub fence: u64,
    pub token: String,
}

impl Speaker {
    /// One that has registered with that token.
    pub fn register(http: &Http, token: &str) -> Self {
        let this = Self {
            http: http.with_token(Some(token)),
            agent: "agt_0000000000000000000000000a",
            instance: "ins_0000000000000000000000000b",
        };
        let runtime = json!({"name": "process", "capabilities": ["root.host"], "unenforced": []});
        let body = json!({
            "agent": this.agent, "instance": this.instance, "name": "speaker", "version": "0.1.0",
            "capacity": free(), "runtimes": [runtime], "labels": {},
        });
        this.http.post("/agent/v1/register", &body).is(200);
        this
    }

    /// Claims the oldest run of the queue.
    pub fn claim(&self) -> Granted {
        let body = json!({
            "agent": self.agent, "instance": self.instance, "wait_ms": 10_000, "claims_max": 1, "free": free(), "held": [],
        });
        let polled = self.http.post("/agent/v1/poll", &body).is(200).json();
        let claimed = &polled["claimed"][0];
        let text = |name: &str| claimed[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned();
        Granted { run: text("run"), fence: claimed["fence"].as_u64().expect("a fence"), token: text("run_token") }
    }

    /// Renews a lease; returns the run token that comes with it.
    pub fn renew(&self, granted: &Granted) -> String {
        let lease = json!({"run": granted.run, "fence": granted.fence});
        let body = json!({"agent": self.agent, "instance": self.instance, "leases": [lease]});
        let renewed = self.http.post("/agent/v1/renew", &body).is(200).json();
        renewed["leases"][0]["run_token"].as_str().expect("a run token").to_owned()
    }

    /// Says that the run has ended well.
    pub fn finish(&self, granted: &Granted) {
        let outcome = json!({"kind": "succeeded", "exit": {"code": 0}, "reason": null, "message": null});
        let body = json!({
            "agent": self.agent, "instance": self.instance, "fence": granted.fence, "outcome": outcome, "next_log_seq": 1,
        });
        self.http.post(&format!("/agent/v1/runs/{}/finish", granted.run), &body).is(204);
    }
}

fn free() -> Value {
    json!({"runs": 4, "cpus_milli": 1_000, "memory_bytes": 1_u64 << 40})
}

/// Submits a run that nobody executes.
pub fn submit(http: &Http) -> String {
    let spec = json!({"root": {"kind": "host"}, "argv": ["true"]});
    let run = http.post("/v1/runs", &json!({ "spec": spec })).is(201).json();
    run["id"].as_str().expect("an id").to_owned()
}

/// The key that signed a token.
fn kid(token: &str) -> String {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).expect("a header");
    let header: Value = serde_json::from_slice(&header).expect("a header");
    header["kid"].as_str().expect("a key id").to_owned()
}

/// The keys that a server publishes.
fn published(http: &Http) -> Vec<String> {
    let set = http.with_token(None).get("/.well-known/jwks.json").is(200).json();
    let keys = set["keys"].as_array().expect("keys").iter();
    keys.map(|key| key["kid"].as_str().expect("a key id").to_owned()).collect()
}

fn works(http: &Http, token: &str) -> bool {
    http.with_token(Some(token)).get("/v1/run-token").status == 200
}

fn is_postgres() -> bool {
    std::env::var("HOLM_TEST_STORE").is_ok_and(|store| store == "postgres")
}

/// Another server on the database of the world under a home of its own, with the root key of the first.
fn another_server(world: &World) -> (Running, Http) {
    let (home, socket) = (world.folder("another"), world.dir().join("another.sock"));
    set_private(&home);
    let listen = format!("unix:{}", socket.display());
    let refused = world.holm_in(&home, ["server", "--listen", &listen]).exits(1);
    refused.complains_of(&["there is no root key", "copy the file `root-key`"]);
    fs::copy(world.home().join("root-key"), home.join("root-key")).expect("a copy");
    let mut command = world.command();
    let server = Running::start(command.env("HOLM_HOME", &home).args(["server", "--listen", &listen]));
    let http = Http { socket, token: world.http().token };
    eventually("the other server answers", || {
        http.try_send("GET", "/readyz", &[], b"").ok().filter(|answer| answer.status == 200)
    });
    (server, http)
}

fn set_private(home: &Path) {
    fs::set_permissions(home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("a mode");
}

/// SPEC K1: tokens from before keep working, new ones bear the new key id, a withdrawn key stops within a second.
#[test]
fn rotation_harms_no_token_and_withdrawal_stops_a_key_within_a_second() {
    let world = World::with_server();
    let here = world.http();
    let other = is_postgres().then(|| another_server(&world));
    let servers: Vec<&Http> = [&here].into_iter().chain(other.as_ref().map(|(_, http)| http)).collect();
    let made = here.post("/v1/tokens", &json!({"name": "speaker", "role": "agent"})).is(201).json();
    let speaker = Speaker::register(&here, made["secret"].as_str().expect("a secret"));

    submit(&here);
    let before = speaker.claim();
    let view = here.with_token(Some(&before.token)).get("/v1/run-token").is(200).json();
    assert_eq!((&view["run"], &view["fence"]), (&json!(before.run), &json!(before.fence)));

    // Each server knows the keys of before, and none waits until it reads them anew.
    assert!(servers.iter().all(|server| works(server, &before.token)));
    let rotated = world.holm(["keys", "rotate"]).succeeds().text().trim().to_owned();
    let after = speaker.renew(&before);
    submit(&here);
    let fresh = speaker.claim();
    let old = kid(&before.token);
    assert!(old != rotated && kid(&after) == rotated && kid(&fresh.token) == rotated, "{old}, {rotated}");
    for server in &servers {
        for token in [&before.token, &after, &fresh.token] {
            assert!(works(server, token), "on {}", server.socket.display());
        }
        eventually("both keys are published", || (published(server) == [rotated.clone(), old.clone()]).then_some(()));
    }
    let listed = world.holm(["keys", "ls"]).succeeds().text().to_owned();
    assert!(listed.contains("signing") && listed.contains("verifying until"), "{listed}");
    world.holm(["keys", "rotate", "--envelope"]).succeeds();
    assert_eq!(kid(&speaker.renew(&fresh)), rotated, "sealing anew changes no signing key");

    world.holm(["keys", "withdraw", &old]).succeeds();
    let withdrawn = Instant::now();
    assert!(!works(&here, &before.token), "the server that withdrew it refuses at once");
    while let Some(late) = servers.iter().find(|server| works(server, &before.token)) {
        assert!(withdrawn.elapsed() < Duration::from_secs(1), "{} still takes it", late.socket.display());
    }
    for server in &servers {
        assert!(works(server, &after) && works(server, &fresh.token), "the other key is not touched");
        assert_eq!(published(server), std::slice::from_ref(&rotated));
        let refused = server.with_token(Some(&before.token)).get("/v1/run-token").is_problem(401, "unauthenticated");
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("withdrawn")), "{refused}");
    }
    speaker.finish(&before);
    speaker.finish(&fresh);
    here.with_token(Some(&fresh.token)).get("/v1/run-token").is_problem(409, "conflict");
}

/// A server that begins with another root key than the one that sealed the keys of the database.
#[test]
fn a_server_without_the_root_key_of_its_database_does_not_start() {
    let mut world = World::with_server();
    let root_key = world.home().join("root-key");
    let kept = fs::read(&root_key).expect("a root key");
    world.kill_server();
    let mode: fs::Permissions = fs::metadata(&root_key).expect("a file").permissions();
    assert_eq!((kept.len(), std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777), (32, 0o600));
    let start = ["server", "--listen", "127.0.0.1:0"];
    fs::remove_file(&root_key).expect("removed");
    world.holm(start).exits(1).complains_of(&["there is no root key", "copy the file `root-key`"]);
    assert!(!root_key.exists(), "nothing was made anew");
    let wrong: Vec<u8> = kept.iter().map(|byte| !byte).collect();
    fs::write(&root_key, &wrong).expect("written");
    world.holm(start).exits(1).complains_of(&["chmod 600"]);
    fs::set_permissions(&root_key, mode).expect("a mode");
    world.holm(start).exits(1).complains_of(&["does not open the keys", "copy the file `root-key`"]);
    assert_eq!(fs::read(&root_key).expect("a root key"), wrong, "nothing was made anew");
    let named = world.dir().join("elsewhere");
    fs::rename(&root_key, &named).expect("moved");
    fs::write(&named, &kept).expect("written");
    world.start_server_with(&["--root-key-file", &named.display().to_string()]);
    assert_eq!(published(&world.http()).len(), 1);
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("a file").permissions()) & 0o7777
}

/// The host of that name, as the API shows it.
fn host(world: &World, name: &str) -> Value {
    let hosts = world.http().get("/v1/hosts").is(200).json();
    let found = hosts["hosts"].as_array().into_iter().flatten().find(|host| host["name"] == name).cloned();
    found.unwrap_or_else(|| panic!("no host {name}: {hosts}"))
}

/// Waits until an agent has ended by itself.
fn ended(world: &mut World, name: &str) -> holm_e2e::Ran {
    eventually(&format!("agent {name} ends"), || world.agent_ended(name))
}

/// SPEC K2: agents authenticate with their own identity.
#[test]
fn a_host_joins_once_and_speaks_with_its_own_key_until_that_is_revoked() {
    let mut world = World::with_short_leases();
    let token = world.join_token("isle");
    world.start_joining_agent("isle", &token);
    world.run(["--quiet", "echo", "first"]).succeeds();
    let isle = host(&world, "isle");
    assert_eq!(isle["identity"]["with"], "key", "{isle}");
    let key = world.agent_home("isle").join("agent/key");
    assert_eq!(mode(&key), 0o600);
    let listed = world.holm(["hosts", "joins"]).succeeds().text().to_owned();
    assert!(listed.contains("enrolled agt_"), "{listed}");

    // Another host that got hold of the token.
    world.launch_joining_agent("twin", &token, &[]);
    let refused = ended(&mut world, "twin");
    refused.exits(77).complains_of(&["has enrolled agt_", "join_token_used", "holm hosts join"]);

    world.stop_agent("isle");
    fs::remove_file(&token).expect("removed");
    world.start_joining_agent("isle", &token);
    world.run(["--quiet", "echo", "with the key alone"]).succeeds();
    world.stop_agent("isle");
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("a mode");
    world.launch_joining_agent("isle", &token, &[]);
    ended(&mut world, "isle").exits(1).complains_of(&["mode 0644", "chmod 600"]);
    let doctor = world.holm_in(&world.agent_home("isle"), ["doctor"]);
    assert!(doctor.text().contains("chmod 600"), "{doctor}");
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    world.start_joining_agent("isle", &token);

    let run = world.detach(["sh", "-c", "echo begun; sleep 4; echo over"]);
    world.until_state(&run, "running");
    world.holm(["hosts", "revoke", "isle"]).succeeds();
    ended(&mut world, "isle").exits(77).complains_of(&["was revoked", "holm hosts join"]);
    assert!(world.holm(["hosts"]).succeeds().text().contains("key revoked"));
    world.launch_joining_agent("isle", &token, &[]);
    ended(&mut world, "isle").exits(77).complains_of(&["was revoked"]);
    world.start_agent("other");
    let over = world.until_ended(&run);
    assert_eq!((&over["fence"], &over["outcome"]["kind"]), (&json!(2), &json!("succeeded")), "{over}");

    // Neither does the key of before join again, under whichever token.
    let enrolled = world.agent_home("isle").join("agent/enrolled");
    fs::remove_file(&enrolled).expect("removed");
    let fresh = world.join_token("isle-again");
    world.launch_joining_agent("isle", &fresh, &[]);
    ended(&mut world, "isle").exits(77).complains_of(&["was revoked"]);
    assert!(!enrolled.exists());
    fs::remove_file(&key).expect("removed");
    world.start_joining_agent("isle", &fresh);
    let again = host(&world, "isle");
    assert_eq!(
        (&again["id"], &again["identity"]["revoked_at"]),
        (&isle["id"], &Value::Null),
        "the same host, another key"
    );
    assert_ne!(again["identity"]["key"], isle["identity"]["key"]);
    world.run(["--quiet", "echo", "once more"]).succeeds();
}

/// A session is signed by a server: without its key another one is given, and what runs goes on.
#[test]
fn an_agent_recovers_by_itself_from_a_withdrawn_signing_key_and_a_restart_of_the_server() {
    let mut world = World::with_short_leases();
    let token = world.join_token("isle");
    world.start_joining_agent("isle", &token);
    let run = world.detach(["sh", "-c", "sleep 8; echo over"]);
    world.until_state(&run, "running");
    let signs = published(&world.http()).remove(0);
    world.holm(["keys", "withdraw", &signs]).succeeds();
    world.run(["--quiet", "echo", "with another session"]).succeeds();
    world.kill_server();
    world.start_server();
    world.run(["--quiet", "echo", "at another server"]).succeeds();
    let over = world.until_ended(&run);
    assert_eq!(
        (&over["fence"], &over["outcome"]["kind"]),
        (&json!(1), &json!("succeeded")),
        "its lease never ended: {over}"
    );
}

/// The steps of an enrolment, as the code names them. An agent with a token does none of them.
pub const STEPS_OF_ENROLMENT: [&str; 4] = ["agent.key", KEY_SETTLED, "agent.enrol", "agent.enrolled"];
/// The one that only an agent does which finds a key of before, and no enrolment.
const KEY_SETTLED: &str = "agent.key_settled";

/// Whoever dies where, the host is enrolled once, with the key that is in its folder.
#[test]
fn an_agent_that_dies_while_it_enrols_goes_on_where_it_was() {
    let mut world = World::with_server();
    let dir = world.folder("crash");
    let points = STEPS_OF_ENROLMENT.iter().flat_map(|step| ["before", "after"].map(|side| format!("{side} {step}")));
    // With the token of before, or with another: whoever mends it may not know which was used.
    let ways = points.flat_map(|point| [false, true].map(|is_another| (point.clone(), is_another)));
    for (number, (point, is_another)) in ways.enumerate() {
        let (name, armed) = (format!("isle-{number}"), dir.join(format!("armed-{number}")));
        let token = world.join_token(&name);
        let before = point.ends_with(KEY_SETTLED).then_some("after agent.key");
        for point in before.into_iter().chain([point.as_str()]) {
            fs::write(&armed, "").expect("a file");
            let variables = [("HOLM_CRASH_AT", PathBuf::from(point)), ("HOLM_CRASH_ARMED", armed.clone())];
            world.launch_joining_agent(&name, &token, &variables);
            world.agent_is_killed(&name);
        }
        let token = if is_another { world.join_token(&format!("{name}-again")) } else { token };
        world.start_joining_agent(&name, &token);
        let known = host(&world, &name);
        assert_eq!(known["identity"]["with"], "key", "{point}: {known}");
        let agent = world.agent_home(&name).join("agent");
        let left: Vec<PathBuf> = fs::read_dir(&agent).expect("a folder").flatten().map(|entry| entry.path()).collect();
        assert!(left.iter().all(|path| path.extension().is_none_or(|it| it != "draft")), "{point}: {left:?}");
        world.run(["--quiet", "echo", &point]).succeeds();
        world.stop_agent(&name);
    }
    let joins = world.http().get("/v1/hosts/joins").is(200).json();
    let used = joins["joins"].as_array().into_iter().flatten().filter(|join| join["used_at"].is_i64()).count();
    assert_eq!(used, 4 * STEPS_OF_ENROLMENT.len(), "one a host: {joins}");
}
