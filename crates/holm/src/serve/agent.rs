//! `holm agent`: the agent of one host, for a server elsewhere.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use holm_agent::{Agent, Config, Shutdown, WaysOut, control::http::HttpControl};
use holm_api::client::Client;
use holm_domain::{
    host::Capacity,
    pressure::{PressureLimits, Stall},
};
use holm_runtime::{process::Lend, registry::Registry};
use holm_trace::Tracer;
use ipnet::IpNet;

use super::{
    block_on, label, logging, process_runtime,
    signals::{Asked, Signals},
};
use crate::{
    commands::{Usage, run::spec::host_labels},
    config::{self, Setting, Source, Target, file::AgentTable, read_join_token},
    home::Home,
    session::Session,
    units,
};

/// How long runs may take to end when the agent is to end them: ten seconds from SIGTERM to SIGKILL, and the flushing.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);
/// How labels begin by which an agent says how its host is.
const OWN_LABELS: &str = "holm.";
/// The port of name servers (RFC 1035, section 4.2).
const DNS_PORT: u16 = 53;
/// How many runs at once where nobody says.
const RUNS_MAX: u32 = 64;

/// A folder that stands for `/proc` where the pressure on the host is looked at, for tests; only in builds with debug
/// assertions.
const TEST_PROC: &str = "HOLM_TEST_PROC";

/// What an agent is told, on the command line or in the table `[agent]`.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// A name for people [default: the host's own]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How many runs at once [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub runs_max: Option<u32>,
    /// Memory for all runs [default: what the host has]
    #[arg(long = "host-memory", value_name = "SIZE")]
    pub memory: Option<String>,
    /// Take no runs while less than this is free where the agent's folder is [default: 256m]
    #[arg(long, value_name = "SIZE")]
    pub host_storage_floor: Option<String>,
    /// Take no runs while tasks of this host stall for more of the time than this, in percent; `off` for any or for all
    /// [default: memory-some=40,memory-full=10,io-full=off]
    #[arg(long, value_name = "LIMITS")]
    pub host_pressure: Option<String>,
    /// A folder of this host that runs may bring in or mount; without `:rw` for reading only; may be repeated
    #[arg(long, value_name = "PATH[:rw]")]
    pub lend: Vec<String>,
    /// Addresses that are not on the public internet and that runs may be allowed to connect to: private ones, or one of this
    /// host itself; may be repeated [default: none]
    #[arg(long = "host-reach", value_name = "RANGE")]
    pub reach: Vec<String>,
    /// Ask this name server for what runs connect to; may be repeated [default: those of /etc/resolv.conf]
    #[arg(long = "host-name-server", value_name = "ADDRESS[:PORT]")]
    pub name_servers: Vec<String>,
    /// A file of PEM with authorities that servers are trusted by where requests of runs are looked at, beside those of this
    /// host [default: none]
    #[arg(long = "host-trust", value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// A label of the host
    #[arg(long = "host-label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

/// The flags of `holm agent`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  (umask 77; holm hosts join host-7 > join-token)        at the server
  holm agent --server https://holm.example --join-token-file join-token --lend /srv/src

The host makes a key of its own and enrols it with the token, once; then the file is read no more.
With --token-file instead, the agent speaks with a token of the role `agent`.

Exit code 77: the key of this host was revoked, or its join token is used, revoked or expired.
Starting the agent anew does not help then: it needs a new join token.

SIGTERM leaves runs to the next agent, which takes them up if it comes before their leases end.
SIGINT (Ctrl-C) ends them first.")]
pub struct AgentArgs {
    /// The file with the join token (`holm hosts join`) by which this host enrols, if it has not yet [env:
    /// HOLM_JOIN_TOKEN_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    pub join_token_file: Option<PathBuf>,
    /// What the agent is told.
    #[command(flatten)]
    pub host: HostArgs,
    /// Logging.
    #[command(flatten)]
    pub log: logging::LogArgs,
}

impl HostArgs {
    /// What runs may see of this host.
    pub fn lends(&self) -> Result<Vec<Lend>, Usage> {
        let lend = |text: &String| {
            let (prefix, write) = match text.rsplit_once(':') {
                Some((prefix, "rw")) => (prefix, true),
                Some((prefix, "ro")) => (prefix, false),
                _ => (text.as_str(), false),
            };
            if !prefix.starts_with('/') {
                return Err(Usage::new("--lend", text, "give an absolute path, with `:rw` for writing"));
            }
            Ok(Lend { prefix: PathBuf::from(prefix), write })
        };
        self.lend.iter().map(lend).collect()
    }

    /// What connections of runs may lead to, and who is asked for names.
    fn ways_out(&self, table: &AgentTable) -> Result<WaysOut, Usage> {
        const WAY_OUT: &str = "give a range such as `10.0.0.0/8`, or one address";
        let chosen =
            |given: &[String], table: &[String]| if given.is_empty() { table.to_vec() } else { given.to_vec() };
        let range = |text: String| {
            let range: Option<IpNet> = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            let range = range.ok_or_else(|| Usage::new("--host-reach", &text, WAY_OUT))?;
            match range.trunc() == range {
                true => Ok(range),
                false => Err(Usage::new("--host-reach", &text, format!("give the whole range, `{}`", range.trunc()))),
            }
        };
        let server = |text: String| {
            let server: Option<SocketAddr> =
                text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|address| (address, DNS_PORT).into()));
            server.ok_or_else(|| Usage::new("--host-name-server", &text, "give an address, with a port or without"))
        };
        Ok(WaysOut {
            reach: chosen(&self.reach, &table.reach).into_iter().map(range).collect::<Result<_, _>>()?,
            name_servers: chosen(&self.name_servers, &table.name_servers)
                .into_iter()
                .map(server)
                .collect::<Result<_, _>>()?,
            trust: self.trusted(table)?,
        })
    }

    /// The file of authorities; one that is none would have runs fail that are not even here yet.
    fn trusted(&self, table: &AgentTable) -> Result<Option<PathBuf>, Usage> {
        let Some(path) = self.trust.as_ref().or(table.trust.as_ref()) else { return Ok(None) };
        let bad = |problem: String| Usage::new("--host-trust", &path.display().to_string(), problem);
        let path = std::path::absolute(path).map_err(|error| bad(error.to_string()))?;
        holm_shim::protocol::authorities(&path).map_err(|error| bad(error.to_string()))?;
        Ok(Some(path))
    }

    fn labels(&self) -> Result<BTreeMap<String, String>, Usage> {
        let labels = host_labels("--host-label", &self.labels)?;
        match labels.keys().find(|key| key.starts_with(OWN_LABELS)) {
            Some(own) => Err(Usage::new("--host-label", own, "labels that begin with `holm.` are the agent's own")),
            None => Ok(labels),
        }
    }

    fn pressure_limits(&self) -> Result<PressureLimits, Usage> {
        let mut limits = PressureLimits::default();
        let Some(text) = &self.host_pressure else { return Ok(limits) };
        if text == "off" {
            return Ok(PressureLimits::NONE);
        }
        for part in text.split(',') {
            let refused = |problem: &str| Usage::new("--host-pressure", part, problem);
            let names = "give memory-some, memory-full or io-full, `=`, and 1 to 100 or `off`; or `off` alone";
            let (stall, percent) = part.split_once('=').ok_or_else(|| refused(names))?;
            let stall = Stall::ALL.into_iter().find(|known| known.as_str() == stall).ok_or_else(|| refused(names))?;
            let percent = match percent {
                "off" => None,
                percent => {
                    let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
                    Some(percent.ok_or_else(|| refused("give 1 to 100 percent, or `off`"))?)
                }
            };
            limits.set(stall, percent);
        }
        Ok(limits)
    }

    fn capacity(&self, table: &AgentTable) -> anyhow::Result<Capacity> {
        let cpus = std::thread::available_parallelism().context("how many processors there are")?.get();
        let memory_bytes = match &self.memory {
            Some(text) => units::bytes(text).map_err(|problem| Usage::new("--host-memory", text, problem))?,
            None => memory_of_host()?,
        };
        let runs = self.runs_max.or(table.runs_max).unwrap_or(RUNS_MAX);
        Ok(Capacity { runs, cpus_milli: cpus as u64 * 1000, memory_bytes })
    }
}

fn memory_of_host() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|number| number.trim().parse::<u64>().ok());
    kib.and_then(|kib| kib.checked_mul(1024)).context("/proc/meminfo does not say MemTotal; give --host-memory")
}

/// Which paths of the host runs may see.
#[derive(Debug, Default)]
pub struct Lending {
    /// What is lent.
    pub lends: Vec<Lend>,
    /// What is never lent.
    pub guarded: Vec<PathBuf>,
}

/// How an agent tells what it does.
#[derive(Debug)]
pub struct Telling<'a> {
    /// Where what is recorded goes.
    pub tracer: Tracer,
    /// How it logs, and its shims with it.
    pub log: &'a logging::LogArgs,
}

/// An agent under `home` that speaks to `control`.
pub fn agent(
    home: &Home,
    control: HttpControl,
    args: &HostArgs,
    table: &AgentTable,
    lending: Lending,
    telling: Telling<'_>,
) -> anyhow::Result<Agent<HttpControl>> {
    label::keep(home)?;
    let name = match args.name.as_ref().or(table.name.as_ref()) {
        Some(name) => name.clone(),
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let mut config = Config::new(home.agent(), name, args.capacity(table)?);
    config.labels = args.labels()?;
    config.ways_out = args.ways_out(table)?;
    config.tracer = telling.tracer;
    config.shim.env = telling.log.for_shims();
    if let Some(text) = &args.host_storage_floor {
        config.storage_floor_bytes =
            units::bytes(text).map_err(|problem| Usage::new("--host-storage-floor", text, problem))?;
    }
    config.pressure_limits = args.pressure_limits()?;
    if let Some(dir) = std::env::var_os(TEST_PROC).filter(|_| cfg!(debug_assertions)) {
        config.proc_dir = dir.into();
    }
    let mut runtimes = Registry::new();
    runtimes.add(process_runtime(home, lending)?)?;
    Ok(Agent::new(config, control, runtimes))
}

/// How an agent goes away that was asked to.
pub fn shutdown_of(asked: Asked) -> Shutdown {
    match asked {
        Asked::Leave => Shutdown::Leave,
        Asked::Drain => Shutdown::Drain { within: DRAIN_WITHIN },
    }
}

/// Works until it is asked to end.
pub fn run(session: Session, args: AgentArgs) -> anyhow::Result<u8> {
    logging::start(&args.log)?;
    block_on(session, |session, tracer| work(session, args, tracer))
}

/// Whether an agent speaks with a token and not with a key of its own: what the command line says counts more than what the
/// environment, a file or its folder does.
fn has_token(token_file: Option<&Setting<PathBuf>>, join_token_file: Option<&Path>, is_enrolled: bool) -> bool {
    let is_told = token_file.is_some_and(|file| matches!(file.source, Source::Flag(_)));
    is_told || (join_token_file.is_none() && !is_enrolled)
}

/// How an agent of `home` says who it is: with a token that `--token-file` names; else with a key of its own where it is told a
/// join token or has enrolled before; else with the token of its settings.
fn control(
    config: &config::Config,
    home: &Home,
    join_token_file: Option<Setting<PathBuf>>,
) -> anyhow::Result<HttpControl> {
    const NO_SERVER: &str = "an agent needs a server: give --server URL and --join-token-file FILE (`holm hosts join NAME` \
                             makes the token), or start `holm up` for both in one";
    let join_token_path = join_token_file.as_ref().map(|file| file.value.as_path());
    if has_token(config.token_file(), join_token_path, holm_agent::is_enrolled(&home.agent())) {
        let Target::Named { endpoint, token } = config.target()? else { bail!(NO_SERVER) };
        return Ok(HttpControl::new(Client::new(endpoint, token.value)?));
    }
    let Some(endpoint) = config.endpoint()? else { bail!(NO_SERVER) };
    let join_token = move || match &join_token_file {
        Some(file) => read_join_token(file),
        None => Err("give --join-token-file FILE; `holm hosts join NAME` makes one".to_owned()),
    };
    Ok(HttpControl::with_own_key(Client::anonymous(endpoint)?, Box::new(join_token)))
}

async fn work(session: Session, args: AgentArgs, tracer: Tracer) -> anyhow::Result<u8> {
    let AgentArgs { join_token_file, host: args, log } = args;
    let mut signals = Signals::listen()?;
    let home = session.home();
    let of_flag = join_token_file.as_ref().map(std::path::absolute).transpose().context("--join-token-file")?;
    let of_flag = of_flag.map(|value| Setting { value, source: Source::Flag("--join-token-file") });
    let join_token_file = of_flag.or_else(|| session.config.join_token_file().cloned());
    let guarded = session.config.guarded().into_iter();
    let guarded = guarded.chain(join_token_file.as_ref().map(|file| file.value.clone())).collect();
    let control = control(&session.config, &home, join_token_file)?;
    home.create().with_context(|| home.not_made())?;
    let lending = Lending { lends: args.lends()?, guarded };
    let telling = Telling { tracer, log: &log };
    let agent = agent(&home, control, &args, &session.config.file.agent, lending, telling)?;
    let (tell, told) = tokio::sync::oneshot::channel();
    let asked = async {
        let asked = signals.next().await;
        tracing::info!(?asked, "the agent is to end");
        // The agent may have ended by itself meanwhile; then the other branch says so.
        let _ended = tell.send(shutdown_of(asked));
        signals.next().await;
    };
    let shutdown = async { told.await.unwrap_or(Shutdown::Leave) };
    tokio::select! {
        ended = agent.run(shutdown) => ended?,
        () = asked => bail!("asked to end twice; shims look after what still runs"),
    }
    tracing::info!("the agent has ended");
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        host: HostArgs,
    }

    fn limits(text: &str) -> Result<PressureLimits, String> {
        let flags = Flags::try_parse_from(["holm", "--host-pressure", text]).unwrap();
        flags.host.pressure_limits().map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_that_the_command_line_names_counts_more_than_a_key() {
        let named = |source| Setting { value: PathBuf::from("token"), source };
        let (flag, env) = (named(Source::Flag("--token-file")), named(Source::Env("HOLM_TOKEN_FILE")));
        let join = Some(Path::new("join-token"));
        for (join, is_enrolled) in [(None, false), (join, false), (None, true), (join, true)] {
            assert!(has_token(Some(&flag), join, is_enrolled));
            let has_key = join.is_some() || is_enrolled;
            assert_eq!(has_token(Some(&env), join, is_enrolled), !has_key);
            assert_eq!(has_token(None, join, is_enrolled), !has_key);
        }
    }

    #[test]
    fn limits_of_pressure_are_set_one_by_one() {
        let usual = PressureLimits::default();
        assert_eq!(limits("io-full=100"), Ok(PressureLimits { io_full_percent: Some(100), ..usual }));
        let two = PressureLimits { memory_some_percent: None, memory_full_percent: Some(1), ..usual };
        assert_eq!(limits("memory-some=off,memory-full=1"), Ok(two));
        assert_eq!(limits("off"), Ok(PressureLimits::NONE));
        assert_eq!(Flags::try_parse_from(["holm"]).unwrap().host.pressure_limits().ok(), Some(usual));
    }

    #[test]
    fn nonsense_for_limits_of_pressure_is_refused() {
        for text in [
            "",
            "on",
            "io-full",
            "io-full=",
            "cpu-full=5",
            "io-full=0",
            "io-full=101",
            "io-full=1.5",
            "off,",
            "io-full=-1",
        ] {
            let problem = limits(text).unwrap_err();
            assert!(problem.contains("--host-pressure") && problem.contains("1 to 100"), "{text}: {problem}");
        }
    }
}
