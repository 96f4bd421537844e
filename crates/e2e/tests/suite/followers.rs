//! A server that dies and comes back under many who follow one log, each by one of the ways there are.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holm_api::{
    batches::LogBatch,
    client::{
        Client, Endpoint,
        follow::{Followed, Follower},
    },
    logs::LogEntry,
};
use holm_e2e::{DEADLINE, Running, World, eventually, http::Http};
use serde_json::Value;

/// How many follow with the library, by server-sent events and by batches; and how many as a stranger and by the binary.
const BY_EVENTS: usize = 46;
const BY_BATCHES: usize = 46;
const STRANGERS: usize = 4;
const PROCESSES: usize = 4;

/// Writes numbers until it is enough.
const COUNT: &str = "\
import itertools, os, time
for n in itertools.count(1):
    print(n, flush=True)
    if os.path.exists('/gate/enough'):
        break
    time.sleep(0.01)
";

/// The last line that each follower has seen.
type Progress = Arc<Vec<AtomicU64>>;

/// The lines that came, each with its sequence, in the order in which they came.
type Came = Vec<(u64, Vec<u8>)>;

/// What a follower is given at once, as lines.
trait Lines: Followed {
    fn lines(&self) -> Came;
}

impl Lines for LogEntry {
    fn lines(&self) -> Came {
        vec![(self.seq, self.bytes().expect("the bytes of an entry"))]
    }
}

impl Lines for LogBatch {
    fn lines(&self) -> Came {
        self.entries().map(|entry| (entry.seq, entry.data.to_vec())).collect()
    }
}

/// Follows with the library until the log is complete.
async fn follow<T: Lines>(mut follower: Follower<T>, progress: Progress, number: usize) -> Came {
    let mut came = Came::new();
    while let Some(item) = follower.next().await.expect("the server comes back in time") {
        came.extend(item.lines());
        progress[number].store(came.last().map_or(0, |(seq, _)| *seq), Ordering::SeqCst);
    }
    came
}

/// All who follow with the library, in one thread.
fn follow_with_library(client: Client, run: String, progress: Progress) -> JoinHandle<Vec<Came>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    thread::spawn(move || {
        let id = run.parse().expect("the id of a run");
        runtime.block_on(async {
            let mut following = Vec::new();
            for number in 0..BY_EVENTS {
                following.push(tokio::spawn(follow(client.run_logs_follow(id, 0), Arc::clone(&progress), number)));
            }
            for number in BY_EVENTS..BY_EVENTS + BY_BATCHES {
                let follower = client.run_logs_batches(id, 0, None);
                following.push(tokio::spawn(follow(follower, Arc::clone(&progress), number)));
            }
            let mut all = Vec::new();
            for one in following {
                all.push(one.await.expect("a follower"));
            }
            all
        })
    })
}

/// Follows as the standard of server-sent events has it, and drops nothing: what comes twice is seen twice.
fn follow_as_stranger(http: &Http, path: &str, progress: &AtomicU64) -> Came {
    let mut came = Came::new();
    let mut heard_at = Instant::now();
    loop {
        let last_id = came.last().map(|(seq, _)| seq.to_string());
        if let Ok(mut events) = http.try_follow(path, last_id.as_deref()) {
            while let Ok(Some(event)) = events.try_next() {
                if event.event == "end" {
                    return came;
                }
                let entry: Value = serde_json::from_str(&event.data).expect("an entry");
                let seq = event.id.and_then(|id| id.parse().ok()).expect("an id");
                came.push((seq, entry["text"].as_str().expect("a line").as_bytes().to_vec()));
                progress.store(seq, Ordering::SeqCst);
                heard_at = Instant::now();
            }
        }
        assert!(heard_at.elapsed() < DEADLINE, "nothing came within {DEADLINE:?} after line {}", came.len());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until every follower has seen more than any has now.
fn until_all_saw_more(progress: &Progress, processes: &[Running]) {
    let seen = |progress: &Progress| progress.iter().map(|seen| seen.load(Ordering::SeqCst)).collect::<Vec<_>>();
    let most = seen(progress).into_iter().max().unwrap_or(0);
    let sizes: Vec<_> = processes.iter().map(Running::stdout_bytes).collect();
    eventually("each follower saw more", || {
        let library = seen(progress).into_iter().all(|seen| seen > most);
        let binary = processes.iter().zip(&sizes).all(|(process, size)| process.stdout_bytes() > *size);
        (library && binary).then_some(())
    });
}

#[test]
fn a_server_killed_twice_under_a_hundred_followers_costs_none_of_them_a_line() {
    let mut world = World::with_server();
    world.start_agent("only");
    let gate = world.folder("gate");
    let mount = format!("{}:/gate:ro", gate.display());
    let run = world.detach(["--mount", &mount, "--", "/usr/bin/python3", "-c", COUNT]);
    world.until_state(&run, "running");

    let http = world.http();
    let token = http.token.clone().expect("a token");
    let client = Client::new(Endpoint::Unix(http.socket.clone()), token.into()).expect("a client");
    let progress: Progress = Arc::new((0..BY_EVENTS + BY_BATCHES + STRANGERS).map(|_| AtomicU64::new(0)).collect());
    let library = follow_with_library(client, run.clone(), Arc::clone(&progress));
    let strangers: Vec<_> = (BY_EVENTS + BY_BATCHES..progress.len())
        .map(|number| {
            let (http, progress) = (http.clone(), Arc::clone(&progress));
            let path = format!("/v1/runs/{run}/logs/follow");
            thread::spawn(move || follow_as_stranger(&http, &path, &progress[number]))
        })
        .collect();
    let processes: Vec<_> =
        (0..PROCESSES).map(|_| Running::start(world.command().args(["logs", "-f", &run]))).collect();

    for _ in 0..2 {
        until_all_saw_more(&progress, &processes);
        world.kill_server();
        // The command goes on writing.
        thread::sleep(Duration::from_millis(500));
        world.start_server();
    }
    until_all_saw_more(&progress, &processes);
    fs::write(gate.join("enough"), "").expect("a file");

    let view = world.until_ended(&run);
    assert_eq!((&view["outcome"]["kind"], &view["fence"]), (&"succeeded".into(), &1.into()), "{view}");
    let text = world.logs(&run).text().to_owned();
    let count = text.lines().count() as u64;
    let wanted: Came = (1..=count).map(|number| (number, format!("{number}\n").into_bytes())).collect();
    let joined: String = (1..=count).map(|number| format!("{number}\n")).collect();
    assert!(text == joined, "what is stored has lines that are missing, doubled or out of order");
    let mut all = library.join().expect("the library");
    all.extend(strangers.into_iter().map(|stranger| stranger.join().expect("a stranger")));
    assert_eq!(all.len() + processes.len(), 100);
    for (number, came) in all.into_iter().enumerate() {
        assert!(came == wanted, "follower {number} has lines that are missing, doubled or out of order");
    }
    for process in processes {
        assert!(process.wait().succeeds().text() == joined, "`holm logs -f` missed something");
    }
}
