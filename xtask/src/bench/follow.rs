//! `cargo xtask bench follow`: what it costs to deliver a line to many followers.
//!
//! Each follower is a connection of its own to the server, reads the log as batches while the run goes on, and must get
//! each line once and in order: their numbers are checked as they come, and the batches of all followers are compared with
//! each other, and the log as `holm logs` prints it with what was printed. What is judged is the processor time of the server
//! for each delivered line.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::{BufReader, Read, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::keep;
use crate::{
    exec,
    installation::{Installation, Profile, build},
    say,
};

/// How much more a line may cost with 1,000 followers than with 100.
const GROWTH_MAX: f64 = 1.25;
/// How long a follower waits for the next bytes; the server says at least every 15 s that it is alive.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a batch may be (docs of the API), in bytes.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// A follower does little: it needs no more.
const STACK_BYTES: usize = 128 * 1024;

/// The arguments of `bench follow`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many followers; may be repeated.
    #[arg(long, default_values_t = [1, 100, 1_000], value_parser = clap::value_parser!(u32).range(1..=4_000))]
    followers: Vec<u32>,
    /// How many lines each of them gets, in bursts of 100, ten bursts a second.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    lines: u64,
}

#[derive(Debug, Clone, Serialize)]
struct Row {
    followers: u32,
    lines: u64,
    seconds: f64,
    server_cpu_us_per_line: f64,
}

/// Measures each number of followers.
pub fn follow(arguments: &Arguments) -> Result<()> {
    super::raise_descriptors()?;
    let built = build(Profile::Release)?;
    let installation = Installation::server_and_agent(&built)?;
    say::result(&format!("{:>10} {:>10} {:>10} {:>22}", "followers", "lines", "seconds", "server CPU us/line"));
    let mut rows = Vec::new();
    for followers in &arguments.followers {
        let row = measure(&installation, *followers, arguments.lines)?;
        let Row { followers, lines, seconds, server_cpu_us_per_line } = row;
        say::result(&format!("{followers:10} {lines:10} {seconds:10.1} {server_cpu_us_per_line:22.3}"));
        rows.push(row);
    }
    keep("follow", &rows)?;
    let cost = |wanted| rows.iter().find(|row| row.followers == wanted).map(|row| row.server_cpu_us_per_line);
    if let (Some(hundred), Some(thousand)) = (cost(100), cost(1_000)) {
        let growth = thousand / hundred;
        let verdict = if growth <= GROWTH_MAX { "ok" } else { "NOT MET" };
        say::result(&format!("{verdict}: {growth:.2} times the cost of 100 with 1,000 (at most {GROWTH_MAX})"));
        ensure!(growth <= GROWTH_MAX, "the cost of a line grows with the followers");
    }
    Ok(())
}

fn measure(installation: &Installation, followers: u32, lines: u64) -> Result<Row> {
    let bursts = lines / 100;
    // It begins once everybody is there.
    let script = format!(
        "sleep 5; i=0; while [ $i -lt {bursts} ]; do seq $((i*100+1)) $((i*100+100)); i=$((i+1)); sleep 0.1; done"
    );
    let run = exec::read(installation.command().args(["run", "--detach", "--", "sh", "-c", &script]))?;
    let run = run.trim().to_owned();
    let token = fs::read_to_string(installation.token())?;
    let (socket, seen, begun) = (installation.socket(), Arc::new(Seen::default()), Instant::now());
    let before = cpu_ms(installation.server_pid()?)?;
    let reading = (0..followers).map(|_| {
        let (socket, run, token, seen) = (socket.clone(), run.clone(), token.trim().to_owned(), seen.clone());
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || one(&socket, &run, &token, &seen))
    });
    let reading: Vec<_> = reading.collect::<std::io::Result<_>>().context("cannot start a follower")?;
    for follower in reading {
        let got = follower.join().map_err(|_| anyhow::anyhow!("a follower panicked"))??;
        ensure!(got == bursts * 100, "a follower got {got} of {} lines", bursts * 100);
    }
    let (cpu_ms, seconds) = (cpu_ms(installation.server_pid()?)? - before, begun.elapsed().as_secs_f64());
    let printed = (1..=bursts * 100).fold(String::new(), |mut lines, line| {
        let _never_fails = writeln!(lines, "{line}");
        lines
    });
    ensure!(exec::read(installation.command().args(["logs", &run]))? == printed, "the log is not what was printed");
    let delivered = f64::from(followers) * (bursts * 100) as f64;
    Ok(Row { followers, lines: bursts * 100, seconds, server_cpu_us_per_line: cpu_ms * 1e3 / delivered })
}

/// What the first follower that got a batch got as that batch, by its first entry and the number of them.
#[derive(Debug, Default)]
struct Seen(Mutex<HashMap<(u64, u32), Vec<u8>>>);

impl Seen {
    /// Whether another follower got other bytes for the same entries.
    fn differs(&self, first: u64, count: u32, bytes: Vec<u8>) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get(&(first, count)) {
            Some(others) => *others != bytes,
            None => {
                seen.insert((first, count), bytes);
                false
            }
        }
    }
}

/// Follows to the end; returns how many entries came, each once and in order.
fn one(socket: &Path, run: &str, token: &str, seen: &Seen) -> Result<u64> {
    let mut stream = UnixStream::connect(socket).context("cannot connect")?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    // HTTP/1.0 has no chunks: the body ends with the connection.
    let head = format!("GET /v1/runs/{run}/logs/batches?follow=true HTTP/1.0\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let status = read_head(&mut reader)?;
    ensure!(status.contains(" 200 "), "the server answered `{status}`");
    entries(&mut reader, seen)
}

/// Reads the head of an answer; returns its first line.
fn read_head(reader: &mut impl Read) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        head.push(byte[0]);
        ensure!(head.len() <= 64 * 1024, "the head of the answer has no end");
    }
    Ok(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned())
}

/// Reads frames to the end; returns the last sequence. A gap or a repetition is an error, and what others have `seen` otherwise.
fn entries(reader: &mut impl Read, seen: &Seen) -> Result<u64> {
    let mut last = 0u64;
    loop {
        let mut magic = [0; 4];
        reader.read_exact(&mut magic)?;
        match &magic {
            b"HLBK" => {}
            // What follows the sequence of `HLBR` is the run, which is of no interest here.
            b"HLBE" | b"HLBR" => {
                let mut seq = [0; 8];
                reader.read_exact(&mut seq)?;
                ensure!(u64::from_le_bytes(seq) == last, "the end is told for another sequence than {last}");
                return Ok(last);
            }
            b"HLB3" => {
                let (mut first, mut rest) = ([0; 8], [0; 24]);
                reader.read_exact(&mut first)?;
                reader.read_exact(&mut rest)?;
                // After the number of entries come their newest time, their length, and that of what follows.
                let [count, length] = [0, 16].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|n| rest[at + n])));
                let (first, length) = (u64::from_le_bytes(first), usize::try_from(length)?);
                ensure!(first == last + 1, "entry {first} follows entry {last}");
                ensure!(length <= BATCH_BYTES_MAX, "a batch of {length} bytes");
                let mut bytes = vec![0; length];
                reader.read_exact(&mut bytes)?;
                ensure!(!seen.differs(first, count, bytes), "another follower got other lines from {first} on");
                last += u64::from(count);
            }
            other => bail!("{other:?} is no frame"),
        }
    }
}

/// How long a process has used processors (proc(5), `/proc/PID/stat`).
fn cpu_ms(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = parse_ticks(&stat).context("cannot read the times of the server")?;
    Ok(ticks as f64 * 1e3 / rustix::param::clock_ticks_per_second() as f64)
}

fn parse_ticks(stat: &str) -> Option<u64> {
    // The name may hold anything, so fields are counted from its end: utime and stime are the 14th and 15th of all.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, count: u32, length: u32) -> Vec<u8> {
        let (first, count) = (first.to_le_bytes(), count.to_le_bytes());
        let head = [&b"HLB3"[..], &first, &count, &[7; 8], &[7; 4], &length.to_le_bytes(), &[7; 4]].concat();
        [head, vec![0; length as usize]].concat()
    }

    #[test]
    fn gaps_repetitions_and_cuts_are_errors() {
        let end = |seq: u64| [&b"HLBE"[..], &seq.to_le_bytes()].concat();
        let read = |frames: &[Vec<u8>]| entries(&mut frames.concat().as_slice(), &Seen::default()).ok();
        assert_eq!(read(&[batch(1, 2, 9), b"HLBK".to_vec(), batch(3, 1, 0), end(3)]), Some(3));
        assert_eq!(read(&[batch(1, 2, 9), batch(4, 1, 0), end(4)]), None);
        assert_eq!(read(&[batch(1, 2, 9), batch(1, 2, 9), end(2)]), None);
        assert_eq!(read(&[batch(1, 2, 9)]), None);
        assert_eq!(read(&[batch(1, 2, 9), end(3)]), None);
    }

    #[test]
    fn other_lines_than_those_of_another_follower_are_an_error() {
        let seen = Seen::default();
        let read = |batch: &[u8]| entries(&mut [batch, b"HLBE", &2u64.to_le_bytes()].concat().as_slice(), &seen).ok();
        let (one, mut other) = (batch(1, 2, 9), batch(1, 2, 9));
        *other.last_mut().unwrap() = 1;
        assert_eq!([read(&one), read(&one), read(&other), read(&one)], [Some(2), Some(2), None, Some(2)]);
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20";
        assert_eq!(parse_ticks(stat), Some(42));
    }
}
