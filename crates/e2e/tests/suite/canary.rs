//! Where secrets must never be found: keys and tokens are looked for, in every form, in everything that Holm writes or says.
//!
//! The private halves of the signing keys are opened here with the root key, as whoever has a backup of both would.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use holm_e2e::{World, eventually, host, ran};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde_json::Value;

use super::identity::{Speaker, submit};

/// All rows of all tables, as text, and bytes as hexadecimal digits.
const DUMP_SQLITE: &str = "\
import sqlite3, sys
db = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True)
for (table,) in db.execute(\"select name from sqlite_schema where type = 'table'\").fetchall():
    for row in db.execute(f'select * from {table}'):
        print(table, *[v.hex() if isinstance(v, bytes) else v for v in row], sep='|')
";

/// Something that must not be found.
struct Secret {
    what: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    fn of_bytes(what: &'static str, bytes: &[u8]) -> Self {
        let forms = [
            hex(bytes),
            hex(bytes).to_uppercase(),
            STANDARD.encode(bytes),
            STANDARD_NO_PAD.encode(bytes),
            URL_SAFE_NO_PAD.encode(bytes),
            format!("{bytes:?}"),
        ];
        let forms = forms.into_iter().map(String::into_bytes).chain([bytes.to_vec()]).collect();
        Self { what, forms }
    }

    /// A token is recognised by its last part, which is its signature.
    fn of_token(what: &'static str, token: &str) -> Self {
        let last = token.rsplit('.').next().unwrap_or(token);
        Self { what, forms: vec![last.as_bytes().to_vec(), hex(last.as_bytes()).into_bytes()] }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes it");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.trim().trim_start_matches("\\x").as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).expect("digits")).collect()
}

/// The database that the configuration of the world names, if it is one of PostgreSQL.
fn postgres(world: &World) -> Option<String> {
    let config = fs::read_to_string(world.dir().join("config/holm/config.toml")).expect("a configuration");
    config.lines().find_map(|line| Some(line.strip_prefix("database = \"")?.trim_end_matches('"').to_owned()))
}

fn dump(world: &World) -> Vec<u8> {
    let mut command = match postgres(world) {
        Some(url) => {
            let mut command = Command::new("pg_dump");
            command.args(["--data-only", "--inserts", "--no-password", &url]);
            command
        }
        None => {
            let mut command = Command::new("python3");
            command.args(["-c", DUMP_SQLITE]).arg(world.home().join("server/holm.db"));
            command
        }
    };
    let dumped = command.output().expect("a dump");
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    assert!(dumped.stdout.windows(4).any(|part| part == b"key_"), "the dump has no keys");
    dumped.stdout
}

/// One value of the database.
fn asked(world: &World, query: &str) -> String {
    let mut command = match postgres(world) {
        Some(url) => {
            let mut command = Command::new("psql");
            command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", query, &url]);
            command
        }
        None => {
            let script = "import sqlite3, sys\nprint(*[v.hex() if isinstance(v, bytes) else v for v in \
                          sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()])";
            let mut command = Command::new("python3");
            command.args(["-c", script]).arg(world.home().join("server/holm.db")).arg(query);
            command
        }
    };
    ran::run(&mut command).succeeds().text().trim().to_owned()
}

fn opened(key: &[u8], place: &str, sealed: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key"));
    let nonce = Nonce::try_assume_unique_for_key(&sealed[1..13]).expect("a nonce");
    let mut text = sealed[13..].to_vec();
    key.open_in_place(nonce, Aad::from(place), &mut text).expect("it opens").to_vec()
}

/// The data key and the private half of the key that signs.
fn keys(world: &World, root: &[u8]) -> [Vec<u8>; 2] {
    let one =
        |column: &str, table: &str, is: &str| asked(world, &format!("select {column} from {table} where {is} = 1"));
    let envelope = format!("holm.envelope.{}", one("id", "envelope_keys", "seals"));
    let data = opened(root, &envelope, &unhex(&one("sealed", "envelope_keys", "seals")));
    let signing = format!("holm.signing-key.{}", one("id", "signing_keys", "signs"));
    let private = opened(&data, &signing, &unhex(&one("sealed", "signing_keys", "signs")));
    [data, private]
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry")) {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            files_below(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

fn look(at: &str, bytes: &[u8], secrets: &[Secret]) {
    // A character for each byte: the search of the standard library is the fast one here.
    let text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let all = text(bytes);
    for secret in secrets {
        for form in &secret.forms {
            assert!(!all.contains(&text(form)), "{} is in {at}, in the form of {} bytes", secret.what, form.len());
        }
    }
}

#[test]
fn no_key_no_secret_and_no_run_token_is_found_in_any_sink() {
    let mut world = World::new();
    world.launch_up(&[("HOLM_LOG", PathBuf::from("debug"))]);
    eventually("it answers", || world.http().try_send("GET", "/readyz", &[], b"").ok().filter(|it| it.status == 200));
    let root = fs::read(world.home().join("root-key")).expect("a root key");
    let http = world.http();
    let mut secrets = vec![Secret::of_bytes("the root key", &root)];
    let name = |what| move |bytes: Vec<u8>| Secret::of_bytes(what, &bytes);
    secrets.extend(keys(&world, &root).map(name("a key of the first start")));
    world.run(["true"]).succeeds();

    let host = http.get("/v1/hosts").is(200).json()["hosts"][0]["id"].as_str().expect("a host").to_owned();
    world.holm(["hosts", "cordon", &host]).succeeds();
    let agent = fs::read_to_string(world.home().join("agent-token")).expect("a token");
    let speaker = Speaker::register(&http, agent.trim());
    let admin = fs::read_to_string(world.home().join("token")).expect("a token");
    secrets.extend([&admin, &agent].map(|token| Secret::of_token("a token of this installation", token.trim())));
    let mut answers = Vec::new();
    for step in ["set", "rotate"] {
        let value = format!("geheim-4711-of-{step}");
        let arguments = ["secret", step, "token", "--for", "anywhere", "--from-env", "VALUE"];
        let kept = ran::run(world.command().env("VALUE", &value).args(arguments));
        answers.extend(kept.succeeds().text().as_bytes());
        secrets.push(Secret::of_bytes("a secret of an org", value.as_bytes()));
    }
    for step in [&["keys", "ls"][..], &["keys", "rotate"], &["keys", "rotate", "--envelope"], &["keys", "rotate"]] {
        answers.extend(world.holm(step).succeeds().text().as_bytes());
        submit(&http);
        let granted = speaker.claim();
        let renewed = speaker.renew(&granted);
        answers.extend(http.with_token(Some(&renewed)).get("/v1/run-token").is(200).body);
        http.with_token(Some(&format!("{renewed}x"))).get("/v1/run-token").is_problem(401, "unauthenticated");
        speaker.finish(&granted);
        secrets.extend([&granted.token, &renewed].map(|token| Secret::of_token("a run token", token)));
        secrets.extend(keys(&world, &root).map(name("a key of later")));
    }
    let signs = asked(&world, "select id from signing_keys where signs = 1");
    answers.extend(world.holm(["keys", "withdraw", &signs]).succeeds().text().as_bytes());
    secrets.extend(keys(&world, &root).map(name("a key after a withdrawal")));
    world.holm(["hosts", "uncordon", &host]).succeeds();
    world.run(["true"]).succeeds();

    for path in [
        "/.well-known/jwks.json",
        "/v1/keys",
        "/v1/runs",
        "/v1/hosts",
        "/v1/secrets",
        "/v1/tokens",
        "/v1/whoami",
        "/metrics",
    ] {
        let got = http.get(path).is(200);
        answers.extend(got.body);
        answers.extend(got.headers.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()].concat()));
    }
    let said = [world.up_says(), world.up_complains()].concat();
    assert!(
        said.contains("DEBUG") && said.contains("a new key signs") && said.contains("a secret was made"),
        "the log is not one of all there is to say"
    );
    look("what the server and the agent say", said.as_bytes(), &secrets);
    look("the answers of the API", &answers, &secrets);
    look("a dump of the database", &dump(&world), &secrets);
    let mut files = Vec::new();
    files_below(&world.home(), &mut files);
    let kept = ["root-key", "token", "agent-token"].map(|name| world.home().join(name));
    assert!(files.len() > 5 && kept.iter().all(|path| files.contains(path)), "{files:?}");
    for path in files.iter().filter(|path| !kept.contains(path)) {
        look(&path.display().to_string(), &fs::read(path).unwrap_or_default(), &secrets);
    }
    let runs: Value = http.get("/v1/runs").is(200).json();
    assert!(runs["runs"].as_array().is_some_and(|runs| runs.len() >= 6), "{runs}");
}

/// Looks at the files of an agent and at what each process was given, while it has a run; the files.
fn look_at_what_lives(home: &Path, secrets: &[Secret]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    files_below(home, &mut files);
    for path in files.iter().filter(|path| !path.ends_with("agent/key")) {
        look(&path.display().to_string(), &fs::read(path).unwrap_or_default(), secrets);
    }
    for pid in host::processes() {
        let given = [host::command_line(pid), host::environment(pid)].concat();
        look(&format!("what process {pid} was given"), given.as_bytes(), secrets);
    }
    files
}

/// What has passed a socket before that of the server, each way of each connection by itself.
#[derive(Clone, Default)]
struct Passed(Arc<Mutex<Vec<Vec<u8>>>>);

impl Passed {
    /// Keeps what passes the socket at `path` from now on.
    fn keep(path: &Path, server: PathBuf) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let this = Self::default();
        let kept = this.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(&server) else { continue };
                let both = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
                for (from, to) in [both, (server, client)] {
                    let kept = kept.clone();
                    thread::spawn(move || kept.pass(from, to));
                }
            }
        });
        this
    }

    fn pass(&self, mut from: UnixStream, mut to: UnixStream) {
        let mut piece = [0; 16 * 1024];
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = kept.len();
        kept.push(Vec::new());
        drop(kept);
        while let Ok(length @ 1..) = from.read(&mut piece) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)[number].extend_from_slice(&piece[..length]);
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        // Where the other end is gone already, there is nothing to be ended.
        let _gone = to.shutdown(std::net::Shutdown::Both);
    }

    /// Everything that looks like a signed token of this type.
    fn signed(&self, typ: &str) -> Vec<String> {
        let is_of = |token: &&str| {
            let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
            let header: Option<Value> = header.and_then(|header| serde_json::from_slice(&header).ok());
            header.is_some_and(|header| header["typ"] == typ)
        };
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).concat();
        let is_part = |byte: char| byte.is_ascii_alphanumeric() || "-_.".contains(byte);
        let text: String = all.iter().copied().map(char::from).collect();
        let mut found: Vec<String> = text.split(|byte| !is_part(byte)).filter(is_of).map(str::to_owned).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[test]
fn no_key_of_a_host_and_no_join_token_is_found_in_any_sink() {
    let mut world = World::with_config("", "");
    world.start_server_with(&["--log", "trace"]);
    let http = world.http();
    let token = world.join_token("isle");
    let wire = world.dir().join("wire.sock");
    let passed = Passed::keep(&wire, http.socket.clone());
    let server = PathBuf::from(format!("unix:{}", wire.display()));
    world.launch_joining_agent("isle", &token, &[("HOLM_LOG", PathBuf::from("trace")), ("HOLM_SERVER", server)]);
    world.run(["true"]).succeeds();
    // A session that is refused is replaced, and both say why.
    let signs = asked(&world, "select id from signing_keys where signs = 1");
    world.holm(["keys", "withdraw", &signs]).succeeds();
    world.run(["true"]).succeeds();
    let live = world.detach(["--", "sleep", "600"]);
    world.until_state(&live, "running");
    let home = world.agent_home("isle");
    let key = fs::read(home.join("agent/key")).expect("a key");
    let join = fs::read_to_string(&token).expect("a join token");
    let join = join.trim().trim_start_matches("holm_join_");
    assert_eq!((key.len(), join.len()), (64, 43));
    let mut secrets = vec![Secret::of_bytes("the private half of a host's key", &key[..32])];
    secrets.push(Secret::of_token("a join token", join));
    let (assertions, sessions) = (passed.signed("holm-host+jwt"), passed.signed("holm-session+jwt"));
    // What a host signs twice within a second is the same both times.
    assert!(!assertions.is_empty() && sessions.len() >= 2, "{} and {}", assertions.len(), sessions.len());
    let of_runs = passed.signed("holm-run+jwt");
    assert!(of_runs.len() >= 3, "{}", of_runs.len());
    secrets.extend(of_runs.iter().map(|token| Secret::of_token("a run token", token)));
    secrets.extend(assertions.iter().map(|token| Secret::of_token("what a host signed for a session", token)));
    secrets.extend(sessions.iter().map(|token| Secret::of_token("a session", token)));
    let lives = look_at_what_lives(&home, &secrets);
    assert!(lives.iter().any(|path| path.ends_with("journal.json")), "no run was there");
    world.holm(["cancel", "--kill", &live]).succeeds();
    world.until_ended(&live);

    let mut answers = Vec::new();
    // Each of these is refused, or was answered before: what says why may quote nothing of it.
    for (path, body) in [("/agent/v1/enrol", serde_json::json!({"agent": "x"})), ("/v1/runs", Value::Null)] {
        answers.extend(http.with_token(Some(&format!("holm_join_{join}"))).post(path, &body).body);
    }
    for token in [&sessions[0], &assertions[0], &format!("{}x", sessions[1])] {
        for path in ["/agent/v1/session", "/agent/v1/poll", "/v1/runs"] {
            answers.extend(http.with_token(Some(token)).post(path, &Value::Null).body);
        }
    }
    world.holm(["hosts", "revoke", "isle"]).succeeds();
    for arguments in [&["hosts"][..], &["hosts", "joins"], &["hosts", "joins", "--json"], &["hosts", "--json"]] {
        answers.extend(world.holm(arguments).succeeds().text().as_bytes());
    }
    for path in ["/v1/hosts", "/v1/hosts/joins", "/v1/tokens", "/metrics"] {
        answers.extend(http.get(path).is(200).body);
    }
    assert!(String::from_utf8_lossy(&answers).contains("key revoked"));
    let said = world.said_by_each("isle");
    // Nothing in the server has more to say than DEBUG; what an agent asks with has.
    for (who, said, finest, of_enrolment) in [
        ("the server", &said[0], " DEBUG ", "a host was enrolled"),
        ("the agent", &said[1], " TRACE ", "this host is enrolled"),
    ] {
        let is_all = said.contains(finest) && said.contains(of_enrolment);
        assert!(is_all, "the log of {who} is not one of all there is to say");
        look(&format!("what {who} says"), said.as_bytes(), &secrets);
    }
    look("the answers of the API", &answers, &secrets);
    look("a dump of the database", &dump(&world), &secrets);
    let mut files = Vec::new();
    files_below(&world.home(), &mut files);
    files_below(&home, &mut files);
    let kept = home.join("agent/key");
    assert!(files.contains(&kept) && files.contains(&home.join("agent/enrolled")), "{files:?}");
    for path in files.iter().filter(|path| **path != kept) {
        look(&path.display().to_string(), &fs::read(path).unwrap_or_default(), &secrets);
    }
    let ended = eventually("the agent ends", || world.agent_ended("isle"));
    ended.exits(77);
}
