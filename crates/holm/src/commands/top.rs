//! `holm top`: the live runs, what they use and what they may use, again and again on a terminal, once anywhere else.
//!
//! What runs use the server learns with each renewal of their leases, as far as their hosts count it; what is not counted is
//! shown as such.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::Args;
use holm_api::{
    client::{Client, ClientError},
    hosts::HostView,
    runs::{ListRuns, RunView},
};
use holm_domain::{RunId, run::RunState};
use serde::Serialize;
use tokio::time::sleep;

use super::{Usage, ps, status};
use crate::{
    commands::run::signals::Interrupts,
    output::{Cell, Output, escaped},
    screen::{Keys, Screen},
    session::Session,
    units::{self, show_age, show_bytes, show_cpus, show_percent},
};

/// How many runs are asked for at once, and at most.
const PAGE: u32 = 200;
const RUNS_MAX: usize = 1_000;
/// The shortest interval: below it the server would only answer this.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The flags of `holm top`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
On a terminal q or Ctrl-C ends it. In a pipe, or with --json, it looks once.

CPU is how much of one processor a run used between the last two renewals of its lease (every ten seconds),
MEMORY what it used then of what it may use, PIDS its processes and threads; `-` is what its host does not count.
What it used in all is told by `holm show` once it has ended.")]
pub struct TopArgs {
    /// How often to look
    #[arg(short = 'n', long, value_name = "DURATION", default_value = "2s")]
    pub interval: String,
    /// Only runs of this project
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
}

/// What is seen at one look.
#[derive(Serialize)]
struct Seen {
    runs: Vec<RunView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<RunId>,
    hosts: Vec<HostView>,
}

/// Looks once, or until somebody has seen enough.
pub async fn execute(session: &Session, args: &TopArgs) -> anyhow::Result<u8> {
    let refused = |problem: String| Usage::new("--interval", &args.interval, problem);
    let interval = units::duration(&args.interval).map_err(refused)?;
    if interval < INTERVAL_MIN {
        return Err(refused("give 100ms or more".to_owned()).into());
    }
    let client = session.client().await?;
    let output = session.output;
    let seen = look(&client, args).await?;
    if output.json {
        output.value(&seen)?;
    } else if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        lines(output, &seen).iter().try_for_each(|line| output.line(line))?;
    } else {
        watch(output, &client, args, interval, seen).await?;
    }
    Ok(0)
}

async fn watch(
    output: Output,
    client: &Client,
    args: &TopArgs,
    interval: Duration,
    mut seen: Seen,
) -> anyhow::Result<()> {
    let mut signals = Interrupts::listen()?;
    let mut screen = Screen::open(output)?;
    let mut keys = Keys::listen();
    let mut trouble = None;
    loop {
        let mut shown: Vec<String> = trouble.take().into_iter().collect();
        shown.extend(lines(output, &seen));
        screen.show(&shown)?;
        let next = async {
            sleep(interval).await;
            look(client, args).await
        };
        tokio::select! {
            next = next => match next {
                Ok(next) => seen = next,
                Err(error) if error.is_transient() => trouble = Some(format!("{}; trying again", escaped(&error.to_string()))),
                Err(error) => return Err(error.into()),
            },
            () = keys.quit() => return Ok(()),
            () = signals.any() => return Ok(()),
        }
    }
}

async fn look(client: &Client, args: &TopArgs) -> Result<Seen, ClientError> {
    let live = RunState::ALL.iter().filter(|state| **state != RunState::Ended);
    let state = Some(live.map(|state| state.as_str()).collect::<Vec<_>>().join(","));
    let query = ListRuns { project: args.project.clone(), state, limit: Some(PAGE), ..ListRuns::default() };
    let (mut runs, mut unreadable, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let page = client.run_list(&ListRuns { cursor, ..query.clone() }).await?;
        runs.extend(page.runs);
        unreadable.extend(page.unreadable);
        cursor = page.next_cursor;
        if cursor.is_none() || runs.len() + unreadable.len() >= RUNS_MAX {
            return Ok(Seen { runs, unreadable, hosts: client.host_list().await?.hosts });
        }
    }
}

fn lines(output: Output, seen: &Seen) -> Vec<String> {
    let alive: Vec<&HostView> = seen.hosts.iter().filter(|host| host.alive).collect();
    let sum = |of: fn(&HostView) -> u64| alive.iter().map(|host| of(host)).sum::<u64>();
    let memory: u64 = seen.runs.iter().filter(|run| run.agent.is_some()).map(|run| run.spec.limits.memory_bytes).sum();
    let summary = format!(
        "{} of {} hosts connected, {} of {} runs, {} of {} memory promised",
        alive.len(),
        seen.hosts.len(),
        sum(|host| u64::from(host.runs_held)),
        sum(|host| u64::from(host.capacity.runs)),
        show_bytes(memory),
        show_bytes(sum(|host| host.capacity.memory_bytes)),
    );
    let rows: Vec<[Cell; 9]> = seen.runs.iter().map(|run| row(run, &seen.hosts)).collect();
    let table = output.table_lines(["RUN", "COMMAND", "HOST", "STATE", "AGE", "CPU", "CPUS", "MEMORY", "PIDS"], &rows);
    let summary = [summary].into_iter().chain(ps::told_unreadable(&seen.unreadable));
    summary.chain([String::new()]).chain(table).collect()
}

fn row(run: &RunView, hosts: &[HostView]) -> [Cell; 9] {
    let host = run.agent.map(|agent| {
        let known = hosts.iter().find(|host| host.id == agent);
        known.map_or_else(|| agent.to_string(), |host| escaped(&host.name))
    });
    let (tone, word) = status(run);
    let now = holm_domain::UnixMicros(jiff::Timestamp::now().as_microsecond());
    let limits = &run.spec.limits;
    let uses = run.live.map(|live| live.usage).unwrap_or_default();
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        run.id.to_string().into(),
        ps::command(&run.spec.argv).into(),
        host.unwrap_or_else(|| "-".to_owned()).into(),
        Cell(tone, word),
        show_age(now.since(run.started_at.unwrap_or(run.queued_at))).into(),
        known(uses.cpus_milli.map(show_percent)).into(),
        show_cpus(u64::from(limits.cpus_milli.0)).into(),
        format!("{} of {}", known(uses.memory_bytes.map(show_bytes)), show_bytes(limits.memory_bytes)).into(),
        known(uses.pids.map(|pids| pids.to_string())).into(),
    ]
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        OrgId, ProjectId, TokenId, UnixMicros,
        limits::LeaseConfig,
        run::{Admission, LiveUsage, Measured, RunSpec, admit},
    };
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_counted_is_shown_and_nothing_is_made_up() {
        let admission = Admission {
            id: holm_domain::RunId::from_uuid(Uuid::nil()),
            org: OrgId::from_uuid(Uuid::nil()),
            project: ProjectId::from_uuid(Uuid::nil()),
            created_by: TokenId::from_uuid(Uuid::nil()),
        };
        let run = admit(admission, RunSpec::new(["x"]), UnixMicros(0), &LeaseConfig::default()).run;
        let mut view = RunView::from(run);
        let cells = |view: &RunView| row(view, &[]).map(|Cell(_, text)| text);
        let [.., cpu, _, memory, pids] = cells(&view);
        assert_eq!((cpu.as_str(), memory.as_str(), pids.as_str()), ("-", "- of 1 GiB", "-"));
        let usage =
            LiveUsage { cpus_milli: Some(1_234), memory_bytes: Some(3 << 20), pids: Some(0), ..LiveUsage::default() };
        view.live = Some(Measured { at: UnixMicros(0), usage });
        let [.., cpu, _, memory, pids] = cells(&view);
        assert_eq!((cpu.as_str(), memory.as_str(), pids.as_str()), ("123.4 %", "3 MiB of 1 GiB", "0"));
    }
}
