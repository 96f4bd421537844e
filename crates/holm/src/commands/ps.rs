//! `holm ps`: runs, newest first.

use clap::Args;
use holm_api::runs::{ListRuns, RunView};
use holm_domain::{RunId, run::RunState};

use super::{Usage, ago, status};
use crate::{
    output::{Cell, escaped},
    session::Session,
};

/// The longest command that a table shows, in characters.
const COMMAND_CHARS_MAX: usize = 40;
/// The most runs that the server gives at once.
const PAGE: u32 = 200;

/// The flags of `holm ps`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm ps                      what goes on now
  holm ps -a -n 20             the newest twenty, ended ones too
  holm ps -a -l job=nightly --state ended
  holm ps -q | xargs -r holm cancel")]
pub struct PsArgs {
    /// Also runs that have ended
    #[arg(short, long)]
    pub all: bool,
    /// The newest N at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub last: u32,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Only runs with this label; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// Only runs in this state: queued, claimed, running, paused, resuming, finishing, ended
    #[arg(long, value_name = "STATE")]
    pub state: Vec<String>,
    /// Only runs of this project
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
}

/// Lists runs.
pub async fn execute(session: &Session, args: &PsArgs) -> anyhow::Result<u8> {
    let query = query(args)?;
    let client = session.client().await?;
    let (mut runs, mut unreadable) = (Vec::<RunView>::new(), Vec::new());
    let mut cursor = None;
    while (runs.len() as u32) < args.last {
        let limit = Some((args.last - runs.len() as u32).min(PAGE));
        let page = client.run_list(&ListRuns { limit, cursor, ..query.clone() }).await?;
        cursor = page.next_cursor;
        runs.extend(page.runs);
        unreadable.extend(page.unreadable);
        if cursor.is_none() {
            break;
        }
    }
    let output = session.output;
    if output.json {
        output.value(&runs)?;
    } else if args.quiet {
        runs.iter().try_for_each(|run| output.line(run.id.to_string()))?;
    } else {
        let rows: Vec<[Cell; 4]> = runs.iter().map(row).collect();
        output.table(["RUN", "COMMAND", "CREATED", "STATUS"], &rows)?;
    }
    if let Some(told) = told_unreadable(&unreadable) {
        output.error(told);
    }
    Ok(0)
}

/// What is said of runs that a list cannot show; nothing where it shows all.
pub fn told_unreadable(ids: &[RunId]) -> Option<String> {
    let named = ids.iter().map(RunId::to_string).collect::<Vec<_>>().join(", ");
    let (what, why) =
        if ids.len() == 1 { ("run", "its row in the database is") } else { ("runs", "their rows in the database are") };
    let told = format!("{} {what} cannot be read, because {why} damaged: {named}", ids.len());
    (!ids.is_empty()).then_some(told)
}

fn row(run: &RunView) -> [Cell; 4] {
    let (tone, word) = status(run);
    let status = match run.ended_at {
        Some(at) => format!("{word}, {}", ago(at)),
        None => word,
    };
    [run.id.to_string().into(), command(&run.spec.argv).into(), ago(run.queued_at).into(), Cell(tone, status)]
}

/// A command as one would type it, cut where it is too long.
pub fn command(argv: &[String]) -> String {
    let quoted: Vec<String> = argv.iter().map(|argument| quote(argument)).collect();
    let text = quoted.join(" ");
    if text.chars().count() <= COMMAND_CHARS_MAX {
        return text;
    }
    text.chars().take(COMMAND_CHARS_MAX - 1).chain(['…']).collect()
}

fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", escaped(argument).replace('\'', "'\\''"))
}

fn query(args: &PsArgs) -> Result<ListRuns, Usage> {
    let words: Vec<&str> = RunState::ALL.iter().map(|state| state.as_str()).collect();
    for state in &args.state {
        if RunState::parse(state).is_none() {
            return Err(Usage::new("--state", state, format!("give one of {}", words.join(", "))));
        }
    }
    let state = match (args.state.is_empty(), args.all) {
        (false, _) => Some(args.state.join(",")),
        (true, true) => None,
        (true, false) => Some(words.into_iter().filter(|word| *word != "ended").collect::<Vec<_>>().join(",")),
    };
    if let Some(label) = args.label.iter().find(|label| label.contains(',')) {
        return Err(Usage::new("--label", label, "give one KEY or KEY=VALUE, and repeat the flag for more"));
    }
    let whole = |label: &String| if label.contains('=') { label.clone() } else { format!("{label}=") };
    let label = args.label.iter().map(whole).collect::<Vec<_>>().join(",");
    let label = Some(label).filter(|label| !label.is_empty());
    Ok(ListRuns { project: args.project.clone(), state, label, limit: None, cursor: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let argv = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(command(&argv(&["sh", "-c", "echo 'a'", ""])), "sh -c 'echo '\\''a'\\''' ''");
        assert_eq!(command(&argv(&["a\x1b[0m"])), "'a\\u{1b}[0m'");
        assert_eq!(command(&argv(&["x".repeat(100).as_str()])).chars().count(), COMMAND_CHARS_MAX);
    }

    #[test]
    fn runs_that_cannot_be_shown_are_named() {
        let [one, other] = [1, 2].map(|n| RunId::from_uuid(uuid::Uuid::from_u128(n)));
        assert_eq!(told_unreadable(&[]), None);
        let told = told_unreadable(&[one]).unwrap();
        assert_eq!(told, format!("1 run cannot be read, because its row in the database is damaged: {one}"));
        let told = told_unreadable(&[one, other]).unwrap();
        assert!(told.starts_with("2 runs cannot be read") && told.ends_with(&format!("{one}, {other}")), "{told}");
    }

    #[test]
    fn only_live_runs_unless_asked() {
        let args = PsArgs {
            all: false,
            last: 1,
            quiet: false,
            label: vec!["a".into(), "b=c".into()],
            state: vec![],
            project: None,
        };
        let live = query(&args).unwrap();
        assert_eq!(live.state.as_deref(), Some("queued,claimed,running,paused,resuming,finishing"));
        assert_eq!(live.label.as_deref(), Some("a=,b=c"));
        assert_eq!(query(&PsArgs { all: true, ..args.clone() }).unwrap().state, None);
        let error = query(&PsArgs { state: vec!["gone".into()], ..args }).unwrap_err().to_string();
        assert!(error.contains("--state") && error.contains("`gone`") && error.contains("queued"), "{error}");
    }
}
