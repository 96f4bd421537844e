//! A fleet whose parts are killed, stand still and are cut off from each other, at any time and many at once: every run ends
//! once, no run ever has two live sandboxes, and no line of output is lost or doubled.
//!
//! What happens is decided from a seed ([`schedule`]); how far each part has come when it does is not, so a seed that failed
//! need not fail again. Only root can give agents networks that can be cut, and the servers share a PostgreSQL: the fleet is
//! tested there, and the witness of overlaps everywhere.

mod driver;
mod judge;
mod runs;
mod schedule;
mod witness;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use holm_e2e::{Fleet, host};

use driver::{Counts, Driver};
use judge::{Judged, judge};
use runs::Runs;
use schedule::{Shape, Step, schedule};

/// Set to `soak` for a fleet that is larger, and a database that fails as well.
const EXTENT: &str = "HOLM_TEST_CHAOS";
/// From what the schedule is decided; where it is set, the faults are printed before they begin.
const SEED: &str = "HOLM_TEST_CHAOS_SEED";
const USUAL_SEED: u64 = 1;
/// In every test of everything.
const USUAL: Shape = Shape { servers: 2, agents: 3, runs: 100, span_ms: 45_000, database: false };
/// By itself. Runs come more slowly than in the other, for the database is away as well.
const SOAK: Shape = Shape { servers: 3, agents: 5, runs: 2_000, span_ms: 1_200_000, database: true };
/// Within which time of the last fault every run has ended that pauses no more: all leases are over by then, and what waited
/// is executed.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// What each run adds to it, as all may have to wait.
const EXECUTED_WITHIN: Duration = Duration::from_millis(100);
/// For how long a run pauses at most that has lost one lease after another (`RETRY_PAUSE_MAX`), as some do in the long run.
const PAUSES_FOR: Duration = Duration::from_secs(300);
/// How long all of it may take beyond the faults, and what it takes to look at each run.
const BEYOND: Duration = Duration::from_secs(150);
const LOOK_AT_EACH: Duration = Duration::from_millis(200);

fn say(text: &str) {
    // Who cannot be told is not waited for.
    let _untold = writeln!(std::io::stderr(), "{text}");
}

fn shape() -> Shape {
    match std::env::var(EXTENT).as_deref() {
        Err(_) => USUAL,
        Ok("soak") => SOAK,
        Ok(other) => panic!("{EXTENT}={other}: it is not set, or `soak`"),
    }
}

/// What to try again when it fails.
struct Seed {
    seed: u64,
    shape: Shape,
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let short = if self.shape == USUAL { " --short" } else { "" };
            say(&format!("again: cargo xtask chaos --seed {}{short}", self.seed));
        }
    }
}

#[test]
fn a_fleet_in_chaos_ends_every_run_once() {
    let is_on_postgres = std::env::var("HOLM_TEST_STORE").is_ok_and(|store| store == "postgres");
    if !is_on_postgres || !host::is_root() {
        say("a fleet has a PostgreSQL, and networks that only root can make");
        return;
    }
    let begun = Instant::now();
    let given =
        std::env::var(SEED).ok().map(|seed| seed.parse().unwrap_or_else(|_| panic!("{SEED}={seed}: no number")));
    let seed = Seed { seed: given.unwrap_or(USUAL_SEED), shape: shape() };
    let shape = seed.shape;
    let steps = schedule(seed.seed, shape);
    let is_fault = |step: &Step| matches!(step, Step::Begin(_) | Step::End(_) | Step::Cancel { .. });
    if given.is_some() {
        steps.iter().filter(|due| is_fault(&due.step)).for_each(|due| say(&due.to_string()));
    }
    let mut fleet = Fleet::start(shape.servers, shape.agents);
    let servers = (0..shape.servers).map(|server| fleet.http(server)).collect();
    let (runs, counts) = Driver::new(&mut fleet, Runs::new(seed.seed, servers)).follow(&steps);
    let rest = Instant::now();
    fleet.until_all_ready();
    let asked = runs.all();
    let pauses_for = if shape == SOAK { PAUSES_FOR } else { Duration::ZERO };
    let within = pauses_for + ENDS_WITHIN + EXECUTED_WITHIN * shape.runs as u32;
    let left = fleet.until_all_ended(within.saturating_sub(rest.elapsed()));
    let rested = rest.elapsed();
    let mut judged = judge(&fleet, &asked);
    judged.problems.extend(left.iter().map(|run| format!("not ended within {within:?}: {}", judge::brief(run))));
    tell(&counts, &judged, rested);
    assert!(judged.problems.is_empty(), "seed {}:\n{}", seed.seed, judged.problems.join("\n"));
    did_something(&counts, &judged, shape);
    // Whatever is left on the host fails the test here.
    drop(fleet);
    say(&format!("seed {}: {} runs, {:.1} s in all", seed.seed, asked.len(), begun.elapsed().as_secs_f64()));
    let most = Duration::from_millis(shape.span_ms) + pauses_for + BEYOND + LOOK_AT_EACH * shape.runs as u32;
    assert!(begun.elapsed() < most, "it took {:?}, and may take {most:?}", begun.elapsed());
}

fn tell(counts: &Counts, judged: &Judged, rested: Duration) {
    say(&format!("{counts:#?}"));
    say(&format!(
        "{:?}; {} lines, {} of them of attempts that were cut short; granted anew {} times; at rest after {:.1} s",
        judged.ends,
        judged.lines,
        judged.lines_cut_short,
        judged.granted_anew,
        rested.as_secs_f64()
    ));
}

/// Chaos that nobody felt shows nothing.
#[track_caller]
fn did_something(counts: &Counts, judged: &Judged, shape: Shape) {
    let was_felt = [
        counts.servers_killed_under_runs,
        counts.servers_paused,
        counts.agents_killed,
        counts.agents_paused,
        counts.wires_cut,
        counts.wires_cut_one_way,
        judged.granted_anew,
        // Each needs a sandbox that lives at the moment of a fault: where starts are slow, one of them may not be.
        counts.shims_paused + counts.killed_by_deadline + judged.lines_cut_short,
    ];
    assert!(was_felt.iter().all(|count| *count > 0), "{counts:?}, {judged:?}");
    assert!(!shape.database || counts.databases_ended > 0, "{counts:?}");
    let succeeded = judged.ends.get("succeeded").copied().unwrap_or_default();
    assert!(succeeded * 2 > shape.runs, "{:?}", judged.ends);
}
