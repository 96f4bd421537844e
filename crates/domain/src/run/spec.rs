//! What a run is asked to do, and the check of it before anything else happens.

use std::{collections::BTreeMap, path::Path, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    ErrorCode,
    egress::{
        credential::{CREDENTIALS_MAX, Credential},
        policy::{Place, RULES_MAX, Rule},
    },
    error::InvalidField,
    limits::{ARGS_BYTES_MAX, ARGS_MAX, LABEL_BYTES_MAX, LABELS_MAX, LeaseConfig, Limits, MOUNTS_MAX, PATH_BYTES_MAX},
    secret::SecretName,
};

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RootSource {
    /// The host's programs and libraries, read-only, and nothing else of the host.
    // With braces: beside the tag of a variant without them, serde lets every field pass.
    Host {},
    /// A directory of the host, read-only under a writable layer.
    Dir {
        /// Its absolute path on the host.
        path: String,
    },
    /// A tar archive of the host, unpacked once and read-only under a writable layer.
    Tar {
        /// Its absolute path on the host.
        path: String,
    },
}

impl RootSource {
    /// Reads `host`, `dir:PATH` or `tar:PATH`, as the command line and the API take it.
    pub fn parse(text: &str) -> Result<Self, InvalidField> {
        match text.split_once(':') {
            None if text == "host" => Ok(Self::Host {}),
            Some(("dir", path)) => Ok(Self::Dir { path: path.to_owned() }),
            Some(("tar", path)) => Ok(Self::Tar { path: path.to_owned() }),
            _ => Err(InvalidField::new("root", text, "give `host`, `dir:PATH` or `tar:PATH`")
                .with_code(ErrorCode::UnknownImage)),
        }
    }
}

/// A directory or file of the host that is seen inside.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path inside.
    pub target: String,
    /// Whether it is read-only inside.
    #[serde(default)]
    pub read_only: bool,
}

/// A directory of the host that is brought in as the working directory; changes stay inside.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkDir {
    /// Absolute path on the host.
    pub source: String,
    /// Whether the changes are kept as an archive after success, to be copied out.
    #[serde(default)]
    pub keep_changes: bool,
}

/// The path at which a [`WorkDir`] is seen inside.
pub const WORK_DIR: &str = "/work";

/// Places inside that are Holm's own: nothing is mounted in them, and nothing over a folder that contains one.
pub const OWN_PLACES: [&str; 5] = ["/proc", "/sys", "/dev", "/.holm", "/run/holm"];

/// What a run is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Where the root file system comes from.
    pub root: RootSource,
    /// The runtime that must make the sandbox; any that fits where it is left out.
    #[serde(default)]
    pub runtime: Option<String>,
    /// The command and its arguments; never passed through a shell.
    pub argv: Vec<String>,
    /// Environment variables beside the minimal ones (PATH, HOME, USER, LANG, TERM).
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The working directory inside; `/work` with a work dir, the user's home otherwise.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `NAME`, `UID` or `UID:GID` inside; root where it is left out.
    #[serde(default)]
    pub user: Option<String>,
    /// A directory that is brought in as the working directory.
    #[serde(default)]
    pub work_dir: Option<WorkDir>,
    /// Further directories and files of the host.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// What the run may use at most.
    #[serde(default)]
    pub limits: Limits,
    /// Whether a host that cannot enforce every limit must refuse the run.
    #[serde(default)]
    pub require_limits: bool,
    /// Whether programs inside may gain privileges inside (sudo, setuid).
    #[serde(default)]
    pub allow_sudo: bool,
    /// What it may reach; nothing where there are none.
    // Left out where there are none, as below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Rule>,
    /// What its proxy adds to which requests, and it never sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<Credential>,
    /// Environment variables in which something stands for a secret of a credential, for tools that insist on one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub placeholders: BTreeMap<String, SecretName>,
    /// Names and values by which the run is found.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Labels that the host must have, each with its value; any host that fits where there are none.
    // Left out where there are none: who does not know them yet need not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_labels: BTreeMap<String, String>,
    /// For how many minutes more than it did it counts as having waited, fewer if negative: -1,440 to 1,440.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// How long it may wait in the queue, in milliseconds: 1,000 to 31 days; as long as the server has it where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
}

/// The most by which a run may count as having waited longer or shorter than it did, in minutes.
pub const PRIORITY_MAX: i32 = 24 * 60;
/// The longest that a run may ask to be kept in the queue, in milliseconds.
const QUEUE_TIMEOUT_MS_MAX: u64 = 31 * 24 * 3_600_000;

fn is_zero(number: &i32) -> bool {
    *number == 0
}

impl RunSpec {
    /// A spec that executes `argv` on the host's programs with the default limits.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            root: RootSource::Host {},
            runtime: None,
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            work_dir: None,
            mounts: Vec::new(),
            limits: Limits::default(),
            require_limits: false,
            allow_sudo: false,
            allow: Vec::new(),
            credentials: Vec::new(),
            placeholders: BTreeMap::new(),
            labels: BTreeMap::new(),
            host_labels: BTreeMap::new(),
            priority: 0,
            queue_timeout_ms: None,
        }
    }

    /// How long it may wait in the queue.
    pub fn queue_timeout(&self, config: &LeaseConfig) -> Duration {
        self.queue_timeout_ms.map_or(config.queue_deadline, Duration::from_millis)
    }

    /// Checks every field; the first that cannot be is named.
    pub fn validate(&self) -> Result<(), InvalidField> {
        self.validate_command()?;
        self.validate_paths()?;
        self.validate_allow()?;
        self.validate_credentials()?;
        validate_labels("labels", &self.labels)?;
        validate_labels("host_labels", &self.host_labels)?;
        self.validate_waiting()?;
        self.limits.validate()
    }

    fn validate_allow(&self) -> Result<(), InvalidField> {
        count("allow", self.allow.len(), RULES_MAX)?;
        for (index, rule) in self.allow.iter().enumerate() {
            let invalid = |problem: String| InvalidField::new(format!("allow[{index}]"), rule, problem);
            rule.validate().map_err(|error| invalid(error.to_string()))?;
            match &rule.place {
                Place::Range(IpNet::V6(_)) => {
                    return Err(invalid("give a name: IPv6 is not spoken inside, only outside".to_owned()));
                }
                Place::Name(name) if name.as_str() == "localhost" => {
                    let problem = "give the host another name: inside, that is the sandbox itself";
                    return Err(invalid(problem.to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn validate_credentials(&self) -> Result<(), InvalidField> {
        count("credentials", self.credentials.len(), CREDENTIALS_MAX)?;
        for (index, credential) in self.credentials.iter().enumerate() {
            let invalid = |problem: String| InvalidField::new(format!("credentials[{index}]"), credential, problem);
            credential.validate().map_err(|error| invalid(error.to_string()))?;
            if !self.allow.iter().any(|rule| rule.leads_by_name(&credential.to)) {
                let problem = format!("no rule of `allow` names its host and port: allow `{}` as well", credential.to);
                return Err(invalid(problem));
            }
            if let Some(other) = self.credentials[..index].iter().find(|other| other.clashes(credential)) {
                return Err(invalid(format!("`{other}` fills the same place of the same requests; give one of them")));
            }
        }
        for (variable, secret) in &self.placeholders {
            let field = format!("placeholders.{variable}");
            validate_variable("placeholders", variable)?;
            if self.env.contains_key(variable) {
                return Err(InvalidField::new(field, secret, "`env` sets the same variable; give one of them"));
            }
            if !self.credentials.iter().any(|credential| credential.secret == *secret) {
                return Err(InvalidField::new(
                    field,
                    secret,
                    "no credential adds this secret; give the name of one that does",
                ));
            }
        }
        Ok(())
    }

    fn validate_waiting(&self) -> Result<(), InvalidField> {
        if self.priority.unsigned_abs() > PRIORITY_MAX.unsigned_abs() {
            let problem = format!("give -{PRIORITY_MAX} to {PRIORITY_MAX} minutes");
            return Err(InvalidField::new("priority", self.priority, problem));
        }
        let is_wrong = |ms: &u64| !(1_000..=QUEUE_TIMEOUT_MS_MAX).contains(ms);
        match self.queue_timeout_ms.filter(is_wrong) {
            Some(ms) => Err(InvalidField::new("queue_timeout_ms", ms, "give one second to 31 days")),
            None => Ok(()),
        }
    }

    fn validate_command(&self) -> Result<(), InvalidField> {
        match self.argv.first() {
            None => return Err(InvalidField::new("argv", "[]", "give the command to execute")),
            Some(command) if command.is_empty() => {
                return Err(InvalidField::new("argv[0]", "", "give the command to execute"));
            }
            Some(_) => {}
        }
        count("argv", self.argv.len(), ARGS_MAX)?;
        count("env", self.env.len(), ARGS_MAX)?;
        count("argv", self.argv.iter().map(String::len).sum(), ARGS_BYTES_MAX)?;
        count("env", self.env.iter().map(|(k, v)| k.len() + v.len()).sum(), ARGS_BYTES_MAX)?;
        for (index, argument) in self.argv.iter().enumerate() {
            no_nul(&format!("argv[{index}]"), argument)?;
        }
        for (name, value) in &self.env {
            validate_variable("env", name)?;
            no_nul(&format!("env.{name}"), value)?;
        }
        let user = self.user.as_deref().unwrap_or("root");
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
        if user.is_empty() || user.len() > 64 || !user.chars().all(plain) {
            return Err(InvalidField::new("user", user, "give a name, a number, or UID:GID"));
        }
        Ok(())
    }

    fn validate_paths(&self) -> Result<(), InvalidField> {
        if let RootSource::Dir { path } | RootSource::Tar { path } = &self.root {
            absolute("root.path", path)?;
        }
        if let Some(cwd) = &self.cwd {
            absolute("cwd", cwd)?;
        }
        if let Some(work) = &self.work_dir {
            absolute("work_dir.source", &work.source)?;
        }
        count("mounts", self.mounts.len(), MOUNTS_MAX)?;
        for (index, mount) in self.mounts.iter().enumerate() {
            absolute(&format!("mounts[{index}].source"), &mount.source)?;
            let target = format!("mounts[{index}].target");
            absolute(&target, &mount.target)?;
            if is_taken(&mount.target) {
                let problem = format!("give a path that neither contains nor lies in one of {}", OWN_PLACES.join(", "));
                return Err(InvalidField::new(target, &mount.target, problem));
            }
        }
        Ok(())
    }
}

fn validate_variable(field: &str, name: &str) -> Result<(), InvalidField> {
    if name.is_empty() || name.contains('=') {
        return Err(InvalidField::new(field, name, "give a name that is not empty and has no `=`"));
    }
    no_nul(field, name)
}

fn validate_labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), InvalidField> {
    count(field, labels.len(), LABELS_MAX)?;
    for (key, value) in labels {
        if key.is_empty() || key.len() > LABEL_BYTES_MAX || key.contains(['=', ',', '\0']) {
            let problem = format!("give a key of 1 to {LABEL_BYTES_MAX} bytes without `=` and `,`");
            return Err(InvalidField::new(field, key, problem));
        }
        if value.len() > LABEL_BYTES_MAX || value.contains('\0') {
            let problem = format!("give a value of at most {LABEL_BYTES_MAX} bytes");
            return Err(InvalidField::new(format!("{field}.{key}"), value, problem));
        }
    }
    Ok(())
}

/// Whether a path, taken as text, is in the way of one of [`OWN_PLACES`].
fn is_taken(target: &str) -> bool {
    // Compared part by part: slashes may stand doubled.
    let target = Path::new(target);
    OWN_PLACES.into_iter().map(Path::new).any(|own| own.starts_with(target) || target.starts_with(own))
}

fn count(field: &str, given: usize, max: usize) -> Result<(), InvalidField> {
    if given <= max {
        return Ok(());
    }
    Err(InvalidField::new(field, given, format!("give at most {max}")))
}

fn no_nul(field: &str, text: &str) -> Result<(), InvalidField> {
    if !text.contains('\0') {
        return Ok(());
    }
    Err(InvalidField::new(field, text.replace('\0', "\\0"), "a NUL byte cannot be passed to a program"))
}

/// Accepts absolute paths without `.`, `..`, empty or NUL components, so that what is checked is what is opened.
fn absolute(field: &str, path: &str) -> Result<(), InvalidField> {
    let problem = if !path.starts_with('/') {
        "give an absolute path"
    } else if path.len() > PATH_BYTES_MAX {
        "give a path of at most 4096 bytes"
    } else if path.contains('\0') {
        "a path has no NUL byte"
    } else if path.split('/').any(|part| part == "." || part == "..") {
        "give a path without `.` and `..`"
    } else {
        return Ok(());
    };
    Err(InvalidField::new(field, path.replace('\0', "\\0"), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of(spec: &RunSpec) -> Option<String> {
        spec.validate().err().map(|error| error.field)
    }

    #[test]
    fn a_plain_command_is_accepted() {
        assert_eq!(RunSpec::new(["echo", "hello"]).validate(), Ok(()));
    }

    #[test]
    fn credentials_are_for_what_is_allowed_by_name_and_fill_a_place_once() {
        let problem = |allow: &[&str], credentials: &[&str]| {
            let read = |rule: &&str| rule.parse().unwrap();
            let allow = allow.iter().map(read).collect();
            let credentials = credentials.iter().map(|text| text.parse().unwrap()).collect();
            RunSpec { allow, credentials, ..RunSpec::new(["true"]) }.validate().err()
        };
        let of = "api.example.org/v1=bearer:KEY";
        for allow in ["api.example.org", "GET api.example.org/v1", "*.example.org"] {
            assert_eq!(problem(&[allow], &[of]), None, "{allow}");
        }
        for allow in [&[][..], &["public"], &["api.example.org:8443"], &["example.org"], &["192.0.2.0/24"]] {
            let refused = problem(allow, &[of]).unwrap();
            assert_eq!(refused.field, "credentials[0]", "{allow:?}");
            assert!(refused.problem.contains("allow `api.example.org/v1` as well"), "{refused}");
        }
        let refused = problem(&["api.example.org"], &[of, "api.example.org/v1=basic:me:OTHER"]).unwrap();
        assert_eq!(refused.field, "credentials[1]");
        assert!(refused.problem.contains(of), "{refused}");
        let placed = |variable: &str, secret: &str| {
            let placeholders = BTreeMap::from([(variable.to_owned(), secret.parse().unwrap())]);
            let env = BTreeMap::from([("SET".to_owned(), String::new())]);
            let (allow, credentials) = (vec!["api.example.org".parse().unwrap()], vec![of.parse().unwrap()]);
            RunSpec { allow, credentials, placeholders, env, ..RunSpec::new(["true"]) }
                .validate()
                .map_err(|error| error.field)
        };
        assert_eq!(placed("API_KEY", "KEY"), Ok(()));
        assert_eq!(placed("API_KEY", "OTHER"), Err("placeholders.API_KEY".to_owned()));
        assert_eq!(placed("SET", "KEY"), Err("placeholders.SET".to_owned()));
        assert_eq!(placed("A=B", "KEY"), Err("placeholders".to_owned()));
        let many: Vec<_> = (0..=CREDENTIALS_MAX).map(|at| format!("api.example.org/{at}=bearer:KEY")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(problem(&["api.example.org"], &many).unwrap().field, "credentials");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let good = RunSpec::new(["true"]);
        let mount = |target: &str| vec![Mount { source: "/srv".into(), target: target.into(), read_only: true }];
        assert_eq!(field_of(&RunSpec::new(Vec::<String>::new())).as_deref(), Some("argv"));
        assert_eq!(field_of(&RunSpec::new(["a", "b\0c"])).as_deref(), Some("argv[1]"));
        assert_eq!(field_of(&RunSpec { cwd: Some("tmp".into()), ..good.clone() }).as_deref(), Some("cwd"));
        assert_eq!(field_of(&RunSpec { cwd: Some("/a/../b".into()), ..good.clone() }).as_deref(), Some("cwd"));
        assert_eq!(field_of(&RunSpec { user: Some("a b".into()), ..good.clone() }).as_deref(), Some("user"));
        for target in [
            "/",
            "//",
            "/proc",
            "/proc/1",
            "//proc//1",
            "/sys/x",
            "/dev/",
            "/.holm",
            "/.holm/root/upper",
            "/run",
            "/run/holm",
            "/run//holm/x",
        ] {
            let spec = RunSpec { mounts: mount(target), ..good.clone() };
            assert_eq!(field_of(&spec).as_deref(), Some("mounts[0].target"), "{target}");
        }
        for target in ["/device", "/run/other", "/run/holmes", "/.holmes"] {
            assert_eq!(field_of(&RunSpec { mounts: mount(target), ..good.clone() }), None, "{target}");
        }
        let label = BTreeMap::from([("a=b".to_owned(), String::new())]);
        let labelled = RunSpec { labels: label.clone(), ..good.clone() };
        assert_eq!(field_of(&labelled).as_deref(), Some("labels"));
        assert_eq!(field_of(&RunSpec { host_labels: label, ..good.clone() }).as_deref(), Some("host_labels"));
        let env = BTreeMap::from([("A=B".to_owned(), String::new())]);
        assert_eq!(field_of(&RunSpec { env, ..good }).as_deref(), Some("env"));
    }

    #[test]
    fn roots_are_read() {
        assert_eq!(RootSource::parse("host"), Ok(RootSource::Host {}));
        assert_eq!(RootSource::parse("dir:/a:b"), Ok(RootSource::Dir { path: "/a:b".into() }));
        let host = serde_json::to_value(RootSource::Host {}).unwrap();
        assert_eq!(host, serde_json::json!({"kind": "host"}));
        assert_eq!(serde_json::from_value::<RootSource>(host).unwrap(), RootSource::Host {});
        let mixed = serde_json::json!({"kind": "host", "path": "/srv/image"});
        assert!(serde_json::from_value::<RootSource>(mixed).is_err(), "an image that would be ignored");
        let error = RootSource::parse("ubuntu").map_err(|error| error.code);
        assert_eq!(error, Err(ErrorCode::UnknownImage));
    }
}
