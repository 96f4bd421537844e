//! `cargo xtask soak`: many runs while the agent is killed again and again.
//!
//! Afterwards each run must have ended exactly once, with all its output in order, and the host must be as it was: no
//! process, mount, control group, network namespace or file more than before.

mod inventory;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    exec,
    installation::{Installation, Profile, build},
    say,
};
use inventory::Inventory;

/// The arguments of `soak`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many runs.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// How many at once.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=256))]
    at_once: u32,
    /// How many times the agent is killed, evenly over the runs.
    #[arg(long, default_value_t = 5)]
    kills: u32,
    /// How many lines each run prints.
    #[arg(long, default_value_t = 300)]
    lines: u32,
    /// With the release build.
    #[arg(long)]
    release: bool,
}

/// No run may take longer than this, deaths of the agent included.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the host may take to look as before once everything has ended.
const SETTLE: Duration = Duration::from_secs(20);

/// Runs it all and judges.
pub fn soak(arguments: &Arguments) -> Result<()> {
    let built = build(if arguments.release { Profile::Release } else { Profile::Dev })?;
    let before = Inventory::take()?;
    let started = Instant::now();
    let mut installation = Installation::server_and_agent(&built)?;
    let runs = run_all(&mut installation, arguments)?;
    say::step(&format!("{} runs ended after {:.0} s; looking at each", runs.len(), started.elapsed().as_secs_f64()));
    let mut problems = Vec::new();
    for run in &runs {
        if let Err(error) = judge(&installation, run, arguments.lines) {
            problems.push(format!("{run}: {error:#}"));
        }
    }
    problems.extend(attempts_left(&installation)?);
    installation.stop()?;
    drop(installation);
    problems.extend(settle(&before)?);
    for problem in &problems {
        say::result(problem);
    }
    say::result(&format!(
        "{} runs, {} at once, agent killed {} times, {} problems, {:.0} s",
        runs.len(),
        arguments.at_once,
        arguments.kills,
        problems.len(),
        started.elapsed().as_secs_f64()
    ));
    ensure!(problems.is_empty(), "soak found {} problems", problems.len());
    Ok(())
}

/// A script that prints numbered lines to both streams, slowly enough that deaths of the agent fall in between.
fn script(lines: u32) -> String {
    format!(
        "i=1; while [ $i -le {lines} ]; do echo $i; echo e$i >&2; i=$((i+1)); [ $((i % 20)) -eq 0 ] && sleep 0.1; done; exit 0"
    )
}

/// Submits all runs, never more at once than asked for, and kills the agent in between; returns their ids.
fn run_all(installation: &mut Installation, arguments: &Arguments) -> Result<Vec<String>> {
    let mut runs: Vec<String> = Vec::new();
    let mut kills = 0;
    let mut progress = (0, Instant::now());
    loop {
        exec::check_interrupt()?;
        let ended = count_ended(installation, arguments.runs)?;
        if ended > progress.0 {
            progress = (ended, Instant::now());
        }
        ensure!(progress.1.elapsed() < PATIENCE, "no run ended for {PATIENCE:?}; {ended} of {} have", runs.len());
        // Between the ends of runs, so that every death meets runs that are under way.
        if kills < arguments.kills && ended >= (kills + 1) * arguments.runs / (arguments.kills + 1) {
            say::note(&format!("{ended} runs have ended: killing the agent"));
            installation.kill_agent()?;
            installation.start_agent()?;
            kills += 1;
        }
        let submitted = u32::try_from(runs.len())?;
        if submitted == arguments.runs && ended == submitted {
            ensure!(kills == arguments.kills, "the runs ended before the agent was killed {} times", arguments.kills);
            return Ok(runs);
        }
        if submitted < arguments.runs && submitted - ended < arguments.at_once {
            let id = exec::read(installation.command().args([
                "run",
                "--detach",
                "--",
                "sh",
                "-c",
                &script(arguments.lines),
            ]))?;
            runs.push(id.trim().to_owned());
        } else {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn count_ended(installation: &Installation, count: u32) -> Result<u32> {
    let ended = installation.runs(count)?.iter().filter(|run| run["state"] == "ended").count();
    Ok(u32::try_from(ended)?)
}

/// One run: ended once, as it should, with every line once and in order.
fn judge(installation: &Installation, run: &str, lines: u32) -> Result<()> {
    let shown = installation.json(&["show", run])?;
    let view = shown.as_array().and_then(|list| list.first()).unwrap_or(&shown);
    ensure!(view["outcome"]["kind"] == "succeeded", "outcome {}", view["outcome"]);
    let output = exec::output(installation.command().args(["logs", run]))?;
    ensure!(output.status.success(), "`holm logs` failed: {}", String::from_utf8_lossy(&output.stderr));
    let wanted = |prefix: &str| (1..=lines).map(|line| format!("{prefix}{line}\n")).collect::<String>();
    ensure!(output.stdout == wanted("").as_bytes(), "standard output is not what was written");
    ensure!(output.stderr == wanted("e").as_bytes(), "standard error is not what was written");
    let events = exec::read(installation.command().args(["events", run, "--json"]))?;
    let kinds = event_kinds(&events)?;
    let count = |kind: &str| kinds.iter().filter(|found| *found == kind).count();
    ensure!(count("ended") == 1, "it ended {} times: {kinds:?}", count("ended"));
    // A claim of which an agent died before it began goes to nobody else (docs/decisions/0011-instances.md): it expires.
    let expired = count("lease_expired");
    let is_executed_once = count("started") == 1 && count("claimed") == expired + 1 && count("requeued") == expired;
    ensure!(is_executed_once, "events: {kinds:?}");
    Ok(())
}

/// The kinds of events: a list, or one a line.
fn event_kinds(text: &str) -> Result<Vec<String>> {
    let events: Vec<Value> = serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>()?;
    let events = events.iter().flat_map(|value| match value {
        Value::Array(list) => list.iter().collect::<Vec<_>>(),
        other => vec![other],
    });
    events.map(|event| Ok(event["kind"].as_str().context("an event without a kind")?.to_owned())).collect()
}

/// Folders of attempts that the agent should have removed by now.
fn attempts_left(installation: &Installation) -> Result<Vec<String>> {
    let dir = installation.dir().join("agent/agent/runs");
    let deadline = Instant::now() + SETTLE;
    loop {
        let left: Vec<String> = std::fs::read_dir(&dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .flatten()
            .map(|entry| format!("left: {}", entry.path().display()))
            .collect();
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn settle(before: &Inventory) -> Result<Vec<String>> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let more = Inventory::take()?.more_than(before);
        if more.is_empty() || Instant::now() > deadline {
            return Ok(more);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_in_both_forms() {
        let wanted = vec!["queued".to_owned(), "ended".to_owned()];
        assert_eq!(event_kinds("[{\"kind\":\"queued\"},{\"kind\":\"ended\"}]").ok(), Some(wanted.clone()));
        assert_eq!(event_kinds("{\"kind\":\"queued\"}\n{\"kind\":\"ended\"}\n").ok(), Some(wanted));
        assert!(event_kinds("{}").is_err());
    }
}
