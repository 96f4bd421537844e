//! `cargo xtask bench start`: how long it takes to run `true`.
//!
//! Everyone has its files on one file system that is new.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde::Serialize;

use super::{Series, keep, peers};
use crate::{
    exec,
    installation::{Installation, Profile, build},
    say,
    scratch::Scratch,
};

/// How many times faster than podman Holm must be at least.
const PODMAN_RATIO_MIN: f64 = 5.0;
/// How many times slower than bwrap Holm may be at most.
const BWRAP_RATIO_MAX: f64 = 5.0;

/// The arguments of `bench start`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many rounds, each with one run of everything.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    absent: Vec<String>,
    verdicts: Vec<Verdict>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    #[serde(flatten)]
    series: Series,
    /// The median as a multiple of Holm's.
    ratio: f64,
}

#[derive(Serialize)]
struct Verdict {
    text: String,
    holds: bool,
}

/// Measures in turns, so that whatever else the machine does hits everyone alike.
pub fn start(arguments: &Arguments) -> Result<()> {
    let built = build(Profile::Release)?;
    let disk = Scratch::on_disk()?;
    let installation = Installation::up(&built, disk.path())?;
    let place = peers::Workplace::new(disk.path())?;
    let (mut all, absent) = peers::prepare(place.path());
    let holm = move |_| {
        let mut command = installation.command();
        command.args(["run", "--", "true"]);
        command
    };
    all.insert(0, peers::Peer { name: "holm", command: Box::new(holm) });
    // The first of everything fills caches that later ones find full.
    let mut times = vec![Vec::new(); all.len()];
    for round in 0..=usize::try_from(arguments.rounds)? {
        for (peer, times) in all.iter().zip(&mut times) {
            let time = timed(&mut (peer.command)(round))?;
            if round > 0 {
                times.push(time);
            }
        }
    }
    let names = all.iter().map(|peer| peer.name);
    let report = report(names.zip(&times).filter_map(|(name, times)| Some((name, Series::of(times)?))), &absent);
    show(&report);
    keep("start", &report)?;
    if report.verdicts.iter().any(|verdict| !verdict.holds) {
        bail!("a ratio is not what it must be");
    }
    Ok(())
}

fn timed(command: &mut Command) -> Result<Duration> {
    let started = Instant::now();
    let output = exec::output(command)?;
    let time = started.elapsed();
    if !output.status.success() {
        bail!("`{}`: {}: {}", exec::line(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(time)
}

fn report(series: impl Iterator<Item = (&'static str, Series)>, absent: &[peers::Absent]) -> Report {
    let series: Vec<(&'static str, Series)> = series.collect();
    let holm = series.iter().find(|(name, _)| *name == "holm").map_or(f64::NAN, |(_, series)| series.median_ms);
    let rows: Vec<Row> =
        series.into_iter().map(|(name, series)| Row { name, series, ratio: series.median_ms / holm }).collect();
    let verdicts = rows.iter().filter_map(verdict).collect();
    let absent = absent.iter().map(|absent| format!("{}: {}", absent.name, absent.reason)).collect();
    Report { rows, absent, verdicts }
}

fn verdict(row: &Row) -> Option<Verdict> {
    match row.name {
        "podman" => Some(Verdict {
            text: format!("{:.1} times faster than podman (at least {PODMAN_RATIO_MIN})", row.ratio),
            holds: row.ratio >= PODMAN_RATIO_MIN,
        }),
        "bwrap" => Some(Verdict {
            text: format!("{:.1} times bwrap (at most {BWRAP_RATIO_MAX})", 1.0 / row.ratio),
            holds: 1.0 / row.ratio <= BWRAP_RATIO_MAX,
        }),
        _ => None,
    }
}

fn show(report: &Report) {
    say::result(&format!("{:10} {:>10} {:>10} {:>10} {:>8}", "", "median ms", "min ms", "max ms", "ratio"));
    for row in &report.rows {
        let Series { median_ms, min_ms, max_ms, .. } = row.series;
        say::result(&format!("{:10} {median_ms:10.1} {min_ms:10.1} {max_ms:10.1} {:8.2}", row.name, row.ratio));
    }
    for absent in &report.absent {
        say::result(&format!("not measured: {absent}"));
    }
    for verdict in &report.verdicts {
        say::result(&format!("{}: {}", if verdict.holds { "ok" } else { "NOT MET" }, verdict.text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(holm: u64, bwrap: u64, podman: u64) -> Vec<bool> {
        let series = |ms| Series::of(&[Duration::from_millis(ms)]).expect("a measurement");
        let all = [("holm", series(holm)), ("bwrap", series(bwrap)), ("podman", series(podman))];
        report(all.into_iter(), &[]).verdicts.iter().map(|verdict| verdict.holds).collect()
    }

    #[test]
    fn ratios_are_judged() {
        assert_eq!(judged(25, 5, 125), [true, true]);
        assert_eq!(judged(26, 5, 125), [false, false]);
        assert_eq!(judged(20, 5, 90), [true, false]);
    }
}
