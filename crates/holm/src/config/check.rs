//! Finds contradictions in the settings, and services that cannot be reached.
//!
//! What always holds: each finding names where it is, what is there and the way out; no finding bears a secret.

use std::{net::SocketAddr, path::Path, time::Duration};

use holm_api::client::{Client, Endpoint};
use holm_domain::{limits::LeaseConfig, org_limits::OrgOverrides};
use holm_store::{BlobPlace, Expect};
use secrecy::ExposeSecret as _;
use serde::Serialize;

use super::{Config, Environment, LOCAL, Setting, Target, file, join_token_in};
use crate::{
    home::Home,
    local,
    lock::Served,
    output::told as shown,
    serve::{blobs::BlobsTold, server::log_retention},
    units,
};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It does not work.
    Error,
    /// It works, and is probably not what was meant.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file and key, the variable or the flag.
    pub at: String,
    /// What is there and why it is wrong.
    pub problem: String,
    /// What to do.
    pub way_out: String,
}

fn error(at: impl ToString, problem: impl Into<String>, way_out: impl Into<String>) -> Finding {
    Finding { severity: Severity::Error, at: at.to_string(), problem: problem.into(), way_out: way_out.into() }
}

fn warning(at: impl ToString, problem: impl Into<String>, way_out: impl Into<String>) -> Finding {
    Finding { severity: Severity::Warning, ..error(at, problem, way_out) }
}

/// What can be found without reaching for anything.
pub fn contradictions(config: &Config, env: &Environment) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in env.unknown() {
        let known = super::VARIABLES.join(", ");
        findings.push(warning(name, "no variable of this name is read", format!("unset it, or use one of {known}")));
    }
    for (one, other, wins) in
        [("HOLM_SERVER", "HOLM_CONTEXT", "HOLM_SERVER counts"), ("HOLM_TOKEN", "HOLM_TOKEN_FILE", "HOLM_TOKEN counts")]
    {
        if env.get(one).is_some() && env.get(other).is_some() {
            findings.push(warning(
                one,
                format!("{other} is set as well; {wins}"),
                format!("unset one of {one} and {other}"),
            ));
        }
    }
    let has_token = env.get("HOLM_TOKEN").or(env.get("HOLM_TOKEN_FILE")).is_some();
    match config.target() {
        Ok(Target::Local) if has_token => findings.push(warning(
            "HOLM_TOKEN",
            "a token is set and no server is named, so it is not used",
            "set HOLM_SERVER as well, or unset it",
        )),
        Ok(_) => {}
        // An agent with a key of its own needs no token.
        Err(_) if config.join_token_file().is_some() && config.endpoint().is_ok() => {}
        Err(problem) => findings.push(error("server", shown(&problem), "see the message")),
    }
    contexts(config, &mut findings);
    agent_table(config, &mut findings);
    server_table(config, &mut findings);
    blobs(config, env, &mut findings);
    match &config.traces {
        Err(refused) => {
            let problem = format!("`{}` is not accepted", refused.value);
            findings.push(error(&refused.field, problem, refused.problem.as_str()));
        }
        Ok(Some(settings)) if settings.shows_headers() => {
            let problem = "the headers for the collector go there without encryption";
            findings.push(warning(
                settings.collector(),
                problem,
                "give an https:// URL, or a collector on this machine",
            ));
        }
        Ok(_) => {}
    }
    findings
}

fn contexts(config: &Config, findings: &mut Vec<Finding>) {
    let at = |key: &str| format!("{}: {key}", config.path.display());
    let mut has_secret = config.file.server.database.is_some();
    if let Some(context) = &config.file.context
        && context != LOCAL
        && !config.file.contexts.contains_key(context)
    {
        let names: Vec<&str> = config.file.contexts.keys().map(String::as_str).chain([LOCAL]).collect();
        let way_out = format!("give one of {}", names.join(", "));
        findings.push(error(at("context"), format!("there is no context `{context}`"), way_out));
    }
    for (name, entry) in &config.file.contexts {
        let key = |key: &str| at(&format!("contexts.{name}.{key}"));
        if name == LOCAL {
            let problem = "this name stands for the server of this machine, so the context is never used";
            findings.push(error(key("server"), problem, "give it another name"));
        }
        if let Err(problem) = Endpoint::parse(&entry.server) {
            findings.push(error(key("server"), problem.to_string(), "give the URL of a server"));
        }
        if let Some(host) = entry.server.strip_prefix("http://")
            && !is_loopback(host)
        {
            let problem = format!("the token goes to `{}` without encryption", entry.server);
            findings.push(warning(key("server"), problem, "use https, or a network that nobody else reads"));
        }
        match config.token_of(name, entry) {
            Ok(Some(_)) => {}
            Ok(None) => {
                findings.push(error(
                    key("token"),
                    "there is no token",
                    format!("`holm login --as {name} {}`", entry.server),
                ));
            }
            Err(problem) => findings.push(error(key("token"), shown(&problem), "give a token that works")),
        }
        has_secret |= entry.token.is_some();
    }
    if has_secret && file::is_readable_by_others(&config.path) {
        let problem = "it has a secret in it, and others than its owner may read it";
        findings.push(error(config.path.display(), problem, format!("chmod 600 {}", config.path.display())));
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.split('/').next().unwrap_or(host);
    host.starts_with("localhost") || host.starts_with("127.") || host.starts_with("[::1]")
}

fn server_table(config: &Config, findings: &mut Vec<Finding>) {
    let at = |key: &str| format!("{}: server.{key}", config.path.display());
    let table = &config.file.server;
    if let Some(listen) = &table.listen
        && !listen.starts_with("unix:/")
        && listen.parse::<SocketAddr>().is_err()
    {
        findings.push(error(at("listen"), format!("`{listen}` is no address"), "give ADDRESS:PORT or unix:/PATH"));
    }
    if let Some(database) = &table.database {
        let url = database.expose_secret();
        if !["sqlite:", "postgres://", "postgresql://"].iter().any(|prefix| url.starts_with(prefix)) {
            findings.push(error(at("database"), "this is no database", "give sqlite:PATH or postgres://…"));
        }
    }
    if let Some(path) = &table.root_key_file {
        let path = config.path.parent().unwrap_or(Path::new("/")).join(path);
        if file::is_readable_by_others(&path) {
            let problem = "it is a key, and others than its owner may read it";
            findings.push(error(path.display(), problem, format!("chmod 600 {}", path.display())));
        }
    }
    let mut lease = LeaseConfig::default();
    for (key, text, target) in
        [("lease_ttl", &table.lease_ttl, &mut lease.ttl), ("lease_margin", &table.lease_margin, &mut lease.margin)]
    {
        match text.as_deref().map(|text| (text, units::duration(text))) {
            Some((_, Ok(duration))) => *target = duration,
            Some((text, Err(way_out))) => findings.push(error(at(key), format!("`{text}` is no duration"), way_out)),
            None => {}
        }
    }
    if let Some(text) = &table.log_retention
        && let Err(way_out) = log_retention(text)
    {
        findings.push(error(at("log_retention"), format!("`{text}` is not accepted"), way_out));
    }
    for (name, value) in &table.org_limits {
        if let Err(way_out) = OrgOverrides::default().set_text(&format!("{name}={value}")) {
            findings.push(error(at(&format!("org_limits.{name}")), format!("`{value}` is not accepted"), way_out));
        }
    }
    lease.attempts_max = table.attempts_max.unwrap_or(lease.attempts_max);
    if let Err(invalid) = lease.validate() {
        let key = invalid.field.replace('.', "_").replace("lease_attempts", "attempts");
        findings.push(error(at(&key), format!("`{}` is not accepted", invalid.value), invalid.problem));
    }
}

/// What an agent is told. A host that has enrolled reads its join token no more.
fn agent_table(config: &Config, findings: &mut Vec<Finding>) {
    let Some(Setting { value: path, source }) = config.join_token_file() else { return };
    if file::is_readable_by_others(path) {
        let problem = "it is a secret, and others than its owner may read it";
        findings.push(error(path.display(), problem, format!("chmod 600 {}", path.display())));
    }
    if holm_agent::is_enrolled(&Home(config.home.value.clone()).agent()) {
        return;
    }
    if let Err(problem) = join_token_in(path) {
        let way_out = "make one with `holm hosts join NAME` and write it into that file";
        findings.push(error(source, problem, way_out));
    }
}

/// What is told of large objects.
fn blobs(config: &Config, env: &Environment, findings: &mut Vec<Finding>) {
    let told = match BlobsTold::of_settings(config, env) {
        Ok(told) => told,
        Err(problem) => return findings.push(error("HOLM_BLOBS", shown(&problem), "give a place that is text")),
    };
    let at = blobs_at(config, &told);
    let home = Home(config.home.value.clone());
    let place = match told.place(&home, env) {
        Ok(BlobPlace::S3(place)) => place,
        Ok(BlobPlace::Folder(_)) => return,
        Err(problem) => {
            return findings.push(error(at, shown(&problem), "see `holm server --help`"));
        }
    };
    if let Err(problem) = told.bucket(&place, env) {
        let way_out = "give credentials that work";
        findings.push(error(at, shown(&problem), way_out));
    }
    if let Some((path, _)) = told.credentials_file(env)
        && file::is_readable_by_others(&path)
    {
        let problem = "it has a secret in it, and others than its owner may read it";
        findings.push(error(path.display(), problem, format!("chmod 600 {}", path.display())));
    }
}

/// Where it was told.
fn blobs_at(config: &Config, told: &BlobsTold) -> String {
    match told.at {
        at @ "server.blobs" => format!("{}: {at}", config.path.display()),
        at => at.to_owned(),
    }
}

/// Reaches for the server that is meant, and for the database and the bucket that are named.
pub async fn unreachable(config: &Config, env: &Environment) -> Vec<Finding> {
    let mut findings = Vec::new();
    match config.target() {
        Ok(Target::Named { endpoint, token }) => {
            let at = config.context.as_ref().map_or_else(
                || endpoint.to_string(),
                |context| format!("{}: contexts.{}.server", config.path.display(), context.value),
            );
            let answer = match Client::new(endpoint, token.value) {
                Ok(client) => client.whoami().await.map(drop),
                Err(problem) => Err(problem),
            };
            if let Err(problem) = answer {
                let way_out = if problem.code().is_some() {
                    "`holm login` with a token that works"
                } else {
                    "start the server, or name another"
                };
                findings.push(error(at, problem.to_string(), way_out));
            }
        }
        Ok(Target::Local) => findings.extend(local_server(&config.home.value).await),
        // It was told among the contradictions, unless an agent with a key of its own is meant.
        Err(_) => findings.extend(anonymous_answers(config).await),
    }
    if let Some(database) =
        config.database.as_ref().filter(|database| database.value.expose_secret().starts_with("postgres"))
    {
        findings.extend(database_answers(database.source.to_string(), database.value.expose_secret()).await);
    }
    findings.extend(bucket_answers(config, env).await);
    findings.extend(collector_answers(config).await);
    findings
}

async fn anonymous_answers(config: &Config) -> Option<Finding> {
    config.join_token_file()?;
    let endpoint = config.endpoint().ok()??;
    let at = endpoint.to_string();
    let answer = match Client::anonymous(endpoint) {
        Ok(client) => client.ready(Duration::from_secs(10)).await,
        Err(problem) => Err(problem),
    };
    answer.err().map(|problem| error(at, problem.to_string(), "start the server, or name another"))
}

async fn local_server(home: &Path) -> Option<Finding> {
    let home = Home(home.to_owned());
    match home.served_by() {
        Ok(Served::Nobody) => None,
        Ok(Served::By(pid)) => match local::connect(&home).await {
            Ok(Some(_)) => None,
            other => {
                let why = other.err().map(|error| format!(": {}", shown(&error))).unwrap_or_default();
                let who = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
                let problem = format!("a server{who} has the lock and does not answer{why}");
                Some(error(home.socket().display(), problem, format!("see {}, or `holm down`", home.log().display())))
            }
        },
        Err(problem) => Some(error(home.0.display(), problem.to_string(), "give a folder that is yours with --home")),
    }
}

async fn database_answers(at: String, url: &str) -> Option<Finding> {
    let way_out = "start PostgreSQL, or correct the URL";
    match tokio::time::timeout(Duration::from_secs(10), crate::serve::database_ping(url, Expect::Anything)).await {
        Ok(Ok(_)) => None,
        // What a database says may quote the URL, and the URL has a password in it.
        Ok(Err(problem)) => Some(error(at, problem.to_string().replace(url, "the database"), way_out)),
        Err(_) => Some(error(at, "the database did not answer within 10 s", way_out)),
    }
}

/// Nothing where no bucket is named; what keeps it from being asked was told among the contradictions.
async fn bucket_answers(config: &Config, env: &Environment) -> Option<Finding> {
    let told = BlobsTold::of_settings(config, env).ok()?;
    let BlobPlace::S3(place) = told.place(&Home(config.home.value.clone()), env).ok()? else { return None };
    let unreached = told.bucket(&place, env).ok()?.reach().await.err()?;
    Some(error(blobs_at(config, &told), format!("{place}: {}", unreached.problem), unreached.way_out))
}

/// Nothing where nothing is recorded; what keeps it from being recorded was told among the contradictions.
async fn collector_answers(config: &Config) -> Option<Finding> {
    let settings = config.traces.as_ref().ok()?.as_ref()?;
    let problem = holm_trace::reach(settings).await.err()?;
    let way_out =
        "start the collector, with OTLP over HTTP, or name another; without it spans are lost, and nothing else is";
    Some(warning(settings.collector(), format!("the collector takes no spans: {problem}"), way_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Global;

    fn findings(text: &str, env: &Environment) -> Vec<Finding> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let global = Global { config: Some(path), home: Some(dir.path().join("home")), ..Global::default() };
        contradictions(&Config::load(&global, env).unwrap(), env)
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        assert_eq!(findings("", &Environment::default()), []);
        assert_eq!(
            findings(
                "[server]\nlisten = \"127.0.0.1:0\"\nlease_ttl = \"2s\"\nlog_retention = \"30d\"\n[server.org_limits]\nruns_running_max = 5\n",
                &Environment::default()
            ),
            []
        );
    }

    #[test]
    fn each_contradiction_is_named_with_its_way_out() {
        let text = r#"
context = "gone"
[contexts.plain]
server = "http://far.example"
token = "holm_secret"
[contexts.local]
server = "nonsense"
[server]
listen = "here"
database = "mysql://u:hunter2@h/db"
lease_ttl = "1ms"
attempts_max = 0
log_retention = "1ms"
blobs = "s3://AKIA:hunter2@holm"
[server.org_limits]
submits_per_minute = 0
sandwiches = 1
"#;
        let env = Environment::from([
            ("HOLM_SEVRER", "x"),
            ("HOLM_TOKEN", "a"),
            ("HOLM_TOKEN_FILE", "b"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hunter2@c"),
        ]);
        let found = findings(text, &env);
        for (at, problem) in [
            ("HOLM_SEVRER", "no variable"),
            ("HOLM_TOKEN", "HOLM_TOKEN_FILE is set as well"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "is not accepted"),
            ("context", "there is no context `gone`"),
            ("contexts.plain.server", "without encryption"),
            ("server.org_limits.submits_per_minute", "`0` is not accepted"),
            ("server.org_limits.sandwiches", "`1` is not accepted"),
            ("contexts.plain.token", "this is not a token"),
            ("contexts.local.server", "this name stands for"),
            ("contexts.local.server", "`nonsense` is not a server"),
            ("server.listen", "`here` is no address"),
            ("server.database", "this is no database"),
            ("server.lease_ttl", "`1ms` is not accepted"),
            ("server.log_retention", "`1ms` is not accepted"),
            ("server.blobs", "credentials are no part of it"),
            ("config.toml", "others than its owner may read it"),
        ] {
            let hit = found.iter().any(|f| f.at.ends_with(at) && f.problem.contains(problem) && !f.way_out.is_empty());
            assert!(hit, "{at}: {problem}\n{found:#?}");
        }
        let shown = format!("{found:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("holm_secret"), "{shown}");
    }

    #[test]
    fn headers_that_anybody_may_read_are_warned_of() {
        let of = |url| {
            let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2");
            findings("", &Environment::from([("OTEL_EXPORTER_OTLP_ENDPOINT", url), headers]))
        };
        assert_eq!((of("http://127.0.0.1:4318"), of("https://c.example")), (vec![], vec![]));
        let found = of("http://c.example:4318");
        assert!(found.len() == 1 && found[0].problem.contains("without encryption"), "{found:?}");
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
        // A path may be a key.
        let found = of("http://c.example:4318/hunter2");
        assert!(found.len() == 1 && found[0].at == "http://c.example:4318", "{found:?}");
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }

    #[tokio::test]
    async fn a_collector_that_does_not_answer_is_told_of_without_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let global = Global { home: Some(dir.path().join("home")), ..Global::default() };
        let env = Environment::from([("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9/hunter2")]);
        let found = collector_answers(&Config::load(&global, &env).unwrap()).await.unwrap();
        assert_eq!(found.at, "http://127.0.0.1:9");
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }

    #[test]
    fn an_agent_that_has_not_enrolled_needs_a_join_token_and_one_that_has_needs_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, home) = (dir.path().join("config.toml"), dir.path().join("home"));
        std::fs::write(&path, "[agent]\njoin_token_file = \"join-token\"\n").unwrap();
        let token = dir.path().join("join-token");
        let found = || {
            let global = Global { config: Some(path.clone()), home: Some(home.clone()), ..Global::default() };
            let env = Environment::from([("HOLM_SERVER", "https://holm.example")]);
            contradictions(&Config::load(&global, &env).unwrap(), &env)
        };
        let one = |words: &str| {
            let found = found();
            assert!(found.len() == 1 && found[0].problem.contains(words), "{found:?}");
            assert!(!format!("{found:?}").contains("geheim"), "{found:?}");
        };
        one("cannot read");
        let write = |text: &str, mode| {
            std::fs::write(&token, text).unwrap();
            std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        write("holm_geheim", 0o600);
        one("has no join token");
        let good = format!("holm_join_{}\n", "g".repeat(43));
        write(&good, 0o600);
        assert_eq!(found(), [], "it needs no other token");
        write(&good, 0o644);
        one("others than its owner may read it");
        std::fs::remove_file(&token).unwrap();
        std::fs::create_dir_all(home.join("agent")).unwrap();
        std::fs::write(home.join("agent/enrolled"), "agt holm:org\n").unwrap();
        assert_eq!(found(), [], "it has enrolled");
    }

    #[test]
    fn a_bucket_needs_credentials_that_can_be() {
        let text = "[server]\nblobs = \"s3://holm/p?endpoint=http://127.0.0.1:9\"\n";
        let of = |pairs: [(&str, &str); 2]| findings(text, &Environment::from(pairs));
        let key = ("AWS_ACCESS_KEY_ID", "AKIATEST");
        assert_eq!(of([key, ("AWS_SECRET_ACCESS_KEY", "hunter2")]), []);
        for (pairs, words) in [
            ([key, ("AWS_REGION", "here")], "there are no credentials for the bucket: set AWS_ACCESS_KEY_ID"),
            ([key, ("AWS_SECRET_ACCESS_KEY", "changeme")], "is the placeholder of an example"),
            ([("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file"), ("AWS_PROFILE", "x")], "/no/such/file cannot be read"),
        ] {
            let found = of(pairs);
            assert!(found.len() == 1 && found[0].at.ends_with("server.blobs"), "{found:?}");
            assert!(found[0].problem.contains(words), "{found:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, "[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = hunter2\n").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let text = format!("{text}blobs_credentials = \"{}\"\n", file.display());
        let found = findings(&text, &Environment::default());
        assert!(found.len() == 1 && found[0].problem.contains("others than its owner may read it"), "{found:?}");
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }
}
