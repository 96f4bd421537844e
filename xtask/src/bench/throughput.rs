//! `cargo xtask bench throughput`: runs per second.

use std::{
    fs,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::keep;
use crate::{
    exec,
    installation::{Installation, Profile, build},
    say,
    scratch::Scratch,
};

/// The arguments of `bench throughput`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many runs for each number at once.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// How many at once; may be repeated.
    #[arg(long, default_values_t = [1, 4, 8, 16], value_parser = clap::value_parser!(u32).range(1..=256))]
    at_once: Vec<u32>,
}

#[derive(Serialize)]
struct Row {
    at_once: u32,
    runs: u32,
    seconds: f64,
    runs_per_second: f64,
    /// Of the whole machine: client, server, agent, shim, guest and kernel.
    cpu_ms_per_run: f64,
}

/// Measures each number at once.
pub fn throughput(arguments: &Arguments) -> Result<()> {
    let built = build(Profile::Release)?;
    let disk = Scratch::on_disk()?;
    let installation = Installation::up(&built, disk.path())?;
    run_one(&installation)?;
    say::result(&format!("{:>8} {:>8} {:>10} {:>14}", "at once", "runs", "runs/s", "CPU ms/run"));
    let mut rows = Vec::new();
    for at_once in &arguments.at_once {
        let row = measure(&installation, *at_once, arguments.runs)?;
        let Row { at_once, runs, runs_per_second, cpu_ms_per_run, .. } = row;
        say::result(&format!("{at_once:8} {runs:8} {runs_per_second:10.1} {cpu_ms_per_run:14.1}"));
        rows.push(row);
    }
    keep("throughput", &rows)
}

fn measure(installation: &Installation, at_once: u32, runs: u32) -> Result<Row> {
    let (busy, started) = (busy_ms()?, Instant::now());
    let next = AtomicU32::new(0);
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < runs {
                    if let Err(error) = run_one(installation) {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        next.store(runs, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu_ms_per_run = (busy_ms()? - busy) / f64::from(runs);
    Ok(Row { at_once, runs, seconds, runs_per_second: f64::from(runs) / seconds, cpu_ms_per_run })
}

fn run_one(installation: &Installation) -> Result<()> {
    let output = exec::output(installation.command().args(["run", "--", "true"]))?;
    if !output.status.success() {
        bail!("a run failed: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// How long all processors together were busy since the machine started (proc(5), `/proc/stat`).
fn busy_ms() -> Result<f64> {
    let ticks = parse_busy(&fs::read_to_string("/proc/stat")?).context("cannot read /proc/stat")?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(ticks as f64 * 1000.0 / per_second as f64)
}

fn parse_busy(stat: &str) -> Option<u64> {
    let words = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    let &[user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks.as_slice() else { return None };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_idle_time_out() {
        assert_eq!(parse_busy("cpu  1 2 4 1000 500 8 16 0 0 0\ncpu0 1 2\n"), Some(31));
        assert_eq!(parse_busy("cpu0 1 2\n"), None);
    }
}
