//! Keys and run tokens: rotation without downtime, withdrawal within a second, the root key that servers share.

use std::{
    fs,
    path::Path,
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
