//! Follows the logs of many runs, each with several followers at once, and compares every byte with what was printed.
//!
//! `followers URL TOKEN_FILE FOLLOWERS_A_RUN` reads from standard input one line for each run: its id and the path of a file
//! with its whole output. It prints `half` once the followers together have got half of what they are to get, and at the end
//! a line of JSON for each follower. It ends with 0 whatever they got: judging is left to who reads the lines, such as
//! `cargo xtask bench streams`. A follower is what `holm logs --follow` has, with its patience and its waits.
#![allow(clippy::print_stdout)]

use std::{
    error::Error,
    io::BufRead as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use holm_api::client::{Client, Endpoint, follow::BatchFollower};
use holm_domain::RunId;
use tokio::task::JoinSet;

/// A pause that is not longer is not noted: what is printed has pauses of its own.
const GAP_MIN: Duration = Duration::from_secs(1);
/// How many pauses of a follower are noted, the longest ones.
const GAPS_MAX: usize = 16;

/// What one follower got.
#[derive(serde::Serialize)]
struct Report {
    run: RunId,
    lines: u64,
    bytes: usize,
    /// What was wrong, if anything.
    problem: Option<String>,
    /// When pauses began, in milliseconds since this process did, and how many milliseconds they lasted; the longest first.
    gaps: Vec<(u64, u64)>,
}

/// How much all followers together have got, and are to get.
struct Progress {
    begun: Instant,
    got: AtomicU64,
    half: u64,
}

impl Progress {
    fn add(&self, bytes: u64) {
        let before = self.got.fetch_add(bytes, Ordering::Relaxed);
        if before < self.half && before + bytes >= self.half {
            println!("half");
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, token_file, count] = arguments.as_slice() else {
        return Err("usage: followers URL TOKEN_FILE FOLLOWERS_A_RUN".into());
    };
    let (token, count) = (std::fs::read_to_string(token_file)?, count.parse::<u64>()?);
    let mut runs = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (run, path) = line.split_once(' ').ok_or("a line is not `RUN PATH`")?;
        runs.push((run.parse::<RunId>()?, Arc::<[u8]>::from(std::fs::read(path)?)));
    }
    let total: u64 = runs.iter().map(|(_, printed)| printed.len() as u64 * count).sum();
    let progress = Arc::new(Progress { begun, got: AtomicU64::new(0), half: total.div_ceil(2) });
    let mut followers = JoinSet::new();
    for (run, printed) in &runs {
        for _ in 0..count {
            // A client of its own, as each `holm logs` has one: nothing is shared that may hide a lost connection.
            let client = Client::new(Endpoint::parse(url)?, token.trim().to_owned().into())?;
            followers.spawn(follow(client, *run, Arc::clone(printed), Arc::clone(&progress)));
        }
    }
    while let Some(report) = followers.join_next().await {
        println!("{}", serde_json::to_string(&report?)?);
    }
    Ok(())
}

async fn follow(client: Client, run: RunId, printed: Arc<[u8]>, progress: Arc<Progress>) -> Report {
    let mut report = Report { run, lines: 0, bytes: 0, problem: None, gaps: Vec::new() };
    let mut batches = client.run_logs_batches(run, 0, None);
    let result = compare(&mut batches, &printed, &progress, &mut report).await;
    report.problem = result.err();
    report.gaps.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    report.gaps.truncate(GAPS_MAX);
    report
}

/// Reads to the end; anything but the next bytes of what was `printed` is an error, and so is an end before theirs.
async fn compare(
    batches: &mut BatchFollower,
    printed: &[u8],
    progress: &Progress,
    report: &mut Report,
) -> Result<(), String> {
    let mut seen: Option<Instant> = None;
    while let Some(batch) = batches.next().await.map_err(|error| error.to_string())? {
        // Before the first line nothing was to be waited for.
        let gap = seen.replace(Instant::now()).map_or(Duration::ZERO, |before| before.elapsed());
        if gap >= GAP_MIN {
            let began = progress.begun.elapsed().saturating_sub(gap);
            report.gaps.push((began.as_millis() as u64, gap.as_millis() as u64));
        }
        let before = report.bytes;
        for entry in batch.entries() {
            if !printed[report.bytes..].starts_with(entry.data) {
                return Err(format!("entry {} is not what was printed after {} bytes", entry.seq, report.bytes));
            }
            report.bytes += entry.data.len();
            report.lines += u64::from(!entry.partial);
        }
        progress.add((report.bytes - before) as u64);
    }
    let missing = printed.len() - report.bytes;
    if missing == 0 { Ok(()) } else { Err(format!("the last {missing} bytes are missing")) }
}
