//! Precedence, and what is refused.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;
use file::{Change, change};

const TOKEN_A: &str = "holm_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const TOKEN_B: &str = "holm_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), text).unwrap();
        fs::write(dir.path().join("token-b"), format!("{TOKEN_B}\n")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn global(&self) -> Global {
        Global { config: Some(self.path("config.toml")), home: Some(self.path("home")), ..Global::default() }
    }
}

const FILE: &str = r#"
# where I work
context = "work"
[contexts.work]
server = "https://work.example"
token = "holm_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
project = "alpha"
[contexts.lab]
server = "http://lab.example:7878/"
token_file = "token-b"
"#;

fn named(config: &Config) -> (String, String, Source) {
    match config.target().unwrap() {
        Target::Named { endpoint, token } => {
            (endpoint.to_string(), token.value.expose_secret().to_owned(), token.source)
        }
        Target::Local => panic!("a server was named"),
    }
}

fn refusal(config: &Config) -> String {
    format!("{:#}", config.target().unwrap_err())
}

#[test]
fn the_file_says_where_nobody_else_does() {
    let world = World::new(FILE);
    let config = Config::load(&world.global(), &Environment::default()).unwrap();
    let (server, token, source) = named(&config);
    assert_eq!((server.as_str(), token.as_str()), ("https://work.example", TOKEN_A));
    assert_eq!(source, Source::File(world.path("config.toml"), "contexts.work.token".into()));
    assert_eq!(config.project.unwrap().value, "alpha");
}

#[test]
fn the_environment_wins_over_the_file() {
    let world = World::new(FILE);
    let env = Environment::from([("HOLM_CONTEXT", "lab"), ("HOLM_PROJECT", "beta")]);
    let config = Config::load(&world.global(), &env).unwrap();
    assert_eq!(named(&config).0, "http://lab.example:7878");
    assert_eq!(named(&config).1, TOKEN_B);
    assert_eq!(config.project.unwrap().value, "beta");
    let env = Environment::from([("HOLM_SERVER", "http://else.example"), ("HOLM_TOKEN", TOKEN_B)]);
    let config = Config::load(&world.global(), &env).unwrap();
    assert_eq!(named(&config).0, "http://else.example");
    assert!(config.project.is_none(), "the project of a context belongs to its server");
}

#[test]
fn flags_win_over_the_environment() {
    let world = World::new(FILE);
    let env = Environment::from([("HOLM_SERVER", "http://else.example"), ("HOLM_TOKEN", TOKEN_B)]);
    let global = Global { context: Some("work".into()), ..world.global() };
    let config = Config::load(&global, &env).unwrap();
    let (server, token, _) = named(&config);
    assert_eq!((server.as_str(), token.as_str()), ("https://work.example", TOKEN_A));
    let global = Global { server: Some("http://third.example".into()), ..world.global() };
    assert_eq!(named(&Config::load(&global, &env).unwrap()).0, "http://third.example");
    let global = Global { token_file: Some(world.path("token-b")), ..world.global() };
    let config = Config::load(&global, &Environment::from([("HOLM_TOKEN", TOKEN_A)])).unwrap();
    assert_eq!(named(&config).1, TOKEN_B);
}

#[test]
fn a_token_goes_only_to_the_server_it_was_given_for() {
    let world = World::new(FILE);
    let global = Global { server: Some("https://evil.example".into()), ..world.global() };
    let config = Config::load(&global, &Environment::default()).unwrap();
    assert!(refusal(&config).contains("no token for https://evil.example"), "{}", refusal(&config));
    let global = Global { server: Some("http://lab.example:7878".into()), ..world.global() };
    assert_eq!(named(&Config::load(&global, &Environment::default()).unwrap()).1, TOKEN_B);
}

#[test]
fn nothing_named_means_this_machine() {
    let world = World::new("");
    let config = Config::load(&world.global(), &Environment::default()).unwrap();
    assert!(matches!(config.target().unwrap(), Target::Local));
    assert_eq!(config.home.value, world.path("home"));
    let world = World::new(FILE);
    let config = Config::load(&world.global(), &Environment::from([("HOLM_CONTEXT", "local")])).unwrap();
    assert!(matches!(config.target().unwrap(), Target::Local));
}

#[test]
fn refusals_name_where_and_what() {
    let world = World::new("contexts.x = { server = \"ftp://x\", token = \"changeme\" }\n");
    let global = Global { context: Some("y".into()), ..world.global() };
    let text = refusal(&Config::load(&global, &Environment::default()).unwrap());
    assert!(text.contains("--context") && text.contains("`y`") && text.contains("x, local"), "{text}");
    let global = Global { context: Some("x".into()), ..world.global() };
    let text = refusal(&Config::load(&global, &Environment::default()).unwrap());
    assert!(text.contains("contexts.x.server") && text.contains("ftp://x"), "{text}");
    let env = Environment::from([("HOLM_SERVER", "http://h"), ("HOLM_TOKEN", "changeme")]);
    let text = refusal(&Config::load(&world.global(), &env).unwrap());
    assert!(text.contains("HOLM_TOKEN") && !text.contains("changeme"), "{text}");
    let world = World::new("contextt = \"a\"\n");
    let text = format!("{:#}", Config::load(&world.global(), &Environment::default()).unwrap_err());
    assert!(text.contains("config.toml") && text.contains("contextt") && text.contains("line 1"), "{text}");
}

#[test]
fn variables_that_are_typing_errors_are_seen() {
    let env = Environment::from([("HOLM_SEVRER", "x"), ("HOLM_SERVER", "x"), ("HOME", "/")]);
    assert_eq!(env.unknown().collect::<Vec<_>>(), ["HOLM_SEVRER"]);
}

#[test]
fn changes_keep_comments_and_close_the_file_to_others() {
    let world = World::new(FILE);
    let path = world.path("config.toml");
    change(&path, &Change::Put { name: "new", server: "http://n.example", token: TOKEN_A }).unwrap();
    change(&path, &Change::Put { name: "lab", server: "http://lab2.example", token: TOKEN_A }).unwrap();
    change(&path, &Change::Remove("work")).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("# where I work") && !text.contains("work.example") && !text.contains("token-b"), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let config = Config::load(&world.global(), &Environment::default()).unwrap();
    assert_eq!(named(&config).0, "http://lab2.example");
    change(&path, &Change::Remove("lab")).unwrap();
    let config = Config::load(&world.global(), &Environment::default()).unwrap();
    assert!(matches!(config.target().unwrap(), Target::Local));
    let fresh = world.path("deep/config.toml");
    change(&fresh, &Change::Put { name: "a", server: "http://a.example", token: TOKEN_A }).unwrap();
    assert!(ConfigFile::load(&fresh).unwrap().contexts.contains_key("a"));
}

#[test]
fn data_settings_and_tokens_are_guarded() {
    let world = World::new(
        &FILE.replace("token = \"holm_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", "token_file = \"token-b\""),
    );
    let global = Global { token_file: Some("/etc/agent-token".into()), ..world.global() };
    let guarded = Config::load(&global, &Environment::default()).unwrap().guarded();
    for path in [world.path("home"), world.path("config.toml"), world.path("token-b"), "/etc/agent-token".into()] {
        assert!(guarded.contains(&path), "{} is not in {guarded:?}", path.display());
    }
    // The folder of the file only where it is Holm's own.
    assert!(!guarded.contains(&world.path("")) && !guarded.contains(&world.dir.path().to_owned()));
    let env = Environment::from([("HOME", "/home/u")]);
    let guarded = Config::load(&Global { home: Some("/h".into()), ..Global::default() }, &env).unwrap().guarded();
    assert!(guarded.contains(&"/home/u/.config/holm".into()), "{guarded:?}");
    for (told, path) in [
        ("blobs = \"s3://holm\"\nblobs_credentials = \"keys\"", "keys"),
        ("blobs = \"file:/srv/objects\"", "/srv/objects"),
    ] {
        let world = World::new(&format!("[server]\n{told}\n"));
        let guarded = Config::load(&world.global(), &Environment::default()).unwrap().guarded();
        assert!(guarded.contains(&world.path(path)), "{path} is not in {guarded:?}");
    }
}

#[test]
fn what_the_environment_has_for_others_is_warned_of_and_what_was_told_to_holm_is_refused() {
    let world = World::new("");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    let tracer = |global: &Global, env: &Environment| {
        let (config, mut warned) = (Config::load(global, env).unwrap(), Vec::new());
        let tracer = config.tracer(|problem| warned.push(problem));
        tracer.map(|tracer| (tracer.is_on(), warned)).map_err(|refused| refused.to_string())
    };
    let flagged = Global { otlp_endpoint: Some("http://127.0.0.1:4318".to_owned()), ..world.global() };
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4317"),
        ("OTEL_TRACES_EXPORTER", "console"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
    ] {
        let env = Environment::from([endpoint, (name, value)]);
        let (is_on, warned) = tracer(&world.global(), &env).unwrap();
        assert!(!is_on && warned.len() == 1 && warned[0].contains(name), "{name}: {warned:?}");
        if name != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" {
            assert!(!tracer(&flagged, &env).unwrap().0, "{name}");
        }
        let config = Config::load(&world.global(), &env).unwrap();
        let found = check::contradictions(&config, &env);
        assert!(found.iter().any(|found| found.at == name), "{name}: {found:?}");
    }
    let flagged = Global { otlp_endpoint: Some("nonsense".to_owned()), ..world.global() };
    assert!(tracer(&flagged, &Environment::default()).unwrap_err().contains("--otlp-endpoint"));
    let world = World::new("otlp_endpoint = \"nonsense\"");
    assert!(tracer(&world.global(), &Environment::default()).unwrap_err().contains("otlp_endpoint"));
}

#[test]
fn who_named_the_file_of_a_join_token_is_told_with_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let value = dir.path().join("join-token");
    let config = Source::File(PathBuf::from("/etc/holm/config.toml"), "agent.join_token_file".to_owned());
    for (source, named) in [
        (Source::Flag("--join-token-file"), "--join-token-file"),
        (Source::Env("HOLM_JOIN_TOKEN_FILE"), "HOLM_JOIN_TOKEN_FILE"),
        (config, "agent.join_token_file"),
    ] {
        let file = Setting { value: value.clone(), source };
        let told = || read_join_token(&file).unwrap_err();
        for (text, problem) in [(None, "cannot read"), (Some("holm_geheim"), "has no join token")] {
            match text {
                Some(text) => std::fs::write(&value, text).unwrap(),
                None => drop(std::fs::remove_file(&value)),
            }
            let told = told();
            let path = value.display().to_string();
            assert!([named, problem, &path, "holm hosts join"].iter().all(|part| told.contains(part)), "{told}");
            assert!(!told.contains("geheim"), "{told}");
        }
        std::fs::write(&value, format!("holm_join_{}\n", "g".repeat(43))).unwrap();
        assert!(read_join_token(&file).is_ok());
    }
}
