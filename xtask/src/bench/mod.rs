//! `cargo xtask bench`: how fast, beside what else there is on the same machine in the same minutes.
//!
//! Absolute times depend on the machine and are only reported; what is judged are ratios between things that were measured
//! in turns. Results are a table on standard output and JSON under `target/bench/`.

mod claims;
mod follow;
mod idle;
mod logs;
mod peaks;
mod peers;
mod start;
mod streams;
mod throughput;

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::{places, say};

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// From submitting `true` to its end, beside bwrap, unshare, runc and podman.
    Start(start::Arguments),
    /// Runs per second with several at once, and processor time per run.
    Throughput(throughput::Arguments),
    /// Output through the whole path, beside a plain write of two synced copies; the memory of each process.
    Logs(logs::Arguments),
    /// What a line costs with 1, 100 and 1,000 followers.
    Follow(follow::Arguments),
    /// Claims a second with many pollers, beside procrastinate; how long runs wait; the cost of a claim in long queues.
    Claims(claims::Arguments),
    /// Each line once to each of 1,000 followers of 100 runs over two servers, of which one is killed midway.
    Streams(streams::Arguments),
    /// Memory and wake-ups while nothing happens: without runs, and with many sandboxes that sleep.
    Idle(idle::Arguments),
}

/// Measures.
pub fn bench(what: &Bench) -> Result<()> {
    match what {
        Bench::Start(arguments) => start::start(arguments),
        Bench::Throughput(arguments) => throughput::throughput(arguments),
        Bench::Logs(arguments) => logs::logs(arguments),
        Bench::Follow(arguments) => follow::follow(arguments),
        Bench::Claims(arguments) => claims::claims(arguments),
        Bench::Streams(arguments) => streams::streams(arguments),
        Bench::Idle(arguments) => idle::idle(arguments),
    }
}

/// What a series of measurements comes to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Series {
    /// How many.
    pub count: usize,
    /// The middle one.
    pub median_ms: f64,
    /// The shortest.
    pub min_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Series {
    /// Nothing for no measurements.
    pub fn of(times: &[Duration]) -> Option<Self> {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let (first, last) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { count: sorted.len(), median_ms: median, min_ms: first, max_ms: last })
    }
}

/// Each client takes one descriptor here, and one in the server, which inherits the limit.
fn raise_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the number of open files")
}

/// Writes a report to `target/bench/NAME.json`.
fn keep(name: &str, report: &impl Serialize) -> Result<()> {
    let dir = places::target()?.join("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(report)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    say::note(&format!("kept in {}", path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let series =
            |millis: &[u64]| Series::of(&millis.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>());
        assert_eq!(series(&[]), None);
        let odd = series(&[30, 10, 20]).expect("measurements");
        assert_eq!((odd.median_ms, odd.min_ms, odd.max_ms, odd.count), (20.0, 10.0, 30.0, 3));
        assert_eq!(series(&[40, 10, 20, 30]).map(|even| even.median_ms), Some(25.0));
    }
}
