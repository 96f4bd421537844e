//! `holm server`: the control plane alone.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use holm_api::client::SecretString;
use holm_domain::{
    access::Role,
    limits::LeaseConfig,
    org_limits::{OrgLimits, OrgOverrides},
};
use holm_server::{
    Clock, Config, LOG_RETENTION_MIN, Listener, STORAGE_FLOOR_BYTES, Server, StorageFloor, Wanted, bootstrap,
};
use holm_store::Store;
use holm_trace::Tracer;
use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;

use super::{
    blobs::BlobsTold,
    block_on, close, logging, open_store, root_key,
    signals::Signals,
    socket::{Listen, OwnSocket},
    write_whole,
};
use crate::{
    commands::Usage,
    config::{Config as Settings, file::ServerTable, read_token},
    home::Home,
    session::Session,
    units,
};

/// Where a server listens that was not told.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:4656";

/// What a server is told, on the command line or in the table `[server]`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Where to listen: ADDRESS:PORT (port 0 is any) or unix:/PATH; may be repeated [default: 127.0.0.1:4656]
    #[arg(long, value_name = "WHERE")]
    pub listen: Vec<String>,
    /// The database: sqlite:PATH or postgres://USER:PASSWORD@HOST/NAME [default: SQLite under the home]
    #[arg(long, env = "HOLM_DATABASE", hide_env_values = true, value_name = "URL")]
    pub database: Option<SecretString>,
    /// Where large objects are kept: file:/PATH or s3://BUCKET/PREFIX, with ?endpoint=URL where it is not AWS [default: a folder under the home]
    #[arg(long, env = "HOLM_BLOBS", hide_env_values = true, value_name = "URL")]
    pub blobs: Option<String>,
    /// The file with the credentials for the bucket, as ~/.aws/credentials has them [default: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY]
    #[arg(long, value_name = "FILE")]
    pub blobs_credentials: Option<PathBuf>,
    /// The file with the root key, which opens the keys in the database; servers on one database share it [default: root-key under the home, made at the first start]
    #[arg(long, env = "HOLM_ROOT_KEY_FILE", value_name = "FILE")]
    pub root_key_file: Option<PathBuf>,
    /// How long a lease lasts [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub lease_ttl: Option<String>,
    /// What is waited beyond the expiry of a lease before a run is granted anew, at least a fiftieth of the lease [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub lease_margin: Option<String>,
    /// Take no runs and no output while less than this is free where the server's folder is [default: 256m]
    #[arg(long, value_name = "SIZE")]
    pub storage_floor: Option<String>,
    /// Delete the log of a run this long after its end; the run itself stays [default: keep it for ever]
    #[arg(long, value_name = "DURATION")]
    pub log_retention: Option<String>,
    /// What each org may have and do at most, on all servers together: `holm org limits show` has the names; may be repeated
    #[arg(long, value_name = "LIMIT=VALUE")]
    pub org_limit: Vec<String>,
    /// How many times a run may be claimed before it is lost [default: 3]
    #[arg(long, value_name = "N")]
    pub attempts_max: Option<u32>,
    /// The database is a restored copy: no lease of before counts, and no run is granted until each has run out. At the first
    /// start after a restore, with the same times of leases, and on one server before the others start
    #[arg(long)]
    pub restored: bool,
}

/// The flags of `holm server`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm server
  holm server --listen 0.0.0.0:4656 --database postgres://holm@db/holm --blobs s3://holm-blobs

The server speaks plain HTTP; put a proxy with TLS in front of it where others share the network.
The first start on an empty database writes a token with the role admin to HOLM_HOME/token, and the
root key to HOLM_HOME/root-key: keep a copy of it, and give it to further servers on the database.")]
pub struct ServerArgs {
    /// What the server is told.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Logging.
    #[command(flatten)]
    pub log: logging::LogArgs,
}

impl ServeArgs {
    /// Where to listen: flags, or the file, or the default.
    pub fn listens(&self, table: &ServerTable) -> Result<Vec<Listen>, Usage> {
        if !self.listen.is_empty() {
            return self.listen.iter().map(|text| Listen::parse("--listen", text)).collect();
        }
        let text = table.listen.as_deref().unwrap_or(DEFAULT_LISTEN);
        Ok(vec![Listen::parse("server.listen", text)?])
    }

    /// The database that was named, if one was.
    pub fn database<'a>(&'a self, table: &'a ServerTable) -> Option<&'a SecretString> {
        self.database.as_ref().or(table.database.as_ref())
    }

    /// Where large objects are to be kept.
    pub fn blobs(&self, config: &Settings) -> Result<BlobsTold, Usage> {
        let of_file = BlobsTold::of_file(config);
        let told = BlobsTold {
            at: if self.blobs.is_some() { "--blobs" } else { of_file.at },
            place: self.blobs.clone().or(of_file.place),
            credentials: self.blobs_credentials.clone().or(of_file.credentials),
        };
        told.check()?;
        Ok(told)
    }

    /// How the server works; times that cannot be are refused by the flag.
    pub fn config(&self, table: &ServerTable, home: &Home) -> Result<Config, Usage> {
        let mut lease = LeaseConfig::default();
        let ttl = self.lease_ttl.as_ref().or(table.lease_ttl.as_ref());
        let margin = self.lease_margin.as_ref().or(table.lease_margin.as_ref());
        let attempts = self.attempts_max.or(table.attempts_max);
        for (flag, text, target) in
            [("--lease-ttl", ttl, &mut lease.ttl), ("--lease-margin", margin, &mut lease.margin)]
        {
            if let Some(text) = text {
                *target = units::duration(text).map_err(|problem| Usage::new(flag, text, problem))?;
            }
        }
        lease.attempts_max = attempts.unwrap_or(lease.attempts_max);
        lease.validate().map_err(|invalid| {
            let flag = match invalid.field.as_str() {
                "lease.ttl" => "--lease-ttl",
                "lease.margin" => "--lease-margin",
                "lease.attempts_max" => "--attempts-max",
                other => other,
            };
            Usage::new(flag, &invalid.value, &invalid.problem)
        })?;
        let bytes = match &self.storage_floor {
            Some(text) => units::bytes(text).map_err(|problem| Usage::new("--storage-floor", text, problem))?,
            None => STORAGE_FLOOR_BYTES,
        };
        let storage = Some(StorageFloor { dir: home.server(), bytes });
        let retention = self.log_retention.as_ref().or(table.log_retention.as_ref());
        let log_retention = retention
            .map(|text| log_retention(text).map_err(|problem| Usage::new("--log-retention", text, problem)))
            .transpose()?;
        let org_limits = Some(self.org_limits(table)?);
        Ok(Config { lease, storage, log_retention, org_limits, ..Config::default() })
    }

    /// What each org may have and do at most: flags before the file.
    fn org_limits(&self, table: &ServerTable) -> Result<OrgLimits, Usage> {
        let mut told = OrgOverrides::default();
        for (name, value) in &table.org_limits {
            let text = format!("{name}={value}");
            told.set_text(&text).map_err(|problem| Usage::new("server.org_limits", &text, problem))?;
        }
        for text in &self.org_limit {
            told.set_text(text).map_err(|problem| Usage::new("--org-limit", text, problem))?;
        }
        Ok(OrgLimits::default().with(&told))
    }
}

/// Reads for how long logs are kept.
pub fn log_retention(text: &str) -> Result<Duration, String> {
    let retention = units::duration(text)?;
    if retention < LOG_RETENTION_MIN {
        return Err(format!("give at least {}", units::show_duration(LOG_RETENTION_MIN)));
    }
    Ok(retention)
}

/// Serves until it is asked to end.
pub fn run(session: Session, args: ServerArgs) -> anyhow::Result<u8> {
    logging::start(&args.log)?;
    block_on(session, |session, tracer| serve(session, args.serve, tracer))
}

async fn serve(session: Session, args: ServeArgs, tracer: Tracer) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let home = session.home();
    let table = &session.config.file.server;
    let (config, listens, blobs) = (args.config(table, &home)?, args.listens(table)?, args.blobs(&session.config)?);
    home.create().with_context(|| home.not_made())?;
    let store = open_store(&home, args.database(table), &blobs).await?;
    // Before anything else is made in a database: it may be that of servers with another root key.
    let (config, _) = root_key::told(&session.config, &home, &args, &store, config).await?;
    first_token(&home, &store, &config.clock).await?;
    let Bound { listeners, urls, sockets } = bind(&listens).await?;
    let server = Server::new(Config { tracer, ..config }, store.clone())?;
    take_restored(&server, args.restored).await?;
    let shutdown = CancellationToken::new();
    announce(&session, &urls, &home)?;
    let asked = async {
        let asked = signals.next().await;
        tracing::info!(?asked, "the server is to end");
        shutdown.cancel();
        signals.next().await;
    };
    let cut = tokio::select! {
        served = server.serve(listeners, shutdown.clone()) => served?,
        () = asked => anyhow::bail!("asked to end twice; connections were cut"),
    };
    let closed = close(&store).await;
    remove(&sockets)?;
    closed?;
    tracing::info!(cut, "the server has ended");
    Ok(0)
}

/// Takes the database as a restored copy, if it is one.
pub async fn take_restored(server: &Server, is_restored: bool) -> anyhow::Result<()> {
    if is_restored {
        let runs =
            server.restored().await.map_err(anyhow::Error::msg).context("cannot take the database as restored")?;
        tracing::warn!(
            runs,
            "the database is a restored copy: its leases count no more, and its runs wait until all have run out"
        );
    }
    Ok(())
}

/// Where a server listens.
#[derive(Debug, Default)]
pub struct Bound {
    /// What it listens on.
    pub listeners: Vec<Listener>,
    /// Under which URLs it is reached.
    pub urls: Vec<String>,
    /// The sockets that it made, in the order in which they were named.
    pub sockets: Vec<OwnSocket>,
}

/// Binds everything, so that nothing is served before all of it is there.
pub async fn bind(listens: &[Listen]) -> anyhow::Result<Bound> {
    let mut bound = Bound::default();
    for listen in listens {
        let (listener, url, socket) = listen.bind().await?;
        bound.listeners.push(listener);
        bound.urls.push(url);
        bound.sockets.extend(socket);
    }
    Ok(bound)
}

/// Removes what a server made that has ended.
pub fn remove(sockets: &[OwnSocket]) -> anyhow::Result<()> {
    sockets.iter().try_for_each(OwnSocket::remove)
}

/// Says where the server is and where its token: to whoever started it, on standard output.
pub fn announce(session: &Session, urls: &[String], home: &Home) -> anyhow::Result<()> {
    let (output, token) = (session.output, home.token());
    let token_file = token.exists().then_some(&token);
    if output.json {
        output.value_line(&serde_json::json!({
            "urls": urls,
            "token_file": token_file,
            "home": home.0,
            "pid": std::process::id(),
        }))?;
        return Ok(());
    }
    for url in urls {
        output.line(format!("listening on  {url}"))?;
    }
    if let Some(path) = token_file {
        output.line(format!("token in      {}", path.display()))?;
    }
    Ok(())
}

/// Whoever starts the first server on an empty database gets a token for it; with others about, nobody gets one unasked.
async fn first_token(home: &Home, store: &Store, clock: &Clock) -> anyhow::Result<()> {
    let made = bootstrap(store, clock, Wanted::default()).await?;
    let tokens = store.token_list(made.org).await?;
    if tokens.iter().any(|token| token.role == Role::Admin && token.is_live(clock.now())) {
        return Ok(());
    }
    let made = bootstrap(store, clock, Wanted { admin: true, agent: false }).await?;
    keep(&home.token(), made.admin.as_ref())
}

/// The tokens of a server with its agent beside it; made where they are missing, or were made for another database.
pub async fn own_tokens(home: &Home, store: &Store, clock: &Clock) -> anyhow::Result<()> {
    let wanted = Wanted {
        admin: !works(store, clock, &home.token(), Role::Admin).await?,
        agent: !works(store, clock, &home.agent_token(), Role::Agent).await?,
    };
    let made = bootstrap(store, clock, wanted).await?;
    keep(&home.token(), made.admin.as_ref())?;
    keep(&home.agent_token(), made.agent.as_ref())
}

async fn works(store: &Store, clock: &Clock, path: &std::path::Path, role: Role) -> anyhow::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let Ok(token) = read_token(path, &crate::config::Source::Default) else { return Ok(false) };
    let found = store.token_by_hash(&holm_server::auth::hash(token.value.expose_secret())).await?;
    Ok(found.is_some_and(|token| token.role == role && token.is_live(clock.now())))
}

fn keep(path: &std::path::Path, secret: Option<&SecretString>) -> anyhow::Result<()> {
    let Some(secret) = secret else { return Ok(()) };
    write_whole(path, format!("{}\n", secret.expose_secret()).as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}
