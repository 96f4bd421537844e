//! `holm up`: server and agent in one process, with everything under one folder.
//!
//! The agent speaks to the server through the socket, as an agent elsewhere would. The order of the end: first the agent,
//! which still has to report, then the server, which drains its streams.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use holm_agent::{Shutdown, control::http::HttpControl};
use holm_api::client::{Client, Endpoint};
use holm_runtime::process::Lend;
use holm_server::{Config, Server};
use holm_trace::Tracer;
use tokio_util::sync::CancellationToken;

use super::{
    agent::{self, HostArgs},
    block_on, close, guarded, idle, logging, open_store, root_key,
    server::{Bound, ServeArgs, announce, bind, own_tokens, remove, take_restored},
    signals::{Asked, Signals},
    socket::{Listen, OwnSocket},
};
use crate::{
    config::{Source, read_token},
    home::Home,
    local::EXIT_LOCKED,
    session::Session,
    units,
};

/// How often a server looks whether its socket is there still.
const SOCKET_LOOK_EVERY: Duration = Duration::from_secs(5);

/// The flags of `holm up`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm up                                     on 127.0.0.1:4656, data in HOLM_HOME
  holm up --lend /srv/src                     runs may bring in what is below /srv/src
  HOLM_HOME=/tmp/h holm up --listen 127.0.0.1:0 --json

Commands of the same user on this machine find the server by themselves, through its socket.
SIGTERM leaves runs to the next `holm up`; SIGINT (Ctrl-C) ends them first.")]
pub struct UpArgs {
    /// Listen on the socket under the home only, and lend all of this host to runs: they are the user's own
    #[arg(long, conflicts_with_all = ["listen", "lend"])]
    pub private: bool,
    /// End after this time without requests and runs
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub idle_exit: Option<Duration>,
    /// Started in the background by another `holm`
    #[arg(long, hide = true)]
    pub detached: bool,
    /// What the server is told.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// What the agent is told.
    #[command(flatten)]
    pub host: HostArgs,
    /// Logging.
    #[command(flatten)]
    pub log: logging::LogArgs,
}

/// Serves and works until it is asked to end.
pub fn run(session: Session, args: UpArgs) -> anyhow::Result<u8> {
    logging::start(&args.log)?;
    let home = session.home();
    home.create().with_context(|| home.not_made())?;
    let lock = match home.lock().with_context(|| format!("cannot lock {}", home.0.display()))? {
        Ok(lock) => lock,
        Err(pid) => {
            let who = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
            let ends = match pid.filter(|_| !home.socket().exists()) {
                Some(pid) => format!("it has no socket, or not yet, so `kill {pid}` ends it"),
                None => "`holm down` ends it".to_owned(),
            };
            session.output.error(format!(
                "another `holm up`{who} serves {}; {ends}, --home DIR gives this one a place of its own",
                home.0.display()
            ));
            return Ok(EXIT_LOCKED);
        }
    };
    // Threads of the runtime may have to do with what is in the home to the last.
    lock.keep();
    block_on(session, |session, tracer| up(session, args, home, tracer))
}

/// Waits until the socket is not there any more. Then neither the own agent nor anybody else reaches this server; the next one
/// takes up what runs.
async fn lost(socket: &OwnSocket) -> Asked {
    while socket.is_there() {
        tokio::time::sleep(SOCKET_LOOK_EVERY).await;
    }
    tracing::error!(path = %socket.path().display(), "the socket was removed or replaced; this server ends");
    Asked::Leave
}

fn each_once(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort_unstable();
    paths.dedup();
    paths
}

async fn up(session: Session, args: UpArgs, home: Home, tracer: Tracer) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    let table = &session.config.file.server;
    let config = Config { private: args.private, tracer: tracer.clone(), ..args.serve.config(table, &home)? };
    let lends =
        if args.private { vec![Lend { prefix: PathBuf::from("/"), write: true }] } else { args.host.lends()? };
    let mut listens = vec![Listen::Unix(home.socket())];
    if !args.private {
        listens.extend(args.serve.listens(table)?);
    }
    let blobs = args.serve.blobs(&session.config)?;
    let store = open_store(&home, args.serve.database(table), &blobs).await?;
    let (config, root_key) = root_key::told(&session.config, &home, &args.serve, &store, config).await?;
    own_tokens(&home, &store, &config.clock).await?;
    let server = Server::new(config, store.clone())?;
    take_restored(&server, args.serve.restored).await?;
    let activity = server.activity();
    let Bound { listeners, urls, sockets } = bind(&listens).await?;
    let client = |path: PathBuf| -> anyhow::Result<Client> {
        let token = read_token(&path, &Source::Default)?.value;
        Ok(Client::new(Endpoint::Unix(home.socket()), token)?)
    };
    let (user, own) = (client(home.token())?, client(home.agent_token())?);
    let named = args.serve.database(table).map(guarded).transpose()?.unwrap_or_default();
    let guarded = each_once([session.config.guarded(), named, blobs.guarded(), vec![root_key]].concat());
    let lending = agent::Lending { lends, guarded };
    let telling = agent::Telling { tracer, log: &args.log };
    let agent = agent::agent(&home, HttpControl::new(own), &args.host, &session.config.file.agent, lending, telling)?;
    let stop_server = CancellationToken::new();
    let mut serving = tokio::spawn(server.serve(listeners, stop_server.clone()));
    if args.detached {
        tracing::info!(?urls, "listening");
    } else {
        announce(&session, &urls, &home)?;
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    let shutdown = async { told.await.unwrap_or(Shutdown::Leave) };
    let idle = idle::idle_for(args.idle_exit, &user, &activity);
    let asked = async {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            () = idle => Asked::Drain,
            lost = lost(&sockets[0]) => lost,
        };
        tracing::info!(?asked, "server and agent are to end");
        // The agent may have ended by itself meanwhile; then another branch says so.
        let _ended = tell.send(agent::shutdown_of(asked));
        signals.next().await;
    };
    tokio::select! {
        ended = agent.run(shutdown) => ended.context("the agent")?,
        served = &mut serving => {
            served.context("the server")?.context("the server")?;
            anyhow::bail!("the server ended before it was asked to");
        }
        () = asked => anyhow::bail!("asked to end twice; shims look after what still runs"),
    }
    // Runs ended with the agent: who follows one is told so before the server goes.
    tokio::select! {
        () = idle::settled(&activity) => {}
        _ = signals.next() => {}
    }
    stop_server.cancel();
    let cut = tokio::select! {
        served = serving => served.context("the server")?.context("the server")?,
        _ = signals.next() => anyhow::bail!("asked to end twice; connections were cut"),
    };
    let closed = close(&store).await;
    // Who comes now is to start another server, not to wait for this one.
    remove(&sockets)?;
    closed?;
    tracing::info!(cut, "server and agent have ended");
    Ok(0)
}
