//! What the commands do, one file each.

mod advice;
pub mod audit;
pub mod cancel;
pub mod completion;
pub mod config;
pub mod context;
pub mod doctor;
pub mod down;
pub mod egress;
pub mod events;
pub mod hosts;
pub mod keys;
pub mod login;
pub mod logs;
pub mod man;
pub mod org;
mod pools;
pub mod ps;
pub mod rm;
pub mod run;
pub mod secret;
pub mod show;
pub mod token;
pub mod top;
mod waiting;
pub mod way_out;

use holm_domain::{UnixMicros, error::InvalidField, run::RunState};

use crate::{cli, session::Session};

/// A value that cannot be: the flag, what was typed, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: `{}` is not accepted: {problem}", crate::output::escaped(value))]
pub struct Usage {
    flag: String,
    value: String,
    problem: String,
}

impl Usage {
    /// `problem` says what would be accepted.
    pub fn new(flag: &str, value: &str, problem: impl Into<String>) -> Self {
        let value = value.chars().take(256).collect();
        Self { flag: flag.to_owned(), value, problem: problem.into() }
    }

    /// The same of a setting that was refused.
    pub fn of(refused: &InvalidField) -> Self {
        Self::new(&refused.field, &refused.value, refused.problem.as_str())
    }
}

/// Executes a command that speaks to a server or looks at this machine; the servers themselves are in [`crate::serve`].
pub async fn execute(session: &Session, command: &cli::Command) -> anyhow::Result<u8> {
    use cli::Command;
    match command {
        Command::Run(args) => run::execute(session, args).await,
        Command::Ps(args) => ps::execute(session, args).await,
        Command::Top(args) => top::execute(session, args).await,
        Command::Show { runs, egress: true } => egress::execute(session, runs).await,
        Command::Show { runs, egress: false } => show::execute(session, runs).await,
        Command::Logs(args) => logs::execute(session, args).await,
        Command::Events { run, follow } => events::execute(session, *run, *follow).await,
        Command::Cancel { runs, kill } => cancel::execute(session, runs, *kill).await,
        Command::Rm { runs } => rm::execute(session, runs).await,
        Command::Hosts { command: None } => hosts::execute(session).await,
        Command::Hosts { command: Some(cli::Hosts::Cordon { host }) } => {
            hosts::cordon::execute(session, host, true).await
        }
        Command::Hosts { command: Some(cli::Hosts::Uncordon { host }) } => {
            hosts::cordon::execute(session, host, false).await
        }
        Command::Hosts { command: Some(cli::Hosts::Drain(args)) } => hosts::drain::execute(session, args).await,
        Command::Hosts { command: Some(cli::Hosts::Join(args)) } => hosts::join::execute(session, args).await,
        Command::Hosts { command: Some(cli::Hosts::Joins) } => hosts::join::list(session).await,
        Command::Hosts { command: Some(cli::Hosts::Revoke { host }) } => hosts::revoke::execute(session, host).await,
        Command::Keys(cli::Keys::Ls) => keys::ls::execute(session).await,
        Command::Keys(cli::Keys::Rotate(args)) => keys::rotate::execute(session, args).await,
        Command::Keys(cli::Keys::Withdraw { keys }) => keys::withdraw::execute(session, keys).await,
        Command::Org(cli::Org::Create { name }) => org::create(session, name).await,
        Command::Org(cli::Org::Ls) => org::list(session).await,
        Command::Pools(cli::Pools::Ls) => pools::list(session).await,
        Command::Pools(cli::Pools::Add { pool, host }) => pools::add(session, pool, host).await,
        Command::Pools(cli::Pools::Remove { pool, host }) => pools::remove(session, pool, host).await,
        Command::Pools(cli::Pools::Share { pool, org }) => pools::share(session, pool, org).await,
        Command::Pools(cli::Pools::Unshare { pool, org }) => pools::unshare(session, pool, org).await,
        Command::Org(cli::Org::Limits(cli::OrgLimits::Show { org })) => org::show(session, org.as_deref()).await,
        Command::Org(cli::Org::Limits(cli::OrgLimits::Set { org, limits })) => org::set(session, org, limits).await,
        Command::Token(cli::Token::Create(args)) => token::create::execute(session, args).await,
        Command::Token(cli::Token::Ls) => token::ls::execute(session).await,
        Command::Token(cli::Token::Revoke { tokens }) => token::revoke::execute(session, tokens).await,
        Command::Secret(cli::Secret::Set(args)) => secret::set::execute(session, args).await,
        Command::Secret(cli::Secret::Rotate(args)) => secret::rotate::execute(session, args).await,
        Command::Secret(cli::Secret::Bind(args)) => secret::bind::execute(session, args).await,
        Command::Secret(cli::Secret::Ls) => secret::ls::execute(session).await,
        Command::Secret(cli::Secret::Rm(args)) => secret::rm::execute(session, args).await,
        Command::Audit(args) => audit::execute(session, args).await,
        Command::Login(args) => login::execute(session, args).await,
        Command::Context(cli::Context::Ls) => context::ls::execute(session),
        Command::Context(cli::Context::Use { name }) => context::choose::execute(session, name),
        Command::Context(cli::Context::Rm { name }) => context::rm::execute(session, name),
        Command::Config(cli::ConfigCommand::Check { offline }) => config::check::execute(session, *offline).await,
        Command::Doctor => doctor::execute(session).await,
        Command::Down(args) => down::execute(session, args).await,
        Command::Completion { shell } => completion::execute(session, shell),
        Command::Man { dir, markdown } => man::execute(session, dir.as_deref(), *markdown),
        Command::Openapi => crate::serve::openapi(session),
        Command::Up(_) | Command::Server(_) | Command::Agent(_) => anyhow::bail!("servers are not commands"),
    }
}

/// An instant for people and for programs: RFC 3339 in UTC.
pub fn instant(at: UnixMicros) -> String {
    match jiff::Timestamp::from_microsecond(at.0) {
        Ok(timestamp) => format!("{timestamp:.0}"),
        Err(_) => format!("{} µs", at.0),
    }
}

/// The time of day.
pub fn now() -> UnixMicros {
    UnixMicros(jiff::Timestamp::now().as_microsecond())
}

/// How long ago it was, by the clock of this machine.
pub fn ago(at: UnixMicros) -> String {
    format!("{} ago", crate::units::show_age(now().since(at)))
}

/// A run's state in a word, with how it ended.
pub fn status(run: &holm_api::runs::RunView) -> (crate::output::Tone, String) {
    use crate::output::Tone;
    let Some(outcome) = &run.outcome else {
        let is_well = matches!(run.state, RunState::Running | RunState::Finishing);
        let tone = if is_well { Tone::Good } else { Tone::Warn };
        return (tone, run.state.as_str().to_owned());
    };
    use holm_domain::run::OutcomeKind;
    let (tone, word) = match outcome.kind {
        OutcomeKind::Succeeded => (Tone::Good, "succeeded"),
        OutcomeKind::Failed => (Tone::Bad, "failed"),
        OutcomeKind::Cancelled => (Tone::Warn, "cancelled"),
        OutcomeKind::TimedOut => (Tone::Bad, "timed out"),
        OutcomeKind::Lost => (Tone::Bad, "lost"),
    };
    let code = outcome.exit_code();
    (tone, if code == 0 { word.to_owned() } else { format!("{word} ({code})") })
}

/// Does `act` for each id; the rest goes on when one fails, and the exit code tells.
pub async fn for_each<Id: Copy + std::fmt::Display, F, T>(
    session: &Session,
    ids: &[Id],
    act: impl Fn(Id) -> F,
    done: impl Fn(&T) -> anyhow::Result<()>,
) -> anyhow::Result<u8>
where
    F: Future<Output = Result<T, holm_api::client::ClientError>>,
{
    let mut failed = false;
    for id in ids {
        match act(*id).await {
            Ok(answer) => done(&answer)?,
            Err(error) => {
                failed = true;
                session.output.error(format!("{id}: {error}"));
            }
        }
    }
    Ok(u8::from(failed))
}
