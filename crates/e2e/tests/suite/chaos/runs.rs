//! The runs of a fleet in chaos: submitted, cancelled and read by whichever server answers, each in a thread of its own, for a
//! server that stands still answers late.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holm_e2e::http::{Answer, Http};
use serde_json::{Value, json};

/// Writes numbered lines, each with a word that no other attempt has.
const COUNT: &str = "\
import os, sys, time
attempt, lines, pause = os.urandom(8).hex(), int(sys.argv[1]), int(sys.argv[2]) / 1000
for n in range(1, lines + 1):
    print(attempt, n, flush=True)
    time.sleep(pause)
";
/// How long a request may be repeated until a server has answered it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// The pause before a request is repeated.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A line of a log as a server has told it: its sequence and its text.
pub type Line = (u64, String);

/// What was asked of a run.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Its id, once a server has said that it has the run.
    pub id: Option<String>,
    /// How many lines it is to write.
    pub lines: u32,
    /// Whether it was to be cancelled.
    pub is_cancelled: bool,
    /// What was read of its log, each time.
    pub readings: Vec<Vec<Line>>,
}

/// All runs that were submitted, in their order.
pub struct Runs {
    seed: u64,
    servers: Vec<Http>,
    asked: Arc<Mutex<Vec<Asked>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Runs {
    pub fn new(seed: u64, servers: Vec<Http>) -> Self {
        Self { seed, servers, asked: Arc::default(), threads: Vec::new() }
    }

    /// Submits a run, again and again until a server has it.
    pub fn submit(&mut self, lines: u32, pause_ms: u32) {
        let mut asked = lock(&self.asked);
        let number = asked.len();
        asked.push(Asked { lines, ..Asked::default() });
        drop(asked);
        let argv = json!(["/usr/bin/python3", "-c", COUNT, lines.to_string(), pause_ms.to_string()]);
        let limits = json!({ "memory_bytes": 128 << 20, "timeout_ms": 120_000 });
        let body = json!({ "spec": { "root": { "kind": "host" }, "argv": argv, "limits": limits } });
        let key = format!("{}-{number}", self.seed);
        self.go(number, move |servers, asked| {
            let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
            let taken = persist(servers, "POST", "/v1/runs", &headers, &body);
            let id = taken.json()["id"].as_str().expect("the id of a run").to_owned();
            lock(asked)[number].id = Some(id);
        });
    }

    /// Cancels a run, unless no server has said yet that it has it.
    pub fn cancel(&mut self, number: usize, kill: bool) {
        let mut asked = lock(&self.asked);
        let Some(id) = asked[number].id.clone() else { return };
        asked[number].is_cancelled = true;
        drop(asked);
        self.go(number, move |servers, _| {
            let path = format!("/v1/runs/{id}/cancel");
            persist(servers, "POST", &path, &[("content-type", "application/json")], &json!({ "kill": kill }));
        });
    }

    /// Reads what there is of a log, if a server tells it.
    pub fn read(&mut self, number: usize) {
        let Some(id) = lock(&self.asked)[number].id.clone() else { return };
        self.go(number, move |servers, asked| {
            if let Ok(Some((lines, _))) = log(&servers[0], &id) {
                lock(asked)[number].readings.push(lines);
            }
        });
    }

    /// Does something with the servers, another one first each time.
    fn go(&mut self, number: usize, work: impl FnOnce(&[Http], &Mutex<Vec<Asked>>) + Send + 'static) {
        let mut servers = self.servers.clone();
        servers.rotate_left((number + self.threads.len()) % self.servers.len());
        let asked = Arc::clone(&self.asked);
        self.threads.push(thread::spawn(move || work(&servers, &asked)));
    }

    /// Waits for all that was begun; what was asked of each run.
    #[track_caller]
    pub fn all(self) -> Vec<Asked> {
        let failed = self.threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        assert_eq!(failed, 0, "requests that no server answered as it should");
        std::mem::take(&mut *lock(&self.asked))
    }
}

fn lock(asked: &Mutex<Vec<Asked>>) -> MutexGuard<'_, Vec<Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks one server after another until one has done it.
#[track_caller]
fn persist(servers: &[Http], method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let begun = Instant::now();
    for server in servers.iter().cycle() {
        let last = match server.try_send(method, path, headers, body.to_string().as_bytes()) {
            Ok(answer) if answer.status < 300 => return answer,
            // Not now: the database is away, or the server is about to end.
            Ok(answer) if [429, 503].contains(&answer.status) => answer.status.to_string(),
            Ok(answer) => panic!("{method} {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            Err(error) => error.to_string(),
        };
        assert!(begun.elapsed() < ANSWERED_WITHIN, "{method} {path}: not within {ANSWERED_WITHIN:?}: {last}");
        thread::sleep(AGAIN_AFTER);
    }
    panic!("there is no server")
}

/// The log of a run as a server tells it, and whether it is complete; nothing where the server cannot tell now.
pub fn log(server: &Http, run: &str) -> std::io::Result<Option<(Vec<Line>, bool)>> {
    let answer = server.try_send("GET", &format!("/v1/runs/{run}/logs?limit=10000"), &[], b"")?;
    if answer.status != 200 {
        return Ok(None);
    }
    let page = answer.json();
    let entries = page["entries"].as_array().into_iter().flatten();
    let line = |entry: &Value| Some((entry["seq"].as_u64()?, entry["text"].as_str()?.to_owned()));
    let lines = entries.map(|entry| line(entry).ok_or_else(|| std::io::Error::other(format!("{entry}"))));
    Ok(Some((lines.collect::<Result<_, _>>()?, page["complete"] == true)))
}
