//! Where settings come from: flags over environment over file.
//!
//! What always holds: every setting knows where it came from, so that a message can name it; a token is used only for the
//! server it was given for: one from a context never goes to a server that a flag or a variable names, unless it is the
//! same server.

pub mod check;
pub mod file;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use holm_api::client::{Endpoint, SecretString};
use holm_domain::{error::InvalidField, trace::TraceContext};
use holm_trace::{Tracer, settings::Named};
use secrecy::ExposeSecret as _;

use crate::{cli::Global, commands::Usage, serve::blobs::BlobsTold};
use file::{ConfigFile, ContextEntry};

/// The name under which the server of this machine is chosen.
pub const LOCAL: &str = "local";
/// The variable in which a caller names the span of which a command is a part.
const CALLER: &str = "TRACEPARENT";
/// How the variables begin that are for every program that records.
const OF_OTEL: &str = "OTEL_";
/// The folder of the configuration file, among those of other programs.
const FOLDER: &str = "holm";
/// The variables of the environment that Holm reads.
pub const VARIABLES: [&str; 13] = [
    "HOLM_SERVER",
    "HOLM_CONTEXT",
    "HOLM_TOKEN",
    "HOLM_TOKEN_FILE",
    "HOLM_JOIN_TOKEN_FILE",
    "HOLM_PROJECT",
    "HOLM_CONFIG",
    "HOLM_HOME",
    "HOLM_DATABASE",
    "HOLM_BLOBS",
    "HOLM_ROOT_KEY_FILE",
    "HOLM_LOG",
    "HOLM_LOG_FORMAT",
];

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag of the command line.
    Flag(&'static str),
    /// A variable of the environment.
    Env(&'static str),
    /// A key of the configuration file.
    File(PathBuf, String),
    /// Nobody said.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(name) => f.write_str(name),
            Source::Env(name) => f.write_str(name),
            Source::File(path, key) => write!(f, "{}: {key}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub source: Source,
}

/// The environment as far as it matters, so that tests can have one of their own.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let keep = |name: &str| {
            let begins = ["HOLM_", "XDG_", "AWS_", OF_OTEL];
            begins.iter().any(|begin| name.starts_with(begin)) || ["HOME", CALLER].contains(&name)
        };
        Self(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v)))
                .filter(|(k, _)| keep(k))
                .collect(),
        )
    }

    /// The value of a variable; one that is empty counts as not set.
    pub fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name).filter(|value| !value.is_empty())
    }

    /// The value of a variable that must be text.
    pub fn text(&self, name: &'static str) -> anyhow::Result<Option<Setting<String>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let value = value.to_str().ok_or_else(|| anyhow!("{name}: the value is not UTF-8"))?.to_owned();
        Ok(Some(Setting { value, source: Source::Env(name) }))
    }

    /// The names that begin as Holm's do and are none of Holm's: typing errors, most likely.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|name| name.starts_with("HOLM_") && !known(name))
    }
}

/// Whether a variable says what is recorded, or under what.
pub fn tells_of_traces(name: &OsStr) -> bool {
    name == CALLER || name.as_encoded_bytes().starts_with(OF_OTEL.as_bytes())
}

fn known(name: &str) -> bool {
    VARIABLES.contains(&name) || name.starts_with("HOLM_TEST_")
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect())
    }
}

/// Which server is meant.
#[derive(Debug, Clone)]
pub enum Target {
    /// The server of this machine, under [`Config::home`]; it may have to be started.
    Local,
    /// A server that somebody named.
    Named {
        /// The server.
        endpoint: Endpoint,
        /// The token for it.
        token: Setting<SecretString>,
    },
}

/// All settings, with where they came from.
#[derive(Debug)]
pub struct Config {
    /// The configuration file, whether it exists or not.
    pub path: PathBuf,
    /// What is in it.
    pub file: ConfigFile,
    /// Where a server of this machine keeps its data.
    pub home: Setting<PathBuf>,
    /// The project of new runs, if one was named.
    pub project: Option<Setting<String>>,
    /// The name of the context in use, if one is.
    pub context: Option<Setting<String>>,
    /// The database of a server of this machine, if one was named beside the command line.
    pub database: Option<Setting<SecretString>>,
    /// Where what is recorded is sent, if it is; or the setting that cannot be used.
    pub traces: Result<Option<holm_trace::Settings>, InvalidField>,
    /// The span of which this command is a part, if its caller names one.
    pub caller: Option<TraceContext>,
    server: Option<Setting<String>>,
    token_file: Option<Setting<PathBuf>>,
    token: Option<Setting<SecretString>>,
    join_token_file: Option<Setting<PathBuf>>,
}

impl Config {
    /// Reads the settings; reaches for no service and reads no token file yet.
    pub fn load(global: &Global, env: &Environment) -> anyhow::Result<Self> {
        let path = config_path(global, env)?;
        let file = ConfigFile::load(&path)?;
        let of_file = |key: &str| Source::File(path.clone(), key.to_owned());
        let flag =
            |value: &Option<String>, name| value.clone().map(|value| Setting { value, source: Source::Flag(name) });
        let flag_context = flag(&global.context, "--context");
        let mut server = flag(&global.server, "--server");
        let mut context = flag_context;
        if server.is_none() && context.is_none() {
            server = env.text("HOLM_SERVER")?;
            context = if server.is_some() { None } else { env.text("HOLM_CONTEXT")? };
        }
        if server.is_none() && context.is_none() {
            context = file.context.clone().map(|value| Setting { value, source: of_file("context") });
        }
        let token_file = match &global.token_file {
            Some(path) => Some(Setting { value: path.clone(), source: Source::Flag("--token-file") }),
            None => {
                let from_env =
                    |value: &OsString| Setting { value: PathBuf::from(value), source: Source::Env("HOLM_TOKEN_FILE") };
                env.get("HOLM_TOKEN_FILE").map(from_env)
            }
        };
        let token = env.text("HOLM_TOKEN")?.map(|Setting { value, source }| Setting { value: value.into(), source });
        let entry = context.as_ref().and_then(|context| file.contexts.get(&context.value));
        let project = match env.text("HOLM_PROJECT")? {
            Some(project) => Some(project),
            None => entry.zip(context.as_ref()).and_then(|(entry, context)| {
                let source = of_file(&format!("contexts.{}.project", context.value));
                entry.project.clone().map(|value| Setting { value, source })
            }),
        };
        let home = home(global, env, &file, of_file("home"))?;
        let database = match env.text("HOLM_DATABASE")? {
            Some(Setting { value, source }) => Some(Setting { value: value.into(), source }),
            None => {
                let source = of_file("server.database");
                file.server.database.clone().map(|value| Setting { value, source })
            }
        };
        let traces = traces(global, env, &file, &path);
        let caller = env.get(CALLER).and_then(|value| value.to_str()).and_then(|value| value.parse().ok());
        let join_token_file = match env.get("HOLM_JOIN_TOKEN_FILE") {
            Some(value) => Some(Setting { value: value.into(), source: Source::Env("HOLM_JOIN_TOKEN_FILE") }),
            None => {
                let folder = path.parent().unwrap_or(Path::new("/"));
                let source = of_file("agent.join_token_file");
                file.agent.join_token_file.as_ref().map(|path| Setting { value: folder.join(path), source })
            }
        };
        Ok(Self {
            traces,
            caller,
            home,
            database,
            project,
            context,
            server,
            token_file,
            token,
            join_token_file,
            path,
            file,
        })
    }

    /// Starts what sends what is recorded; nothing of the kind where no collector is named. Only what was told to Holm itself
    /// is refused: a variable that is not understood is meant for other programs as well, so `warn` hears of it and nothing
    /// is recorded.
    pub fn tracer(&self, warn: impl FnOnce(String)) -> anyhow::Result<Tracer> {
        match &self.traces {
            Ok(None) => Ok(Tracer::default()),
            Ok(Some(settings)) => Ok(Tracer::start(settings.clone()).unwrap_or_else(|problem| {
                warn(format!("nothing is recorded, as spans cannot be sent: {problem}"));
                Tracer::default()
            })),
            Err(refused) if refused.field.starts_with(OF_OTEL) => {
                warn(format!("nothing is recorded: {}", Usage::of(refused)));
                Ok(Tracer::default())
            }
            Err(refused) => Err(Usage::of(refused).into()),
        }
    }

    /// The file that `--token-file` or `HOLM_TOKEN_FILE` names.
    pub fn token_file(&self) -> Option<&Setting<PathBuf>> {
        self.token_file.as_ref()
    }

    /// Folders and files that no run may see, whatever an agent lends: where data, settings, tokens and other credentials are.
    pub fn guarded(&self) -> Vec<PathBuf> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        // The file as well: the folder may hold a link to it only.
        let own_folder = folder.file_name().is_some_and(|name| name == FOLDER).then(|| folder.to_owned());
        let of_contexts = self.file.contexts.values().filter_map(|entry| entry.token_file.as_ref());
        let tokens = of_contexts.map(|path| folder.join(path)).chain(self.token_file.iter().map(|it| it.value.clone()));
        let blobs = BlobsTold::of_file(self).guarded();
        let root_key = self.file.server.root_key_file.as_ref().map(|path| folder.join(path));
        let root_key = root_key.into_iter().chain(self.join_token_file.iter().map(|it| it.value.clone()));
        let own = [self.home.value.clone(), self.path.clone()].into_iter().chain(own_folder);
        own.chain(tokens).chain(blobs).chain(root_key).collect()
    }

    /// The file with the join token of an agent here, as `HOLM_JOIN_TOKEN_FILE` or the table `[agent]` names it.
    pub fn join_token_file(&self) -> Option<&Setting<PathBuf>> {
        self.join_token_file.as_ref()
    }

    /// Which server is meant, for who needs no token; nothing if it is that of this machine.
    pub fn endpoint(&self) -> anyhow::Result<Option<Endpoint>> {
        if let Some(server) = &self.server {
            return Endpoint::parse(&server.value).with_context(|| server.source.to_string()).map(Some);
        }
        let named = self.context.as_ref().filter(|context| context.value != LOCAL);
        named.map(|context| self.of_context(context).map(|(_, endpoint)| endpoint)).transpose()
    }

    fn of_context(&self, context: &Setting<String>) -> anyhow::Result<(&ContextEntry, Endpoint)> {
        let entry = self.file.contexts.get(&context.value).ok_or_else(|| self.no_context(context))?;
        let key = format!("contexts.{}.server", context.value);
        let endpoint = Endpoint::parse(&entry.server).with_context(|| format!("{}: {key}", self.path.display()))?;
        Ok((entry, endpoint))
    }

    /// Which server is meant, with its token.
    pub fn target(&self) -> anyhow::Result<Target> {
        if let Some(server) = &self.server {
            let endpoint = Endpoint::parse(&server.value).with_context(|| server.source.to_string())?;
            let token = match self.own_token()? {
                Some(token) => token,
                None => self.token_of_same_server(&endpoint)?.ok_or_else(|| no_token(&endpoint))?,
            };
            return Ok(Target::Named { endpoint, token });
        }
        let Some(context) = self.context.as_ref().filter(|context| context.value != LOCAL) else {
            return Ok(Target::Local);
        };
        let (entry, endpoint) = self.of_context(context)?;
        // A context that was named by a flag counts more than a variable of the environment.
        let by_flag = matches!(context.source, Source::Flag(_));
        let own = if by_flag { self.token_of_flag()? } else { self.own_token()? };
        let token = match own {
            Some(token) => token,
            None => self.token_of(&context.value, entry)?.ok_or_else(|| no_token(&endpoint))?,
        };
        Ok(Target::Named { endpoint, token })
    }

    fn no_context(&self, context: &Setting<String>) -> anyhow::Error {
        let names: Vec<&str> = self.file.contexts.keys().map(String::as_str).chain([LOCAL]).collect();
        anyhow!(
            "{}: there is no context `{}`; there is: {}; `holm login --as {} URL` makes one",
            context.source,
            context.value,
            names.join(", "),
            context.value
        )
    }

    fn token_of_flag(&self) -> anyhow::Result<Option<Setting<SecretString>>> {
        match &self.token_file {
            Some(file) if matches!(file.source, Source::Flag(_)) => read_token(&file.value, &file.source).map(Some),
            _ => Ok(None),
        }
    }

    /// The token that flags or environment give.
    fn own_token(&self) -> anyhow::Result<Option<Setting<SecretString>>> {
        if let Some(token) = self.token_of_flag()? {
            return Ok(Some(token));
        }
        if let Some(token) = &self.token {
            let value = check_token(token.value.expose_secret(), &token.source)?;
            return Ok(Some(Setting { value, source: token.source.clone() }));
        }
        self.token_file.as_ref().map(|file| read_token(&file.value, &file.source)).transpose()
    }

    fn token_of_same_server(&self, endpoint: &Endpoint) -> anyhow::Result<Option<Setting<SecretString>>> {
        let same = |entry: &ContextEntry| Endpoint::parse(&entry.server).is_ok_and(|other| other == *endpoint);
        match self.file.contexts.iter().find(|(_, entry)| same(entry)) {
            Some((name, entry)) => self.token_of(name, entry),
            None => Ok(None),
        }
    }

    fn token_of(&self, name: &str, entry: &ContextEntry) -> anyhow::Result<Option<Setting<SecretString>>> {
        let source = |key: &str| Source::File(self.path.clone(), format!("contexts.{name}.{key}"));
        match (&entry.token, &entry.token_file) {
            (Some(token), None) => {
                let value = check_token(token.expose_secret(), &source("token"))?;
                Ok(Some(Setting { value, source: source("token") }))
            }
            (None, Some(path)) => {
                let path = self.path.parent().unwrap_or(Path::new("/")).join(path);
                read_token(&path, &source("token_file")).map(Some)
            }
            (None, None) => Ok(None),
            (Some(_), Some(_)) => {
                bail!("{}: it has both `token` and `token_file`; remove one of them", source("token"))
            }
        }
    }
}

fn traces(
    global: &Global,
    env: &Environment,
    file: &ConfigFile,
    path: &Path,
) -> Result<Option<holm_trace::Settings>, InvalidField> {
    let at_file = format!("{}: otlp_endpoint", path.display());
    let flag = global.otlp_endpoint.as_deref().map(|url| Named { at: "--otlp-endpoint", url });
    let file = file.otlp_endpoint.as_deref().map(|url| Named { at: &at_file, url });
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let variable = |name: &'static str| env.get(name).map(|value| value.to_string_lossy().into_owned());
    holm_trace::Settings::read(flag, file, Some(&host), variable)
}

fn no_token(endpoint: &Endpoint) -> anyhow::Error {
    anyhow!("no token for {endpoint}: give --token-file FILE, set HOLM_TOKEN, or run `holm login {endpoint}`")
}

fn config_path(global: &Global, env: &Environment) -> anyhow::Result<PathBuf> {
    if let Some(path) = global.config.clone().or_else(|| env.get("HOLM_CONFIG").map(PathBuf::from)) {
        return std::path::absolute(&path).with_context(|| path.display().to_string());
    }
    let base = match env.get("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(base) => base,
        // Whoever has no home has no configuration either: a system service, most likely.
        None => PathBuf::from(env.get("HOME").map_or("/".as_ref(), OsString::as_os_str)).join(".config"),
    };
    Ok(base.join(FOLDER).join("config.toml"))
}

fn home(global: &Global, env: &Environment, file: &ConfigFile, of_file: Source) -> anyhow::Result<Setting<PathBuf>> {
    let (path, source) = if let Some(path) = &global.home {
        (path.clone(), Source::Flag("--home"))
    } else if let Some(path) = env.get("HOLM_HOME") {
        (path.into(), Source::Env("HOLM_HOME"))
    } else if let Some(path) = &file.home {
        (path.clone(), of_file)
    } else {
        (default_home(env)?, Source::Default)
    };
    let value = std::path::absolute(&path).with_context(|| format!("{source}: {}", path.display()))?;
    Ok(Setting { value, source })
}

fn default_home(env: &Environment) -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/holm"));
    }
    if let Some(state) = env.get("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        return Ok(state.join("holm"));
    }
    let home = env.get("HOME").context("neither HOLM_HOME nor HOME is set: give --home DIR")?;
    Ok(PathBuf::from(home).join(".local/state/holm"))
}

/// Reads a token from a file, `-` not included: a token that is typed belongs to `holm login`.
pub fn read_token(path: &Path, source: &Source) -> anyhow::Result<Setting<SecretString>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{source}: cannot read {}", path.display()))?;
    let text = SecretString::from(text);
    Ok(Setting { value: check_token(text.expose_secret(), source)?, source: source.clone() })
}

/// Accepts what a token can be, so that a placeholder or a file of another kind is refused by name (SPEC K4).
pub fn check_token(text: &str, source: &Source) -> anyhow::Result<SecretString> {
    let text = text.trim();
    if text.starts_with(JOIN_PREFIX) {
        bail!("{source}: this is a join token, by which a host enrols: give it to `holm agent` with --join-token-file");
    }
    if !has_secret(text, "holm_") {
        bail!("{source}: this is not a token: one is `holm_` and 43 characters, as `holm token create` prints it");
    }
    Ok(text.to_owned().into())
}

/// How join tokens begin.
const JOIN_PREFIX: &str = "holm_join_";

fn has_secret(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == 43 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    })
}

/// Reads the join token of a file that somebody has named, and refuses what is none.
pub fn read_join_token(file: &Setting<PathBuf>) -> Result<SecretString, String> {
    join_token_in(&file.value).map_err(|problem| format!("{}: {problem}", file.source))
}

/// The same; who named the file is left to the caller to say.
pub fn join_token_in(path: &Path) -> Result<SecretString, String> {
    let way_out = "`holm hosts join NAME` prints one";
    let text = std::fs::read_to_string(path).map(SecretString::from);
    let text = text.map_err(|error| format!("cannot read {}: {error}; {way_out}", path.display()))?;
    let token = text.expose_secret().trim();
    if !has_secret(token, JOIN_PREFIX) {
        return Err(format!(
            "{} has no join token: one is `{JOIN_PREFIX}` and 43 characters; {way_out}",
            path.display()
        ));
    }
    Ok(token.to_owned().into())
}

#[cfg(test)]
mod tests;
