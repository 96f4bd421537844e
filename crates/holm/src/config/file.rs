//! The configuration file: `$XDG_CONFIG_HOME/holm/config.toml`.
//!
//! What always holds: a key that is not known is refused with its line; what `login` and `context` change leaves comments
//! and order as they are; the file is replaced as a whole and readable by its owner only.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use holm_api::client::SecretString;
use serde::Deserialize;
use toml_edit::{DocumentMut, Item, Table, value};

/// What the file holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// The context that is used where none is named.
    pub context: Option<String>,
    /// Where a server of this machine keeps its data.
    pub home: Option<PathBuf>,
    /// The collector of traces, to whose URL `/v1/traces` is added: `http://127.0.0.1:4318`.
    pub otlp_endpoint: Option<String>,
    /// Servers by name.
    pub contexts: BTreeMap<String, ContextEntry>,
    /// What `holm server` and `holm up` are told.
    pub server: ServerTable,
    /// What `holm agent` and `holm up` are told.
    pub agent: AgentTable,
}

/// A server and how to speak to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextEntry {
    /// `https://…`, `http://…` or `unix:/PATH`.
    pub server: String,
    /// The token itself.
    pub token: Option<SecretString>,
    /// The file with the token, relative to the configuration file.
    pub token_file: Option<PathBuf>,
    /// The project of new runs.
    pub project: Option<String>,
}

/// The table `[server]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTable {
    /// `ADDRESS:PORT` or `unix:/PATH`.
    pub listen: Option<String>,
    /// `sqlite:PATH` or `postgres://…`.
    pub database: Option<SecretString>,
    /// `file:/PATH` or `s3://BUCKET/PREFIX`.
    pub blobs: Option<String>,
    /// The file with the credentials for the bucket, relative to the configuration file.
    pub blobs_credentials: Option<PathBuf>,
    /// The file with the root key, relative to the configuration file.
    pub root_key_file: Option<PathBuf>,
    /// How long a lease lasts: `30s`.
    pub lease_ttl: Option<String>,
    /// What is waited beyond the expiry of a lease: `5s`.
    pub lease_margin: Option<String>,
    /// How many times a run may be claimed.
    pub attempts_max: Option<u32>,
    /// What each org may have and do at most, by the names of the limits.
    pub org_limits: BTreeMap<String, u64>,
    /// How long after the end of a run its log is kept: `30d`.
    pub log_retention: Option<String>,
}

/// The table `[agent]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentTable {
    /// The name of the host.
    pub name: Option<String>,
    /// How many runs at once.
    pub runs_max: Option<u32>,
    /// The file with the join token by which the host enrols, relative to the configuration file.
    pub join_token_file: Option<PathBuf>,
    /// Addresses beside the public internet that runs may be allowed to connect to.
    #[serde(default)]
    pub reach: Vec<String>,
    /// Which name servers are asked for what runs connect to.
    #[serde(default)]
    pub name_servers: Vec<String>,
    /// A file of authorities that servers are trusted by, beside those of the host, relative to the configuration file.
    pub trust: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads the file; one that is not there is an empty one.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let Some(text) = read(path)? else { return Ok(Self::default()) };
        let mut file: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        file.agent.trust = file.agent.trust.map(|trust| folder.join(trust));
        Ok(file)
    }
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// A change to the file.
#[derive(Debug)]
pub enum Change<'a> {
    /// Keeps a server as a context and chooses it.
    Put {
        /// The name of the context.
        name: &'a str,
        /// The server.
        server: &'a str,
        /// The token.
        token: &'a str,
    },
    /// Chooses a context.
    Use(&'a str),
    /// Removes a context; if it is chosen, none is chosen afterwards.
    Remove(&'a str),
}

/// Changes the file, and makes it where it is not there.
pub fn change(path: &Path, change: &Change<'_>) -> anyhow::Result<()> {
    let text = read(path)?.unwrap_or_default();
    let mut document: DocumentMut = text.parse().with_context(|| path.display().to_string())?;
    apply(&mut document, change);
    let text = document.to_string();
    toml::from_str::<ConfigFile>(&text).with_context(|| path.display().to_string())?;
    replace(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn apply(document: &mut DocumentMut, change: &Change<'_>) {
    match change {
        Change::Put { name, server, token } => {
            let contexts = document.entry("contexts").or_insert_with(|| {
                let mut table = Table::new();
                table.set_implicit(true);
                Item::Table(table)
            });
            contexts[name] = match std::mem::take(&mut contexts[name]) {
                Item::None => Item::Table(Table::new()),
                old => old,
            };
            contexts[name]["server"] = value(*server);
            contexts[name]["token"] = value(*token);
            if let Some(table) = contexts[name].as_table_like_mut() {
                table.remove("token_file");
            }
            document["context"] = value(*name);
        }
        Change::Use(name) => document["context"] = value(*name),
        Change::Remove(name) => {
            if let Some(contexts) = document.get_mut("contexts").and_then(Item::as_table_like_mut) {
                contexts.remove(name);
            }
            if document.get("context").and_then(Item::as_str) == Some(*name) {
                document.remove("context");
            }
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // A file that is a link into a folder of dotfiles stays one.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!(".config.toml.{:016x}", rand::random::<u64>()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is told is why it was not written; a leftover of it is harmless.
        let _leftover = fs::remove_file(&temporary);
    }
    written
}

/// Whether others than the owner may read the file.
pub fn is_readable_by_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}
