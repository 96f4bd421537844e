//! Pollers that speak the agent protocol over HTTP, each on a connection of its own, and clients that submit runs.
//!
//! What always holds: a poller claims one run a poll, as an agent whose answer is not there before it asks again; each poll
//! lists what its agent holds; nothing that is claimed is renewed or ended, as the leases outlast the measurement.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::seed;
use crate::exec;

/// How many leases an agent has before its poller speaks for the next: a host that is full.
const HELD_MAX: usize = 25;
/// How many agents there are for all pollers, beside the one of which they are copies. An org has at most 10,000 hosts.
pub const AGENTS: u64 = 9_500;
/// How long a poll waits for a run.
const WAIT_MS: u64 = 2_000;
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How long a line of the head of an answer may be, and a part of its body, in bytes.
const LINE_BYTES_MAX: u64 = 8 * 1024;
const BODY_BYTES_MAX: usize = 8 << 20;
/// How many clients submit at once.
const CLIENTS: u64 = 32;
const STACK_BYTES: usize = 256 * 1024;
/// The process of every agent.
const INSTANCE: &str = "ins_00000000000000000000000001";
const CAPACITY: &str = r#"{"runs":1000,"cpus_milli":1000000,"memory_bytes":1000000000000000}"#;
const RUNTIME: &str = r#"{"name":"process","capabilities":["root.host"],"unenforced":[]}"#;
const RUN: &str = r#"{"spec":{"root":{"kind":"host"},"argv":["true"]}}"#;

/// Where the server is, and with which tokens it is spoken to.
pub struct Fleet {
    /// Its socket.
    pub socket: PathBuf,
    /// The token of all agents.
    pub agents: String,
    /// The token of who submits.
    pub admin: String,
    /// How many agents have been spoken for.
    pub spoken_for: AtomicU64,
}

/// A run that was claimed.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Its id.
    pub run: String,
    /// When the answer was there.
    pub at: Instant,
}

/// A connection that is kept.
struct Connection {
    stream: BufReader<UnixStream>,
    token: String,
}

impl Connection {
    fn open(fleet: &Fleet, token: &str) -> Result<Self> {
        let stream = UnixStream::connect(&fleet.socket).context("cannot connect")?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(Self { stream: BufReader::new(stream), token: token.to_owned() })
    }

    /// Sends a body and reads what is answered.
    fn post<T: DeserializeOwned>(&mut self, path: &str, body: &str) -> Result<T> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: holm\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (status, body) = answer(&mut self.stream)?;
        ensure!((200..300).contains(&status), "{path} answered {status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).context("an answer is no JSON")
    }
}

/// Reads an answer: its status and its body, which comes whole or in chunks (RFC 9112, 7.1).
fn answer(stream: &mut impl BufRead) -> Result<(u16, Vec<u8>)> {
    let status = line(stream)?;
    let status =
        status.split(' ').nth(1).and_then(|status| status.parse().ok()).context("an answer without a status")?;
    let mut length = None;
    loop {
        let head = line(stream)?.to_ascii_lowercase();
        match head.split_once(':') {
            Some(("content-length", value)) => length = Some(value.trim().parse()?),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = Vec::new();
    if let Some(length) = length {
        append(stream, &mut body, length)?;
        return Ok((status, body));
    }
    loop {
        let length = usize::from_str_radix(&line(stream)?, 16).context("a chunk without its length")?;
        append(stream, &mut body, length)?;
        ensure!(line(stream)?.is_empty(), "a chunk is longer than it says");
        if length == 0 {
            return Ok((status, body));
        }
    }
}

fn line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    let length = stream.take(LINE_BYTES_MAX).read_line(&mut line)?;
    ensure!(length > 0 && line.ends_with("\r\n"), "the server hung up, or a line has no end");
    line.truncate(line.len() - 2);
    Ok(line)
}

fn append(stream: &mut impl BufRead, body: &mut Vec<u8>, length: usize) -> Result<()> {
    ensure!(length <= BODY_BYTES_MAX, "an answer of {length} bytes");
    let have = body.len();
    body.resize(have + length, 0);
    Ok(stream.read_exact(&mut body[have..])?)
}

/// One poller, and the agent that it speaks for.
struct Poller<'a> {
    fleet: &'a Fleet,
    connection: Connection,
    agent: String,
    /// What it holds, as JSON.
    held: Vec<String>,
}

/// What is read of an answer to a poll.
#[derive(Deserialize)]
struct Polled {
    claimed: Vec<Claimed>,
}

#[derive(Deserialize)]
struct Claimed {
    run: String,
    fence: u64,
}

#[derive(Deserialize)]
struct Submitted {
    id: String,
}

impl<'a> Poller<'a> {
    fn new(fleet: &'a Fleet) -> Result<Self> {
        let connection = Connection::open(fleet, &fleet.agents)?;
        Ok(Self { fleet, connection, agent: fleet.next_agent()?, held: Vec::new() })
    }

    /// Polls once.
    fn poll(&mut self, wait_ms: u64) -> Result<Option<Claim>> {
        if self.held.len() >= HELD_MAX {
            self.agent = self.fleet.next_agent()?;
            self.held.clear();
        }
        let body = format!(
            r#"{{"agent":"{}","instance":"{INSTANCE}","wait_ms":{wait_ms},"claims_max":1,"free":{CAPACITY},"held":[{}]}}"#,
            self.agent,
            self.held.join(",")
        );
        let Polled { mut claimed } = self.connection.post("/agent/v1/poll", &body)?;
        let at = Instant::now();
        ensure!(claimed.len() <= 1, "more was claimed than was asked for");
        let Some(Claimed { run, fence }) = claimed.pop() else { return Ok(None) };
        ensure!(fence == 1, "run {run} was claimed before: its fence is {fence}");
        self.held.push(format!(r#"{{"run":"{run}","fence":1}}"#));
        Ok(Some(Claim { run, at }))
    }
}

impl Fleet {
    /// An agent that nobody has spoken for.
    fn next_agent(&self) -> Result<String> {
        let number = self.spoken_for.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(number <= AGENTS, "all of {AGENTS} agents hold {HELD_MAX} runs: give fewer runs");
        seed::agent(number)
    }

    /// Registers an agent of which the others are copies; returns its id.
    pub fn register(&self) -> Result<String> {
        let agent = seed::agent(0)?;
        let body = format!(
            r#"{{"agent":"{agent}","instance":"{INSTANCE}","name":"bench","version":"0","capacity":{CAPACITY},"runtimes":[{RUNTIME}]}}"#
        );
        Connection::open(self, &self.agents)?.post::<IgnoredAny>("/agent/v1/register", &body)?;
        Ok(agent)
    }

    /// Submits a run; returns its id.
    pub fn submit(&self) -> Result<String> {
        submit(&mut Connection::open(self, &self.admin)?)
    }

    /// Claims runs with so many pollers until `count` are claimed, each of them once.
    pub fn drain(&self, pollers: u64, count: u64) -> Result<(Instant, Vec<Claim>)> {
        let left = AtomicU64::new(count);
        // All are connected before any of them asks.
        let ready: Vec<Poller> = (0..pollers).map(|_| Poller::new(self)).collect::<Result<_>>()?;
        let begun = Instant::now();
        let claims = all(ready.into_iter().map(|poller| || until_none_is_left(poller, &left)))?;
        let claims: Vec<Claim> = claims.into_iter().flatten().collect();
        let once: HashSet<&str> = claims.iter().map(|claim| claim.run.as_str()).collect();
        ensure!(once.len() == claims.len(), "a run was claimed twice");
        ensure!(claims.len() as u64 == count, "{} runs were claimed of {count}", claims.len());
        Ok((begun, claims))
    }

    /// Has one poller claim `batches` times `each` runs, one after the other; how long each batch took.
    pub fn claim_alone(&self, batches: u64, each: u32) -> Result<Vec<Duration>> {
        let mut poller = Poller::new(self)?;
        let mut batch = || {
            let begun = Instant::now();
            for _ in 0..each {
                exec::check_interrupt()?;
                poller.poll(0)?.context("the queue is empty")?;
            }
            Ok(begun.elapsed())
        };
        (0..batches).map(|_| batch()).collect()
    }

    /// Submits `count` runs, `rate` a second, while as many pollers wait; from when each was due to be submitted until its
    /// claim was there.
    pub fn submit_and_claim(&self, pollers: u64, rate: f64, count: u64) -> Result<Vec<Duration>> {
        let next = AtomicU64::new(0);
        thread::scope(|scope| {
            let claiming = scope.spawn(|| self.drain(pollers, count));
            // They wait when the first run is submitted.
            thread::sleep(Duration::from_millis(500));
            let begun = Instant::now();
            let clients: Vec<Connection> =
                (0..CLIENTS).map(|_| Connection::open(self, &self.admin)).collect::<Result<_>>()?;
            let submitted = all(clients.into_iter().map(|client| || submit_at(client, &next, begun, (rate, count))))?;
            let (_, claims) = claiming.join().map_err(|_| anyhow::anyhow!("a poller panicked"))??;
            let due: HashMap<String, Instant> = submitted.into_iter().flatten().collect();
            let waited = claims.into_iter().map(|claim| {
                let due =
                    due.get(&claim.run).with_context(|| format!("{} was claimed and not submitted", claim.run))?;
                Ok(claim.at.saturating_duration_since(*due))
            });
            waited.collect()
        })
    }
}

fn submit(connection: &mut Connection) -> Result<String> {
    let Submitted { id } = connection.post("/v1/runs", RUN)?;
    Ok(id)
}

fn submit_at(
    mut client: Connection,
    next: &AtomicU64,
    begun: Instant,
    (rate, count): (f64, u64),
) -> Result<Vec<(String, Instant)>> {
    let mut submitted = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Ok(submitted);
        }
        exec::check_interrupt()?;
        let due = begun + Duration::from_secs_f64(number as f64 / rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        submitted.push((submit(&mut client)?, due));
    }
}

fn until_none_is_left(mut poller: Poller<'_>, left: &AtomicU64) -> Result<Vec<Claim>> {
    let (mut claims, mut idle_since) = (Vec::new(), Instant::now());
    while left.load(Ordering::Relaxed) > 0 {
        exec::check_interrupt()?;
        if let Some(claim) = poller.poll(WAIT_MS)? {
            left.fetch_sub(1, Ordering::Relaxed);
            claims.push(claim);
            idle_since = Instant::now();
        }
        ensure!(
            idle_since.elapsed() < ANSWER_MAX,
            "a poller waits, and {} runs are not claimed",
            left.load(Ordering::Relaxed)
        );
    }
    Ok(claims)
}

/// Does all of the work at once, each part on a thread of its own.
fn all<T: Send>(work: impl Iterator<Item = impl FnOnce() -> Result<T> + Send>) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let spawn = |part| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, part);
        let threads: Vec<_> = work.map(spawn).collect::<std::io::Result<_>>().context("cannot start a thread")?;
        let join = |thread: thread::ScopedJoinHandle<'_, Result<T>>| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread panicked"),
        };
        threads.into_iter().map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_in_chunks() {
        let read = |text: &str| answer(&mut text.as_bytes()).ok();
        let body = |text: &[u8]| Some((201, text.to_vec()));
        assert_eq!(read("HTTP/1.1 201 Created\r\nContent-Length: 2\r\nx: y\r\n\r\n{}"), body(b"{}"));
        let head = "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(read(&format!("{head}3\r\n{{ab\r\n1\r\n}}\r\n0\r\n\r\n")), body(b"{ab}"));
        assert_eq!(read(&format!("{head}3\r\n{{abc\r\n0\r\n\r\n")), None, "a chunk is longer than it says");
        assert_eq!(read(&format!("{head}3\r\n{{ab\r\n")), None, "it has no end");
    }
}
