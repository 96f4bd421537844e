//! `cargo xtask bench claims`: how many runs a server grants a second to many pollers, beside a queue of jobs that is known.
//!
//! What is measured is the whole path: pollers speak the agent protocol over HTTP to an optimised `holm server`, one claim a
//! poll, which is one transaction. On PostgreSQL it is measured by turns with procrastinate on the same server, where what is
//! committed is on the disk for both ([`peer`] says how that is called); on SQLite there is none beside it. Each run is granted
//! once, or it is an error. Then runs are submitted at half of what was reached while pollers wait, and at last one poller
//! claims alone from queues of several lengths.
//!
//! Left out: what follows a claim; `bench throughput` has whole runs.

mod fleet;
mod peer;
mod plot;
mod seed;

use std::{fs, sync::atomic::AtomicU64, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use self::{
    fleet::{AGENTS, Fleet},
    peer::{Peer, Setting},
    seed::{Database, psql},
};
use super::{Series, keep};
use crate::{
    installation::{Installation, Profile, build},
    places,
    postgres::{Postgres, Purpose},
    say,
};

/// What a claim from the longest queue may cost, as a multiple of one from the shortest.
const GROWTH_MAX: f64 = 1.5;
/// What is granted a second at least, as a multiple of what the peer does.
const RATIO_MIN: f64 = 1.0;
/// At which part of what was reached runs are submitted.
const HALF: f64 = 0.5;
/// So many claims are one measurement of a claim that is made alone, so each bears its part of the looks at the queue.
const BATCH: u32 = 25;
/// How many of them there are for each length of the queue.
const BATCHES: u64 = 24;
/// Leases outlast the measurement: nobody renews them, and all are held by one org.
const FLAGS: [&str; 6] = ["--lease-ttl", "1h", "--lease-margin", "2m", "--org-limit", "runs_running_max=10000000"];

/// The arguments of `bench claims`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// On which engine; both where none is named.
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    /// How many runs are queued and claimed in a round.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1_000..=150_000))]
    runs: u64,
    /// How many pollers.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pollers: u64,
    /// How many rounds, each with both by turns.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// For how many seconds runs are submitted at half load.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// A length of the queue for claims that are made alone; may be repeated.
    #[arg(long, default_values_t = [1_000, 10_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    rows: Vec<u64>,
    /// Draw the cost of a claim over the length of the queue, into the documentation.
    #[arg(long)]
    plot: bool,
}

/// Where runs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Postgres,
    Sqlite,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Cost {
    rows: u64,
    median_ms: f64,
    mean_ms: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Waits {
    per_second: f64,
    count: usize,
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Beside {
    claims_per_second: Vec<f64>,
    setting: Setting,
}

#[derive(Debug, Serialize)]
struct Report {
    engine: &'static str,
    pollers: u64,
    runs: u64,
    claims_per_second: Vec<f64>,
    procrastinate: Option<Beside>,
    half_load: Waits,
    costs: Vec<Cost>,
}

impl Report {
    /// How many times what the peer does is done, in the middle of the rounds.
    fn ratio(&self) -> Option<f64> {
        let beside = self.procrastinate.as_ref()?;
        let ratios = self.claims_per_second.iter().zip(&beside.claims_per_second).map(|(ours, theirs)| ours / theirs);
        middle(ratios.collect())
    }

    /// How much more a claim costs in the longest queue than in the shortest.
    fn growth(&self) -> Option<f64> {
        let (short, long) = (self.costs.first()?, self.costs.last()?);
        (short.rows < long.rows).then(|| long.median_ms / short.median_ms)
    }

    /// What must hold, and whether it does.
    fn verdicts(&self) -> Vec<(bool, String)> {
        let engine = self.engine;
        let ratio = self.ratio().map(|ratio| {
            (ratio >= RATIO_MIN, format!("{engine}: {ratio:.2} of the claims of procrastinate (at least {RATIO_MIN})"))
        });
        let growth = self.growth().map(|growth| {
            let text =
                format!("{engine}: {growth:.2} times the cost of a claim in the longest queue (at most {GROWTH_MAX})");
            (growth <= GROWTH_MAX, text)
        });
        ratio.into_iter().chain(growth).collect()
    }
}

/// Measures.
pub fn claims(arguments: &Arguments) -> Result<()> {
    super::raise_descriptors()?;
    seed::check_programs()?;
    let built = build(Profile::Release)?;
    let measured = |engine| arguments.engine.is_none_or(|wanted| wanted == engine);
    let mut reports = Vec::new();
    if measured(Engine::Postgres) {
        reports.push(on_postgres(arguments, &built)?);
    }
    if measured(Engine::Sqlite) {
        reports.push(on_sqlite(arguments, &built)?);
    }
    reports.iter().for_each(show);
    keep("claims", &reports)?;
    if arguments.plot {
        let lines: Vec<(&str, &[Cost])> =
            reports.iter().map(|report| (report.engine, report.costs.as_slice())).collect();
        let path = places::root()?.join("docs/claims.svg");
        fs::write(&path, plot::draw(&lines)).with_context(|| format!("cannot write {}", path.display()))?;
        say::note(&format!("drawn in {}", path.display()));
    }
    let holds = reports.iter().flat_map(Report::verdicts).all(|(holds, _)| holds);
    ensure!(holds, "fewer are claimed, or at a higher cost, than may be");
    Ok(())
}

fn on_postgres(arguments: &Arguments, built: &std::path::Path) -> Result<Report> {
    let server = Postgres::start(Purpose::Measurements)?;
    let database = |name: &str| -> Result<String> {
        psql(server.url(), &["-c", &format!("create database {name}")])?;
        let (base, _) = server.url().rsplit_once('/').context("a URL with a database")?;
        Ok(format!("{base}/{name}"))
    };
    say::step("procrastinate: which setting is best");
    let dir = tempfile::Builder::new().prefix("holm-bench-").tempdir()?;
    let peer = Peer::prepare(dir.path(), &database("procrastinate")?, u32::try_from(arguments.pollers)?)?;
    let (mut ours, mut theirs, mut half_load) = (Vec::new(), Vec::new(), None);
    for round in 1..=arguments.rounds {
        say::step(&format!("PostgreSQL, round {round}: {} runs, {} pollers", arguments.runs, arguments.pollers));
        theirs.push(peer.round(arguments.runs)?);
        let place = Place::new(built, Database::Postgres(database(&format!("round{round}"))?))?;
        ours.push(place.drain(arguments)?);
        say::note(&format!("procrastinate {:.0}/s, holm {:.0}/s", theirs[theirs.len() - 1], ours[ours.len() - 1]));
        if round == arguments.rounds {
            half_load = Some(place.half_load(arguments, &ours)?);
        }
    }
    let costs = Place::new(built, Database::Postgres(database("costs")?))?.costs(arguments)?;
    Ok(Report {
        engine: "PostgreSQL",
        pollers: arguments.pollers,
        runs: arguments.runs,
        claims_per_second: ours,
        procrastinate: Some(Beside { claims_per_second: theirs, setting: peer.setting }),
        half_load: half_load.context("there is a round")?,
        costs,
    })
}

fn on_sqlite(arguments: &Arguments, built: &std::path::Path) -> Result<Report> {
    say::step(&format!("SQLite: {} runs, {} pollers", arguments.runs, arguments.pollers));
    let dir = tempfile::Builder::new().prefix("holm-bench-").tempdir_in(places::on_disk())?;
    let file = |name: &str| Database::Sqlite(dir.path().join(name));
    let place = Place::new(built, file("queue.db"))?;
    let ours = vec![place.drain(arguments)?];
    let half_load = place.half_load(arguments, &ours)?;
    drop(place);
    let costs = Place::new(built, file("costs.db"))?.costs(arguments)?;
    Ok(Report {
        engine: "SQLite",
        pollers: arguments.pollers,
        runs: arguments.runs,
        claims_per_second: ours,
        procrastinate: None,
        half_load,
        costs,
    })
}

/// A server on a database of its own, with agents that have registered and a run that is queued.
struct Place {
    database: Database,
    fleet: Fleet,
    template: String,
    /// Ended when the place is left.
    _server: Installation,
}

impl Place {
    fn new(built: &std::path::Path, database: Database) -> Result<Self> {
        let url = database.url();
        let flags = [&FLAGS[..], &["--database", &url]].concat();
        let server = Installation::server(built, &flags)?;
        let agents = server.agent_token()?;
        let admin = fs::read_to_string(server.token())?.trim().to_owned();
        let fleet = Fleet { socket: server.socket(), agents, admin, spoken_for: AtomicU64::new(0) };
        database.add_hosts(&fleet.register()?, AGENTS)?;
        let template = fleet.submit()?;
        database.keep_template(&template)?;
        Ok(Self { database, fleet, template, _server: server })
    }

    /// Fills the queue and has it emptied; returns how many are claimed a second.
    fn drain(&self, arguments: &Arguments) -> Result<f64> {
        self.database.add_runs(&self.template, 0, arguments.runs - 1)?;
        let (begun, claims) = self.fleet.drain(arguments.pollers, arguments.runs)?;
        let last = claims.iter().map(|claim| claim.at).max().context("something was claimed")?;
        Ok(claims.len() as f64 / last.duration_since(begun).as_secs_f64())
    }

    /// How long runs wait that are submitted at half of what was reached.
    fn half_load(&self, arguments: &Arguments, reached: &[f64]) -> Result<Waits> {
        let per_second = middle(reached.to_vec()).context("something was reached")? * HALF;
        let count = (per_second * arguments.seconds as f64).ceil() as u64;
        say::step(&format!("{per_second:.0} runs a second are submitted while {} pollers wait", arguments.pollers));
        let mut waited = self.fleet.submit_and_claim(arguments.pollers, per_second, count)?;
        waited.sort_unstable();
        let at = |part: f64| waited[((waited.len() - 1) as f64 * part).round() as usize].as_secs_f64() * 1e3;
        Ok(Waits { per_second, count: waited.len(), p50_ms: at(0.5), p99_ms: at(0.99) })
    }

    /// What a claim costs that is made alone, for each length of the queue.
    fn costs(&self, arguments: &Arguments) -> Result<Vec<Cost>> {
        let (mut costs, mut made, mut queued) = (Vec::new(), 0, 1);
        let mut lengths = arguments.rows.clone();
        lengths.sort_unstable();
        for rows in lengths {
            say::step(&format!("a claim from {rows} queued runs"));
            let missing = rows.saturating_sub(queued);
            self.database.add_runs(&self.template, made, missing)?;
            (made, queued) = (made + missing, queued + missing);
            let batches = self.fleet.claim_alone(BATCHES, BATCH)?;
            queued -= BATCHES * u64::from(BATCH);
            let each: Vec<Duration> = batches.iter().map(|batch| *batch / BATCH).collect();
            let median_ms = Series::of(&each).context("something was claimed")?.median_ms;
            let mean_ms = each.iter().sum::<Duration>().as_secs_f64() * 1e3 / each.len() as f64;
            costs.push(Cost { rows, median_ms, mean_ms });
        }
        Ok(costs)
    }
}

fn middle(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let count = numbers.len();
    Some((numbers.get(count.checked_sub(1)? / 2)? + numbers.get(count / 2)?) / 2.0)
}

fn show(report: &Report) {
    let line = |text: String| say::result(&format!("{:10} {text}", report.engine));
    let rates = |rates: &[f64]| rates.iter().map(|rate| format!("{rate:.0}")).collect::<Vec<_>>().join(", ");
    line(format!("holm, {} pollers          {} claims/s", report.pollers, rates(&report.claims_per_second)));
    if let Some(Beside { claims_per_second, setting }) = &report.procrastinate {
        line(format!("procrastinate ({setting})  {} claims/s", rates(claims_per_second)));
    }
    let Waits { per_second, count, p50_ms, p99_ms } = report.half_load;
    line(format!("from submit to claim at {per_second:.0}/s: p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms of {count}"));
    for Cost { rows, median_ms, mean_ms } in &report.costs {
        line(format!("a claim from {rows:8} rows: {median_ms:.3} ms (mean {mean_ms:.3} ms)"));
    }
    for (holds, text) in report.verdicts() {
        say::result(&format!("{}: {text}", if holds { "ok" } else { "NOT MET" }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_judged_is_the_middle_of_the_rounds_and_the_ends_of_the_queue() {
        let cost = |rows, median_ms| Cost { rows, median_ms, mean_ms: median_ms };
        let report = |theirs: [f64; 3], costs| Report {
            engine: "PostgreSQL",
            pollers: 1,
            runs: 1,
            claims_per_second: vec![100.0, 200.0, 300.0],
            procrastinate: Some(Beside { claims_per_second: theirs.to_vec(), setting: Setting::default() }),
            half_load: Waits { per_second: 1.0, count: 1, p50_ms: 1.0, p99_ms: 1.0 },
            costs,
        };
        let held = |report: Report| report.verdicts().iter().map(|(holds, _)| *holds).collect::<Vec<_>>();
        let good = report([100.0, 190.0, 310.0], vec![cost(1_000, 1.0), cost(1_000_000, 1.5)]);
        assert_eq!(held(good), [true, true]);
        let bad = report([110.0, 190.0, 310.0], vec![cost(1_000, 1.0), cost(10, 9.0), cost(1_000_000, 1.6)]);
        assert_eq!(held(bad), [false, false]);
        assert_eq!(held(report([1.0; 3], vec![cost(1_000, 1.0)])), [true], "one length is no growth");
    }
}
