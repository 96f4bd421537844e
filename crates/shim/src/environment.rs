//! The environment of the command: a minimal one, then what the runtime knows, then what the run asks for.

use std::collections::BTreeMap;

use holm_domain::{
    RunId,
    run::{RunSpec, spec::WORK_DIR},
};
use holm_proxy::egress::placeholder;
use holm_wire::guest_api::{Spawn, TRUST_AUTHORITY, TRUST_BUNDLE, TRUST_DIR};

/// Where the command may leave its structured result.
pub const RESULT_PATH: &str = "/run/holm/result.json";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const ROOT: &str = "root";
/// What takes a list of authorities in place of its own.
const BUNDLES: [&str; 13] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "npm_config_cafile",
    "BUNDLE_SSL_CA_CERT",
    "AWS_CA_BUNDLE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
    "NIX_SSL_CERT_FILE",
];
/// What takes authorities beside its own.
const ADDITIONS: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// What has the system's list used (uv, Deno).
const SWITCHES: [(&str, &str); 2] = [("UV_NATIVE_TLS", "1"), ("DENO_TLS_CA_STORE", "system,mozilla")];

/// The command as the guest is asked to start it. `known` is what the runtime knows of the image, and [`trust`].
pub fn spawn(run: RunId, spec: &RunSpec, known: &[(String, String)]) -> Spawn {
    let user = spec.user.as_deref().unwrap_or(ROOT);
    let mut env: BTreeMap<String, String> =
        base(run, user).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    env.extend(known.iter().cloned());
    env.extend(spec.env.clone());
    let work_dir = spec.work_dir.as_ref().map(|_| WORK_DIR.to_owned());
    let cwd = spec.cwd.clone().or(work_dir);
    Spawn { argv: spec.argv.clone(), env, cwd, user: user.to_owned(), stdin: false, main: true }
}

/// Where programs find the authority of the sandbox's egress proxy.
pub fn trust() -> impl Iterator<Item = (String, String)> {
    let bundles = BUNDLES.map(|name| (name, format!("{TRUST_DIR}/{TRUST_BUNDLE}")));
    let additions = ADDITIONS.map(|name| (name, format!("{TRUST_DIR}/{TRUST_AUTHORITY}")));
    let switches = SWITCHES.map(|(name, value)| (name, value.to_owned()));
    bundles.into_iter().chain(additions).chain(switches).map(|(name, value)| (name.to_owned(), value))
}

/// What stands for secrets, for tools that insist on one.
pub fn placeholders(spec: &RunSpec) -> impl Iterator<Item = (String, String)> {
    spec.placeholders.iter().map(|(variable, secret)| (variable.clone(), placeholder(secret)))
}

fn base(run: RunId, user: &str) -> Vec<(&'static str, String)> {
    let mut env = vec![
        ("PATH", PATH.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        // There is no terminal.
        ("TERM", "dumb".to_owned()),
        ("HOLM_RUN_ID", run.to_string()),
        ("HOLM_RESULT", RESULT_PATH.to_owned()),
    ];
    let (name, home) = match user.split(':').next().unwrap_or(user) {
        "0" | ROOT => (Some(ROOT), "/root".to_owned()),
        // Only the image knows the name and home of a number.
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => (None, "/".to_owned()),
        name => (Some(name), format!("/home/{name}")),
    };
    env.push(("HOME", home));
    if let Some(name) = name {
        env.push(("USER", name.to_owned()));
        env.push(("LOGNAME", name.to_owned()));
    }
    env
}

#[cfg(test)]
mod tests {
    use holm_domain::run::WorkDir;

    use super::*;

    fn run() -> RunId {
        "run_00000000000000000000000001".parse().unwrap()
    }

    #[test]
    fn later_sources_win() {
        let mut spec = RunSpec::new(["env"]);
        spec.env = BTreeMap::from([("PATH".into(), "/mine".into()), ("X".into(), "1".into())]);
        let runtime = [("PATH".to_owned(), "/image".to_owned()), ("HOME".to_owned(), "/image-home".to_owned())];
        let spawn = spawn(run(), &spec, &runtime);
        let value = |name: &str| spawn.env.get(name).map(String::as_str);
        assert_eq!((value("PATH"), value("HOME"), value("X")), (Some("/mine"), Some("/image-home"), Some("1")));
        assert_eq!(value("HOLM_RUN_ID"), Some("run_00000000000000000000000001"));
        assert_eq!((value("HOLM_RESULT"), value("USER")), (Some(RESULT_PATH), Some("root")));
        assert_eq!((spawn.user.as_str(), spawn.cwd, spawn.stdin, spawn.main), ("root", None, false, true));
    }

    #[test]
    fn home_and_names_follow_the_user() {
        let names = |user: &str| {
            let spec = RunSpec { user: Some(user.to_owned()), ..RunSpec::new(["id"]) };
            let mut spawn = spawn(run(), &spec, &[]);
            (spawn.env.remove("HOME"), spawn.env.remove("USER"), spawn.env.remove("LOGNAME"))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(names("0:0"), (some("/root"), some("root"), some("root")));
        assert_eq!(names("dev"), (some("/home/dev"), some("dev"), some("dev")));
        assert_eq!(names("1000:100"), (some("/"), None, None));
    }

    #[test]
    fn the_work_dir_is_entered_unless_another_is_asked_for() {
        let work_dir = Some(WorkDir { source: "/src".into(), keep_changes: false });
        let mut spec = RunSpec { work_dir, ..RunSpec::new(["pwd"]) };
        assert_eq!(spawn(run(), &spec, &[]).cwd.as_deref(), Some("/work"));
        spec.cwd = Some("/tmp".into());
        assert_eq!(spawn(run(), &spec, &[]).cwd.as_deref(), Some("/tmp"));
    }
}
