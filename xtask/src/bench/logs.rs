//! `cargo xtask bench logs`: output through the whole path, beside a plain write of the same bytes.
//!
//! The path: a pipe in the sandbox, guest, wire, shim with its spool, agent, server, database and blobs, from the start of
//! the command until the run has ended with its log complete. The plain write puts the same bytes into two files, one
//! after the other piece by piece as spool and store do, and syncs both. What comes back is compared byte by byte. Then the
//! last lines are asked for, and those that contain something, beside grep over the same text in a file.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
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

/// How fast Holm must be at least, as a part of the plain write.
const RATIO_MIN: f64 = 0.6;
/// The most memory that any process may have had, in KiB.
const PEAK_KIB_MAX: u64 = 64 * 1024;
/// What the last lines may cost, as a part of reading all.
const TAIL_PART_MAX: f64 = 0.1;
/// What a search may cost, as a multiple of reading all.
const SEARCH_PART_MAX: f64 = 2.0;
/// How many lines are asked for.
const TAIL_LINES: usize = 100;
/// The length of the file that the command writes again and again.
const SOURCE_BYTES: u64 = 64 << 20;
const PIECE_BYTES: usize = 1 << 20;
/// How often it is looked whether the run has ended: when it did is in its record, and a look takes time from what is measured.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long each GiB may take.
const DEADLINE_A_GIB: Duration = Duration::from_secs(600);

/// The arguments of `bench logs`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many MiB of output; rounded up to 64.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    size_mib: u64,
}

#[derive(Serialize)]
struct Report {
    bytes: u64,
    lines: u64,
    plain_seconds: f64,
    holm_seconds: f64,
    ratio: f64,
    read_back_seconds: f64,
    tail_seconds: f64,
    search_seconds: f64,
    grep_seconds: f64,
    stored_bytes: u64,
    peaks_kib: peaks::Peaks,
    small: bool,
}

impl Report {
    /// What must hold, and whether it does.
    fn verdicts(&self) -> [(bool, String); 3] {
        let (tail, search) = (self.tail_seconds / self.read_back_seconds, self.search_seconds / self.read_back_seconds);
        let peak = PEAK_KIB_MAX >> 10;
        [
            (
                self.ratio >= RATIO_MIN && self.small,
                format!("{:.2} of the plain write (at least {RATIO_MIN}), each process at most {peak} MiB", self.ratio),
            ),
            (tail <= TAIL_PART_MAX, format!("{tail:.3} of reading all for the last lines (at most {TAIL_PART_MAX})")),
            (search <= SEARCH_PART_MAX, format!("{search:.2} of reading all for a search (at most {SEARCH_PART_MAX})")),
        ]
    }
}

/// Measures.
pub fn logs(arguments: &Arguments) -> Result<()> {
    let built = build(Profile::Release)?;
    let installation = Installation::server_and_agent(&built)?;
    let copies = arguments.size_mib.div_ceil(SOURCE_BYTES >> 20);
    let folder = installation.lent();
    let source = folder.join("lines");
    let lines = write_source(&source)? * copies;
    let plain_seconds = plain(installation.dir(), &source, copies)?;
    let (run, peaks_kib) = peaks::during(&installation.bin(), || whole_path(&installation, &folder, copies));
    let (run, holm_seconds) = run?;
    let bytes = copies * SOURCE_BYTES;
    let text = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let read_back_seconds = read_back(&installation, &run, &text, bytes)?;
    let tail_seconds = last_lines(&installation, &run, &text)?;
    let (search_seconds, grep_seconds) = search(&installation, &run, &text, (&source, copies))?;
    let ratio = plain_seconds / holm_seconds;
    let small = ["server", "agent", "shim", "guest"]
        .iter()
        .all(|role| peaks_kib.get(role).is_some_and(|peak| (1..=PEAK_KIB_MAX).contains(peak)));
    let stored_bytes = size_of(&installation.dir().join("home"))?;
    let report = Report {
        bytes,
        lines,
        plain_seconds,
        holm_seconds,
        ratio,
        read_back_seconds,
        tail_seconds,
        search_seconds,
        grep_seconds,
        stored_bytes,
        peaks_kib,
        small,
    };
    show(&report);
    keep("logs", &report)?;
    ensure!(report.verdicts().iter().all(|(holds, _)| *holds), "it is slower, or takes more memory, than it may");
    Ok(())
}

fn show(report: &Report) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let rate = |seconds: f64| mib(report.bytes) / seconds;
    say::result(&format!("{:.0} MiB in {} lines", mib(report.bytes), report.lines));
    for (name, seconds) in [
        ("two plain copies, synced", report.plain_seconds),
        ("holm, whole path", report.holm_seconds),
        ("holm logs, read back", report.read_back_seconds),
        ("holm logs --search", report.search_seconds),
        ("grep in a file", report.grep_seconds),
    ] {
        say::result(&format!("{name:26} {seconds:8.2} s {:8.0} MiB/s", rate(seconds)));
    }
    say::result(&format!("kept in {:.0} MiB", mib(report.stored_bytes)));
    for (role, peak) in &report.peaks_kib {
        say::result(&format!("peak of the {role:8} {:8.1} MiB", *peak as f64 / 1024.0));
    }
    say::result(&format!("holm logs --tail {TAIL_LINES} {:.3} s", report.tail_seconds));
    for (holds, text) in report.verdicts() {
        say::result(&format!("{}: {text}", if holds { "ok" } else { "NOT MET" }));
    }
}

/// Lines as programs write them: words that repeat themselves, and numbers that do not. Returns how many.
fn write_source(path: &Path) -> Result<u64> {
    const WORDS: [&str; 8] = ["GET", "ok", "compiling", "cache miss", "warning: unused", "retry", "connected", "done"];
    let (mut text, mut state, mut lines) = (String::new(), 88_172_645_463_325_252u64, 0u64);
    while (text.len() as u64) < SOURCE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = WORDS[usize::try_from(state % 8)?];
        text.push_str(&format!("2026-11-26T14:00:{:02}Z {word} {state:016x} worker={}\n", lines % 60, state % 97));
        lines += 1;
    }
    text.truncate(usize::try_from(SOURCE_BYTES)? - 1);
    text.push('\n');
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(lines)
}

fn plain(dir: &Path, source: &Path, copies: u64) -> Result<f64> {
    let [first, second] = ["plain-1", "plain-2"].map(|name| dir.join(name));
    let begun = Instant::now();
    let (mut one, mut two) = (File::create(&first)?, File::create(&second)?);
    let mut piece = vec![0; PIECE_BYTES];
    for _ in 0..copies {
        exec::check_interrupt()?;
        let mut from = File::open(source)?;
        loop {
            let length = from.read(&mut piece)?;
            if length == 0 {
                break;
            }
            one.write_all(&piece[..length])?;
            two.write_all(&piece[..length])?;
        }
    }
    one.sync_all()?;
    two.sync_all()?;
    let seconds = begun.elapsed().as_secs_f64();
    fs::remove_file(first)?;
    fs::remove_file(second)?;
    // What was written is given back to the disk now, and not while the other is measured.
    rustix::fs::sync();
    Ok(seconds)
}

/// Runs the command; returns its run, and how long it took from its start to the end of the run.
fn whole_path(installation: &Installation, folder: &Path, copies: u64) -> Result<(String, f64)> {
    let mount = format!("{}:/source:ro", folder.display());
    let script = format!("i=0; while [ $i -lt {copies} ]; do cat /source/lines; i=$((i+1)); done");
    let mut command = installation.command();
    let limit = (copies * SOURCE_BYTES).to_string();
    let arguments = ["run", "--detach", "--log-limit", &limit, "--mount", &mount, "--", "sh", "-c", &script];
    let run = exec::read(command.args(arguments))?;
    let run = run.trim().to_owned();
    let limit = DEADLINE_A_GIB * u32::try_from((copies * SOURCE_BYTES).div_ceil(1 << 30))?;
    let deadline = Instant::now() + limit;
    loop {
        exec::check_interrupt()?;
        let shown = installation.json(&["show", &run])?;
        let view = shown.get(0).unwrap_or(&shown);
        if view["state"] == "ended" {
            ensure!(view["outcome"]["kind"] == "succeeded", "the run did not succeed: {}", view["outcome"]);
            let at = |field: &str| view[field].as_f64().with_context(|| format!("the run has no `{field}`"));
            return Ok((run, (at("ended_at")? - at("started_at")?) / 1e6));
        }
        if Instant::now() >= deadline {
            bail!("run {run} has not ended within {limit:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Reads all of it with `holm logs`: it must be `text` again and again, `bytes` in all.
fn read_back(installation: &Installation, run: &str, text: &[u8], bytes: u64) -> Result<f64> {
    let begun = Instant::now();
    let mut child = installation.command().args(["logs", run]).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("standard output is a pipe")?;
    let (mut piece, mut read, mut expected) = (vec![0; PIECE_BYTES], 0u64, text);
    loop {
        let length = output.read(&mut piece)?;
        let mut came = &piece[..length];
        if came.is_empty() {
            break;
        }
        while !came.is_empty() {
            let both = came.len().min(expected.len());
            ensure!(came[..both] == expected[..both], "what came back differs after {read} bytes");
            (came, expected) = (&came[both..], &expected[both..]);
            if expected.is_empty() {
                expected = text;
            }
        }
        read += length as u64;
    }
    let status = child.wait()?;
    ensure!(status.success(), "`holm logs` ended with {status}");
    ensure!(read == bytes, "{read} bytes came back of {bytes}");
    Ok(begun.elapsed().as_secs_f64())
}

/// How long the last lines take; they must be those of `text`.
fn last_lines(installation: &Installation, run: &str, text: &[u8]) -> Result<f64> {
    let lines = text.split_inclusive(|byte| *byte == b'\n').rev().take(TAIL_LINES);
    let expected: Vec<u8> = lines.collect::<Vec<_>>().into_iter().rev().flatten().copied().collect();
    let begun = Instant::now();
    let output = exec::output(installation.command().args(["logs", "--tail", &TAIL_LINES.to_string(), run]))?;
    ensure!(output.status.success() && output.stdout == expected, "the last lines are others");
    Ok(begun.elapsed().as_secs_f64())
}

/// How long it takes to find the last line of the text, which is there as often as there are copies; and how long grep takes.
fn search(installation: &Installation, run: &str, text: &[u8], (source, copies): (&Path, u64)) -> Result<(f64, f64)> {
    let last = text.strip_suffix(b"\n").and_then(|text| text.rsplit(|byte| *byte == b'\n').next());
    let wanted = std::str::from_utf8(last.context("there is a last line")?)?;
    let begun = Instant::now();
    let found = exec::read(installation.command().args(["logs", "--search", wanted, run]))?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(found.lines().count() as u64 == copies, "{} lines were found in {copies} copies", found.lines().count());
    let begun = Instant::now();
    for _ in 0..copies {
        exec::read(Command::new("grep").args(["--fixed-strings", "--line-number", wanted]).arg(source))?;
    }
    Ok((seconds, begun.elapsed().as_secs_f64()))
}

/// How much the files below a folder hold.
fn size_of(dir: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        size += if metadata.is_dir() { size_of(&entry.path())? } else { metadata.len() };
    }
    Ok(size)
}
