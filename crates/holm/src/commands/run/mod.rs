//! `holm run`: submit a command, follow its output, end with its exit code.

mod attach;
mod progress;
pub mod signals;
pub mod spec;
mod traced;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use holm_api::{
    client::{Client, ClientError},
    runs::{CreateRun, RunView},
};
use holm_domain::{run::OutcomeKind, trace::TraceContext};

use crate::{session::Session, writeback};

/// How many times a submission is repeated that did not reach the server.
const CREATE_ATTEMPTS: u32 = 4;

/// The flags of `holm run`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Examples:
  holm run echo hello
  holm run -e CI=1 --dir . -m 2g --cpus 2 make test
  holm run --dir . --write-back -- cargo fmt
  holm run --image tar:rootfs.tar -u 1000:1000 -- /bin/sh -c 'id; ls /'
  holm run -d --timeout 1h --dir . ./nightly.sh

Exit codes:
  the command's own; 128 + N if signal N ended it; 124 after --timeout; 127 if the command is
  not there; 126 if it cannot be executed; 125 for everything that is Holm's fault or refusal.

Ctrl-C asks the command to end (SIGTERM, and SIGKILL ten seconds later), a second one kills it.")]
pub struct RunArgs {
    /// Print the id and do not wait
    #[arg(short, long)]
    pub detach: bool,
    /// Root file system: `host` (programs of the host, nothing else), `dir:PATH` or `tar:PATH`
    #[arg(long, visible_alias = "root", value_name = "IMAGE", default_value = "host")]
    pub image: String,
    /// Processors at most, such as 1.5 [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Memory at most, such as 512m [default: 1g]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Processes and threads at most [default: 1024]
    #[arg(long, visible_alias = "pids-limit", value_name = "N")]
    pub pids: Option<String>,
    /// What may be written to the root file system at most [default: 1g]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// What the command may print at most; past it the run is ended [default: 1g]
    #[arg(long, value_name = "SIZE")]
    pub log_limit: Option<String>,
    /// When the command is ended at the latest, such as 30s or 1h30m [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
    /// Set a variable; without `=VALUE` it is taken from this environment
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Read variables from a file, one `KEY=VALUE` or `KEY` a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Add a label by which the run is found
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Working directory inside [default: /work with --dir, else the user's home]
    #[arg(short, long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// User inside: `NAME`, `UID` or `UID:GID` [default: root, which is nobody on the host]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Bring a directory in as /work; what changes stays inside
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// After success copy what changed in --dir back; it is listed first
    #[arg(long, requires = "dir", conflicts_with = "detach")]
    pub write_back: bool,
    /// Show a directory or file of the host inside
    #[arg(long, short = 'v', visible_alias = "volume", value_name = "SRC:DST[:ro]")]
    pub mount: Vec<String>,
    /// Refuse to run where a limit cannot be enforced
    #[arg(long)]
    pub require_limits: bool,
    /// Let programs inside gain privileges inside (sudo)
    #[arg(long)]
    pub allow_sudo: bool,
    /// Let the run connect to HOST, by TCP on port 443 or another: `NAME[:PORT]`, `*.NAME[:PORT]` for all below a name,
    /// `ADDRESS[/LENGTH][:PORT]`, or `public[:PORT]` for the whole internet; may be repeated [default: nothing]
    #[arg(long, value_name = "HOST")]
    pub allow: Vec<String>,
    /// Add a secret to requests outside, where the run never sees it: `HOST[:PORT][/PATH]=bearer:NAME`, `…=basic:USER:NAME`,
    /// `…=header:FIELD:NAME`, `…=header:FIELD:token {NAME}` or `…=query:PARAMETER:NAME`, with methods in front perhaps
    /// (`GET api.example.org=…`). What it is for is allowed unless `--allow` names its host already; may be repeated
    #[arg(long, value_name = "HOST=KIND:NAME")]
    pub credential: Vec<String>,
    /// Refuse requests that bring a credential of their own to where one is added; otherwise they lose it
    #[arg(long, requires = "credential")]
    pub require_ours: bool,
    /// Set an environment variable to something that stands for a secret, for tools that insist on one; may be repeated
    #[arg(long, value_name = "VARIABLE=NAME", requires = "credential")]
    pub placeholder: Vec<String>,
    /// The runtime that must make the sandbox; `process` is the one there is so far
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
    /// Only on a host with this label (its `--host-label`); several must all be there
    #[arg(long, value_name = "KEY=VALUE")]
    pub on: Vec<String>,
    /// Count as submitted this many minutes earlier than it is, or later if negative: -1440 to 1440 [default: 0]
    #[arg(long, value_name = "MINUTES", allow_negative_numbers = true)]
    pub priority: Option<String>,
    /// Give the run up if no host has taken it within this time [default: as the server has it, one day]
    #[arg(long, value_name = "DURATION")]
    pub queue_timeout: Option<String>,
    /// The project of the run [env: HOLM_PROJECT]
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
    /// Say nothing of progress and of what is not enforced; errors and why a run ended are said all the same
    #[arg(short, long)]
    pub quiet: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Submits the run; attached unless `--detach` was given.
pub async fn execute(session: &Session, args: &RunArgs) -> anyhow::Result<u8> {
    let mut traced = traced::Traced::begin(session)?;
    let done = run(session, args, &mut traced).await;
    traced.end(&done).await;
    done
}

async fn run(session: &Session, args: &RunArgs, traced: &mut traced::Traced) -> anyhow::Result<u8> {
    let spec = spec::of_process(args)?;
    // From here on Ctrl-C ends the run, not only this process.
    let mut signals = signals::Interrupts::listen()?;
    let project = args.project.clone().or_else(|| session.config.project.as_ref().map(|p| p.value.clone()));
    let body = CreateRun { project, spec };
    let mut progress = progress::Progress::new(session, args.detach);
    let submitted = tokio::select! {
        submitted = progress.during(progress::server(session), submit(session, &body, traced.context())) => submitted,
        () = signals.third() => anyhow::bail!("interrupted before the server answered; the run may have been submitted"),
    };
    let (client, run) = submitted?;
    traced.saw(&run);
    if args.detach {
        if session.output.json {
            session.output.value(&run)?
        } else {
            session.output.line(run.id.to_string())?
        }
        return Ok(0);
    }
    let run = match attach::follow(session, &client, run, &mut signals, progress).await? {
        attach::End::Run(run) => *run,
        attach::End::Code(code) => return Ok(code),
    };
    traced.saw(&run);
    let Some(outcome) = &run.outcome else { anyhow::bail!("the server says that run {} ended, and not how", run.id) };
    if args.write_back && outcome.kind == OutcomeKind::Succeeded {
        let dir = body.spec.work_dir.as_ref().map(|dir| dir.source.as_str()).context("--write-back needs --dir")?;
        write_back(session, &client, &run, dir, &mut signals).await?;
    }
    Ok(u8::try_from(outcome.exit_code()).unwrap_or(125))
}

async fn write_back(
    session: &Session,
    client: &Client,
    run: &RunView,
    dir: &str,
    signals: &mut signals::Interrupts,
) -> anyhow::Result<()> {
    let archive = tokio::select! {
        archive = writeback::download(client, run.id) => archive?,
        () = signals.any() => anyhow::bail!("interrupted; nothing was written to {dir}"),
    };
    let output = session.output;
    writeback::write_back(archive, dir.as_ref(), |line| output.note(line))
        .with_context(|| format!("--write-back to {dir}"))
}

/// Sends the run. Its idempotency key makes it one run however often it is sent, so what did not arrive is sent again.
async fn submit(session: &Session, body: &CreateRun, trace: Option<TraceContext>) -> anyhow::Result<(Client, RunView)> {
    let key = format!("{:032x}", rand::random::<u128>());
    let mut wait = Duration::from_millis(50);
    for attempt in 1.. {
        let client = session.client().await?.traced(trace);
        match client.run_create(body, Some(&key)).await {
            Ok(run) => return Ok((client, run)),
            Err(error) if !may_try_again(&error) || attempt >= CREATE_ATTEMPTS => return Err(refused(error)),
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait *= 4;
    }
    anyhow::bail!("the run was never sent")
}

fn may_try_again(error: &ClientError) -> bool {
    error.is_transient() && error.limited().is_none() && !matches!(error, ClientError::Deadline { .. })
}

/// Names the flag instead of the field of the request.
fn refused(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Problem(problem) if problem.field.is_some() => {
            let flag = problem.field.as_deref().and_then(spec::flag_of);
            let name = flag.or(problem.field.as_deref()).map(|name| format!("{name}: ")).unwrap_or_default();
            anyhow::anyhow!("{name}{} ({})", problem.detail, problem.code)
        }
        other => other.into(),
    }
}
