//! `cargo xtask bench streams`: each line once to each of many followers, though a server is killed under them.
//!
//! Two servers on a PostgreSQL of the bench's own, which keep large objects in one folder; agents; and a balancer that leads
//! each new connection to a server that accepts it, which is all that clients and agents know. Runs print numbered lines,
//! each with followers of its own that read through the client of `holm logs --follow` (crates/api, `examples/followers.rs`)
//! and compare every byte with what was printed. Once half of all has been delivered a server is killed with SIGKILL, and
//! stays away. What is judged is that every follower gets all, once and in order, and that every run ends well at its first
//! attempt; times are reported.

mod balancer;
mod fleet;

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keep;
use crate::{
    exec,
    installation::{Installation, Profile, build},
    places, say,
};
use fleet::Fleet;

/// How many lines a run prints at once, and how long it sleeps then.
const BURST: u32 = 10;
const PAUSE_S: &str = "0.5";
/// A pause of a follower is held for one around the kill if it began at most so long after it.
const AFTER_KILL: Duration = Duration::from_secs(10);
/// How many problems are printed.
const SHOWN_MAX: usize = 20;

/// The arguments of `bench streams`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many runs.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=200))]
    runs: u32,
    /// How many followers each of them has.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    followers: u32,
    /// How many lines each run prints, twenty a second.
    #[arg(long, default_value_t = 1_200, value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    lines: u32,
    /// How many agents there are.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    agents: u32,
    /// With the build that the tests have.
    #[arg(long)]
    dev: bool,
}

/// What one follower says that it got.
#[derive(Debug, Clone, Deserialize)]
struct Follower {
    run: String,
    lines: u64,
    bytes: u64,
    problem: Option<String>,
    gaps: Vec<(u64, u64)>,
}

#[derive(Debug, Serialize)]
struct Report {
    runs: u32,
    followers: u32,
    lines_a_run: u32,
    bytes_delivered: u64,
    lines_delivered: u64,
    seconds: f64,
    lines_per_second: f64,
    runs_running_at_kill: usize,
    /// How many followers had no line for a second or more around the kill, and the longest time without one.
    gaps_at_kill: usize,
    longest_gap_at_kill_ms: u64,
    longest_gap_ms: u64,
    problems: Vec<String>,
}

/// Runs it all and judges.
pub fn streams(arguments: &Arguments) -> Result<()> {
    super::raise_descriptors()?;
    let profile = if arguments.dev { Profile::Dev } else { Profile::Release };
    let followers = build_followers(profile)?;
    let installation = Installation::new(&build(profile)?, &std::env::temp_dir())?;
    let mut fleet = Fleet::start(installation)?;
    let report = measure(&mut fleet, &followers, arguments)?;
    fleet.stop()?;
    keep("streams", &report)?;
    judge(&report)
}

/// Builds the followers and returns where they are.
fn build_followers(profile: Profile) -> Result<PathBuf> {
    let mut cargo = exec::cargo();
    cargo.args(["build", "--locked", "--package", "holm-api", "--features", "client", "--example", "followers"]);
    cargo.args((profile == Profile::Release).then_some("--release")).current_dir(places::root()?);
    exec::run(&mut cargo)?;
    let folder = if profile == Profile::Release { "release" } else { "debug" };
    Ok(places::target()?.join(folder).join("examples/followers"))
}

fn measure(fleet: &mut Fleet, program: &Path, arguments: &Arguments) -> Result<Report> {
    let &Arguments { runs, followers, lines, agents, .. } = arguments;
    let runs = submit(&fleet.installation, runs, lines)?;
    let mut reading = Reading::start(program, fleet, &runs, followers)?;
    // Followers are there before the first line is.
    let begun = Instant::now();
    fleet.start_agents(agents, arguments.runs.div_ceil(agents))?;
    reading.until_half()?;
    let running = fleet.installation.runs(arguments.runs)?.iter().filter(|run| run["state"] == "running").count();
    let killed_ms = u64::try_from(reading.begun.elapsed().as_millis())?;
    fleet.kill_server()?;
    say::note(&format!("half of all was delivered after {:.1} s: a server is killed", begun.elapsed().as_secs_f64()));
    let got = reading.finish()?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut problems = problems_of(&got, &runs, followers);
    problems.extend(bad_ends(&fleet.installation.runs(arguments.runs)?));
    let around = |(began, length): &(u64, u64)| {
        let last = killed_ms + AFTER_KILL.as_millis() as u64;
        (*began..=*began + *length).contains(&killed_ms) || (killed_ms..last).contains(began)
    };
    let at_kill: Vec<u64> =
        got.iter().filter_map(|one| one.gaps.iter().filter(|gap| around(gap)).map(|gap| gap.1).max()).collect();
    let lines_delivered = got.iter().map(|one| one.lines).sum();
    Ok(Report {
        runs: arguments.runs,
        followers: arguments.runs * followers,
        lines_a_run: lines,
        bytes_delivered: got.iter().map(|one| one.bytes).sum(),
        lines_delivered,
        seconds,
        lines_per_second: lines_delivered as f64 / seconds,
        runs_running_at_kill: running,
        gaps_at_kill: at_kill.len(),
        longest_gap_at_kill_ms: at_kill.iter().max().copied().unwrap_or(0),
        longest_gap_ms: got.iter().flat_map(|one| one.gaps.iter().map(|gap| gap.1)).max().unwrap_or(0),
        problems,
    })
}

/// Submits runs that print, and writes what each will have printed to a file of its own.
fn submit(installation: &Installation, count: u32, lines: u32) -> Result<Vec<(String, PathBuf)>> {
    let mut runs = Vec::new();
    for number in 0..count {
        exec::check_interrupt()?;
        let script = format!(
            "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo \"run {number} line $i of {lines}\"; \
             [ $((i % {BURST})) -ne 0 ] || sleep {PAUSE_S}; done"
        );
        let command = ["run", "--detach", "-m", "32m", "--cpus", "0.1", "--", "sh", "-c", &script];
        let id = exec::read(installation.command().args(command))?.trim().to_owned();
        let path = installation.dir().join(format!("printed-{number}"));
        fs::write(&path, printed(number, lines))?;
        runs.push((id, path));
    }
    Ok(runs)
}

fn printed(number: u32, lines: u32) -> String {
    (1..=lines).fold(String::new(), |mut text, line| {
        let _never_fails = writeln!(text, "run {number} line {line} of {lines}");
        text
    })
}

/// The process that has all followers. It is killed when this is dropped before its end.
struct Reading {
    child: Child,
    /// When it was started, by which it tells the times of pauses.
    begun: Instant,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Reading {
    fn start(program: &Path, fleet: &Fleet, runs: &[(String, PathBuf)], followers: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(fleet.url()).arg(fleet.token()).arg(followers.to_string());
        let begun = Instant::now();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stdout.take().context("it has a standard output")?).lines();
        let mut input = child.stdin.take().context("it has a standard input")?;
        // From here on it is ended with this.
        let reading = Self { child, begun, said };
        for (run, path) in runs {
            writeln!(input, "{run} {}", path.display())?;
        }
        Ok(reading)
    }

    /// Waits until half of all was delivered.
    fn until_half(&mut self) -> Result<()> {
        let line = self.said.next().context("the followers ended before half of all was delivered")??;
        exec::check_interrupt()?;
        ensure!(line == "half", "a follower ended before half of all was delivered: {line}");
        Ok(())
    }

    /// Waits until all followers have ended.
    fn finish(&mut self) -> Result<Vec<Follower>> {
        let mut got = Vec::new();
        for line in self.said.by_ref() {
            got.push(serde_json::from_str(&line?).context("what a follower says is no JSON")?);
        }
        exec::check_interrupt()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the followers ended with {status}");
        Ok(got)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let _ended_before = self.child.kill();
        let _waited_before = self.child.wait();
    }
}

/// What is not as it should be about the followers of these runs.
fn problems_of(got: &[Follower], runs: &[(String, PathBuf)], followers: u32) -> Vec<String> {
    let mut problems: Vec<String> =
        got.iter().filter_map(|one| Some(format!("a follower of {}: {}", one.run, one.problem.as_ref()?))).collect();
    for (run, _) in runs {
        let count = got.iter().filter(|one| one.run == *run).count();
        if count != followers as usize {
            problems.push(format!("{count} of {followers} followers of {run} have ended"));
        }
    }
    problems
}

/// What is not as it should be about how runs have ended.
fn bad_ends(runs: &[Value]) -> Vec<String> {
    let is_bad = |run: &&Value| run["outcome"]["kind"] != "succeeded" || run["attempt"] != 1;
    let tell = |run: &Value| {
        let (state, outcome, attempt) = (&run["state"], &run["outcome"]["kind"], &run["attempt"]);
        format!("{}: state {state}, outcome {outcome}, attempt {attempt}", run["id"])
    };
    runs.iter().filter(is_bad).map(tell).collect()
}

fn judge(report: &Report) -> Result<()> {
    let Report { seconds, lines_per_second, lines_delivered, runs_running_at_kill, runs, followers, .. } = report;
    say::result(&format!("{lines_delivered} lines in {seconds:.1} s: {lines_per_second:.0} a second"));
    say::result(&format!(
        "a server was killed while {runs_running_at_kill} of {runs} runs ran: {} of {followers} followers had no line for \
         a second or more, {} ms at most; the longest pause of all was {} ms",
        report.gaps_at_kill, report.longest_gap_at_kill_ms, report.longest_gap_ms
    ));
    for problem in report.problems.iter().take(SHOWN_MAX) {
        say::result(problem);
    }
    let wanted = u64::from(*followers) * u64::from(report.lines_a_run);
    let is_met = report.problems.is_empty() && *lines_delivered == wanted;
    let verdict = if is_met { "ok" } else { "NOT MET" };
    say::result(&format!("{verdict}: each line once to each of {followers} followers, {lines_delivered} of {wanted}"));
    if !is_met {
        bail!("{} problems", report.problems.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines_delivered: u64, problems: &[&str]) -> Report {
        Report {
            runs: 2,
            followers: 4,
            lines_a_run: 10,
            bytes_delivered: 0,
            lines_delivered,
            seconds: 1.0,
            lines_per_second: 1.0,
            runs_running_at_kill: 2,
            gaps_at_kill: 0,
            longest_gap_at_kill_ms: 0,
            longest_gap_ms: 0,
            problems: problems.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn a_line_too_few_and_a_problem_are_no_success() {
        assert!(judge(&report(40, &[])).is_ok());
        assert!(judge(&report(39, &[])).is_err());
        assert!(judge(&report(40, &["a problem"])).is_err());
    }

    #[test]
    fn followers_that_never_ended_and_bad_ends_are_problems() {
        let one = |problem: Option<&str>| Follower {
            run: "run_1".to_owned(),
            lines: 1,
            bytes: 1,
            problem: problem.map(str::to_owned),
            gaps: Vec::new(),
        };
        let runs = [("run_1".to_owned(), PathBuf::new())];
        assert_eq!(problems_of(&[one(None), one(None)], &runs, 2), Vec::<String>::new());
        assert_eq!(problems_of(&[one(None)], &runs, 2), ["1 of 2 followers of run_1 have ended"]);
        assert_eq!(problems_of(&[one(Some("gone")), one(None)], &runs, 2), ["a follower of run_1: gone"]);
        let ended = |kind: &str, attempt: u32| serde_json::json!({"outcome": {"kind": kind}, "attempt": attempt});
        assert_eq!(bad_ends(&[ended("succeeded", 1)]), Vec::<String>::new());
        assert_eq!(bad_ends(&[ended("succeeded", 2), ended("failed", 1)]).len(), 2);
    }
}
