//! The log of servers and agents: standard error, filtered by `HOLM_LOG`.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// What is logged where nobody says.
const DEFAULT_FILTER: &str = "info";

/// The variable that has the form of log lines.
const FORMAT: &str = "HOLM_LOG_FORMAT";

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The flags about logging.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// What is logged: a level (error, warn, info, debug, trace), or `TARGET=LEVEL,…`
    #[arg(long, env = "HOLM_LOG", hide_env_values = true, value_name = "FILTER", default_value = DEFAULT_FILTER)]
    pub log: String,
    /// The form of log lines
    #[arg(long, env = FORMAT, hide_env_values = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

impl LogArgs {
    /// The same for a shim, as variables of its environment.
    pub fn for_shims(&self) -> Vec<(&'static str, String)> {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        vec![("HOLM_LOG", self.log.clone()), (FORMAT, format.to_owned())]
    }
}

/// Starts logging for this process. Called once, by the servers only: a command says what it has to say by itself.
pub fn start(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log: `{}` is no filter", args.log))?;
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    // Otherwise a log line that nobody takes any more is told on the same standard error, by a macro that panics.
    let builder = builder.log_internal_errors(false);
    let started = match args.log_format {
        LogFormat::Text => builder.try_init(),
        // The one span around a line says of which attempt it is.
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Starts logging for a shim: to the standard error that it inherited from its agent, never failing its sandbox.
pub fn start_for_shim() {
    let filter = std::env::var("HOLM_LOG").ok().and_then(|filter| EnvFilter::try_new(filter).ok());
    let filter = filter.unwrap_or_else(|| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // The standard error may be a pipe whose reader went away together with the agent.
    let builder = builder.log_internal_errors(false);
    // Only a second start could fail, and there is none.
    let _already = match std::env::var(FORMAT).as_deref() {
        Ok("json") => builder.json().flatten_event(true).with_span_list(false).try_init(),
        _ => builder.try_init(),
    };
}
