//! `cargo xtask bench idle`: what Holm takes while nothing happens.
//!
//! First a server with its agent and no runs, then as many sandboxes as asked for, each with a command that sleeps. Memory
//! is that of proc(5): the resident set of `holm up`, and the proportional set of each shim, in which a page that 200 shims
//! share counts a 200th for each. A wake-up is a thread that gave up its processor by itself and got it again.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::{keep, peaks};
use crate::{
    exec,
    installation::{Installation, Profile, build},
    say,
};

/// The most that `holm up` may have, in KiB.
const UP_KIB_MAX: u64 = 40 * 1024;
/// `holm up` wakes up less often than this in a second.
const WAKE_UPS_BELOW: f64 = 5.0;
/// The most that a shim may have, in KiB.
const SHIM_KIB_MAX: u64 = 8 * 1024;
/// For how long nothing happens before anything is measured.
const SETTLE: Duration = Duration::from_secs(5);
/// How long all sandboxes may take to be there.
const PATIENCE: Duration = Duration::from_secs(300);

/// The arguments of `bench idle`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many sandboxes at once.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    sandboxes: u32,
    /// For how many seconds wake-ups are counted.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
}

#[derive(Serialize)]
struct Report {
    up_rss_kib: u64,
    up_wake_ups_per_second: f64,
    sandboxes: usize,
    /// Of a shim, the median and the most.
    shim_pss_kib: [u64; 2],
    shim_wake_ups_per_second: f64,
    guest_pss_kib: [u64; 2],
    up_rss_kib_with_sandboxes: u64,
    up_wake_ups_per_second_with_sandboxes: f64,
}

/// Measures and judges.
pub fn idle(arguments: &Arguments) -> Result<()> {
    let built = build(Profile::Release)?;
    let many = arguments.sandboxes.to_string();
    let installation = Installation::up_with(&built, &std::env::temp_dir(), &["--runs-max", &many])?;
    let span = Duration::from_secs(arguments.seconds);
    // One run, so that what is loaded once is there.
    exec::read(installation.command().args(["run", "--", "true"]))?;
    thread::sleep(SETTLE);
    let up = installation.server_pid()?;
    let (up_rss_kib, up_wake_ups_per_second) = (rss_kib(up)?, wake_ups(&[up], span)?);
    start_all(&installation, arguments.sandboxes)?;
    thread::sleep(SETTLE);
    let shims = peaks::processes(&installation.bin(), "shim");
    let guests = peaks::processes(&installation.bin(), "guest");
    ensure!(shims.len() == arguments.sandboxes as usize, "{} of {many} shims are there", shims.len());
    let report = Report {
        up_rss_kib,
        up_wake_ups_per_second,
        sandboxes: shims.len(),
        shim_pss_kib: pss_kib(&shims)?,
        shim_wake_ups_per_second: wake_ups(&shims, span)? / shims.len() as f64,
        guest_pss_kib: pss_kib(&guests)?,
        up_rss_kib_with_sandboxes: rss_kib(up)?,
        up_wake_ups_per_second_with_sandboxes: wake_ups(&[up], span)?,
    };
    end_all(&installation)?;
    say::result(&serde_json::to_string_pretty(&report)?);
    keep("idle", &report)?;
    judge(&report)
}

fn judge(report: &Report) -> Result<()> {
    let (wake_ups, shim_kib) = (report.up_wake_ups_per_second, report.shim_pss_kib[1]);
    let bounds = [
        (report.up_rss_kib <= UP_KIB_MAX, format!("{} KiB of `holm up` (at most {UP_KIB_MAX})", report.up_rss_kib)),
        (
            wake_ups < WAKE_UPS_BELOW,
            format!("{wake_ups:.2} wake-ups of `holm up` in a second (below {WAKE_UPS_BELOW})"),
        ),
        (shim_kib <= SHIM_KIB_MAX, format!("{shim_kib} KiB of a shim (at most {SHIM_KIB_MAX})")),
    ];
    for (is_met, what) in &bounds {
        let verdict = if *is_met { "ok" } else { "NOT MET" };
        say::result(&format!("{verdict}: {what}"));
    }
    ensure!(bounds.iter().all(|(is_met, _)| *is_met), "a bound is not kept");
    Ok(())
}

fn start_all(installation: &Installation, count: u32) -> Result<()> {
    for _ in 0..count {
        exec::check_interrupt()?;
        let sleep = ["run", "--detach", "-m", "32m", "--cpus", "0.1", "--", "sleep", "86400"];
        exec::read(installation.command().args(sleep))?;
    }
    let begun = Instant::now();
    loop {
        let running = count_running(installation, count)?;
        if running == count as usize {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "{running} of {count} runs have begun after {PATIENCE:?}");
        exec::check_interrupt()?;
        thread::sleep(Duration::from_millis(200));
    }
}

fn count_running(installation: &Installation, count: u32) -> Result<usize> {
    // One more, which was there before.
    Ok(installation.runs(count + 1)?.iter().filter(|run| run["state"] == "running").count())
}

fn end_all(installation: &Installation) -> Result<()> {
    let begun = Instant::now();
    loop {
        // A page at a time: what ends makes room for the next.
        let ids = exec::read(installation.command().args(["ps", "--quiet"]))?;
        if ids.trim().is_empty() {
            return Ok(());
        }
        exec::read(installation.command().args(["cancel", "--kill"]).args(ids.split_whitespace()))?;
        ensure!(begun.elapsed() < PATIENCE, "runs that were killed have not ended after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn field_kib(path: &Path, field: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    peaks::number(&text, field).with_context(|| format!("{} has no {field}", path.display()))
}

fn rss_kib(pid: u32) -> Result<u64> {
    field_kib(Path::new(&format!("/proc/{pid}/status")), "VmRSS:")
}

/// The median and the largest of the proportional sets.
fn pss_kib(pids: &[u32]) -> Result<[u64; 2]> {
    let read = |pid: &u32| field_kib(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:");
    let mut sizes = pids.iter().map(read).collect::<Result<Vec<u64>>>()?;
    sizes.sort_unstable();
    match (sizes.get(sizes.len() / 2), sizes.last()) {
        (Some(median), Some(most)) => Ok([*median, *most]),
        _ => bail!("there is no such process"),
    }
}

/// How often the threads of these processes woke up, in a second.
fn wake_ups(pids: &[u32], span: Duration) -> Result<f64> {
    let (before, begun) = (switches(pids)?, Instant::now());
    thread::sleep(span);
    let after = switches(pids)?;
    // Of a thread that was started meanwhile all count, of one that has ended none.
    let count: u64 = after.iter().map(|(thread, count)| count - before.get(thread).copied().unwrap_or(0)).sum();
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Of each thread, by its id.
fn switches(pids: &[u32]) -> Result<BTreeMap<OsString, u64>> {
    let mut counts = BTreeMap::new();
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // A thread that has ended meanwhile has nothing to tell.
            let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
            counts.insert(thread.file_name(), peaks::number(&status, "voluntary_ctxt_switches:").unwrap_or(0));
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_may_reach_its_bound_and_wake_ups_may_not() {
        let report = |up_rss_kib, up_wake_ups_per_second, shim_kib| Report {
            up_rss_kib,
            up_wake_ups_per_second,
            sandboxes: 1,
            shim_pss_kib: [1, shim_kib],
            shim_wake_ups_per_second: 0.0,
            guest_pss_kib: [1, 1],
            up_rss_kib_with_sandboxes: 1,
            up_wake_ups_per_second_with_sandboxes: 0.0,
        };
        assert!(judge(&report(40 << 10, 4.99, 8 << 10)).is_ok());
        for (up, wake_ups, shim) in
            [(40 << 10, 5.0, 8 << 10), ((40 << 10) + 1, 4.99, 8 << 10), (1, 4.99, (8 << 10) + 1)]
        {
            assert!(judge(&report(up, wake_ups, shim)).is_err(), "{up} {wake_ups} {shim}");
        }
    }
}
