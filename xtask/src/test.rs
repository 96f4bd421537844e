//! `cargo xtask test`: every check and every test, as continuous integration runs them.
//!
//! A step that fails does not stop the next one, so one run shows all that is wrong; the last line counts tests. Nothing is
//! skipped in silence: where a step cannot run, it fails and says why. Only the dev profile is built. Each step has a time
//! in which it must be done. In continuous integration (`CI=true`) what only root can test is not left out.

mod count;
mod fresh_clone;
mod plain_user;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    exec, fuzz, openapi, places,
    postgres::{Postgres, Purpose},
    say,
    scratch::Scratch,
    setup, tidy,
};
use count::Counts;

/// The arguments of `test`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only the steps whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// What the steps need; what takes long is made for the first that does.
#[derive(Default)]
pub struct Context {
    postgres: OnceLock<Postgres>,
    scratch: OnceLock<Scratch>,
    counts: Mutex<Counts>,
}

type Step = (&'static str, Duration, fn(&Context) -> Result<()>);

/// For what only reads files.
const LOOKING: Duration = Duration::from_secs(10 * 60);
/// For what builds everything, on a slow machine.
const BUILDING: Duration = Duration::from_secs(60 * 60);
/// For what runs a suite, with what it has to build.
const TESTING: Duration = Duration::from_secs(90 * 60);
/// For everything, in continuous integration.
const ALL: Duration = Duration::from_secs(75 * 60);
/// How long each target is fuzzed: enough for the corpus that is kept and a look beyond.
const FUZZING_EACH: Duration = Duration::from_secs(30);
/// For packages from the network.
const SETTING_UP: Duration = Duration::from_secs(30 * 60);

const STEPS: [Step; 11] = [
    ("format", LOOKING, format),
    ("tidy", LOOKING, |_| tidy::tidy()),
    ("clippy", BUILDING, clippy),
    ("openapi", BUILDING, |_| openapi::openapi(&openapi::Arguments { check: true })),
    ("unit tests", TESTING, unit_tests),
    ("guest tests", TESTING, guest_tests),
    ("fuzzing", TESTING, |_| fuzz::fuzz_all(FUZZING_EACH)),
    // On the disk, where people have it.
    ("end to end on SQLite", TESTING, |context| context.run_tests(&mut suite("sqlite", &tested()?)?)),
    ("end to end on PostgreSQL", TESTING, |context| {
        let scratch = context.scratch()?;
        context.run_tests(scratch.give(&mut suite("postgres", scratch.path())?).args(NOT_OF_A_STORE))
    }),
    ("as a plain user", TESTING, plain_user::tests),
    ("fresh clone", BUILDING, fresh_clone::check),
];

/// Runs everything and sums up.
pub fn test(arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    say::step("setup");
    exec::within(SETTING_UP, || setup::setup(&setup::Arguments::default()))?;
    let context = Context::default();
    let mut summary = Vec::new();
    let is_wanted = |(name, ..): &&Step| arguments.only.as_ref().is_none_or(|only| name.contains(only));
    for (name, limit, step) in STEPS.iter().filter(is_wanted) {
        say::step(name);
        let started = Instant::now();
        let result = exec::within(*limit, || step(&context));
        exec::check_interrupt()?;
        if let Err(error) = &result {
            say::error(&format!("{error:#}"));
        }
        summary.push((*name, result.is_ok(), started.elapsed()));
    }
    conclude(&context.counts(), &summary, begun.elapsed())
}

fn conclude(counts: &Counts, summary: &[(&str, bool, Duration)], elapsed: Duration) -> Result<()> {
    say::step(&format!("{} steps in {:.0} s", summary.len(), elapsed.as_secs_f64()));
    for (name, sound, elapsed) in summary {
        let verdict = if *sound { "ok" } else { "FAILED" };
        say::note(&format!("{verdict:6} {:6.1} s  {name}", elapsed.as_secs_f64()));
    }
    let failed: Vec<&str> = summary.iter().filter(|(_, sound, _)| !sound).map(|(name, ..)| *name).collect();
    say::result(&format!("{counts}; {:.0} s in all", elapsed.as_secs_f64()));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    in_time(elapsed, is_ci())
}

/// What takes too long in all is not run often enough.
fn in_time(elapsed: Duration, is_ci: bool) -> Result<()> {
    if is_ci && elapsed > ALL {
        bail!("all steps together took {:.0} s, and may take {} s", elapsed.as_secs_f64(), ALL.as_secs());
    }
    Ok(())
}

impl Context {
    fn postgres(&self) -> Result<&Postgres> {
        made(&self.postgres, || Postgres::start(Purpose::Tests))
    }

    fn scratch(&self) -> Result<&Scratch> {
        made(&self.scratch, Scratch::in_memory)
    }

    fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs a command that runs tests, and counts them.
    fn run_tests(&self, command: &mut Command) -> Result<()> {
        command.env("HOLM_TEST_POSTGRES", self.postgres()?.url());
        command.env("HOLM_TEST_KERNEL_DIR", places::test_kernel()?);
        let before = self.counts();
        let status = exec::watch(command, |line| {
            self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).see(line);
        })?;
        let counts = self.counts();
        if !status.success() {
            bail!("`{}` failed: {status}", exec::line(command));
        }
        // A filter that matches nothing and a harness that says nothing must not look like success.
        if counts.passed == before.passed {
            bail!("`{}` ran no tests", exec::line(command));
        }
        Ok(())
    }
}

/// What `place` holds, made now if nobody has asked for it before.
fn made<T>(place: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match place.get() {
        Some(made) => Ok(made),
        None => {
            let new = make()?;
            Ok(place.get_or_init(|| new))
        }
    }
}

/// Whether this is continuous integration, where nothing may be left out.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// A cargo command in the checkout.
fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = exec::cargo();
    command.args(arguments).current_dir(places::root()?);
    Ok(command)
}

fn has_nextest() -> bool {
    places::program("cargo-nextest").is_some()
}

const GUEST_MANIFEST: [&str; 2] = ["--manifest-path", "crates/guest/Cargo.toml"];
/// Whatever runs of it, all of it is built: what it depends on has other features for each choice of packages, and would be
/// built anew for each.
pub const WHOLE: &str = "--workspace";
/// Targets of fuzzing have no tests, and would be built without their instrumentation.
const TESTED: [&str; 3] = [WHOLE, "--exclude", "holm-fuzz"];
const END_TO_END: &str = "holm-e2e";

fn format(_: &Context) -> Result<()> {
    exec::run(&mut cargo(&["fmt", "--all", "--check"])?)?;
    exec::run(cargo(&["fmt", "--check"])?.args(GUEST_MANIFEST))
}

fn clippy(_: &Context) -> Result<()> {
    let strict = ["--all-targets", "--locked", "--", "--deny", "warnings"];
    exec::run(cargo(&["clippy", "--workspace"])?.args(strict))?;
    exec::run(cargo(&["clippy"])?.args(GUEST_MANIFEST).args(strict))?;
    exec::run(cargo(&["clippy", "--features", "walls"])?.args(GUEST_MANIFEST).args(strict))
}

/// How many tests run at once: many wait most of the time, for a deadline or for processes.
fn at_once() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// `cargo nextest run` where it is installed, `cargo test` otherwise: the end-to-end suite, or all other tests.
fn runner(is_end_to_end: bool) -> Result<Command> {
    let mut command = if has_nextest() {
        let no = if is_end_to_end { "" } else { "not " };
        let mut command = cargo(&["nextest", "run", "--locked"])?;
        command.args(TESTED).args(["--filterset", &format!("{no}package({END_TO_END})")]);
        command
    } else {
        let mut command = cargo(&["test", "--locked", "--no-fail-fast"])?;
        match is_end_to_end {
            true => command.args(["--package", END_TO_END]),
            false => command.args(TESTED).args(["--exclude", END_TO_END]),
        };
        command
    };
    // Heard by nextest and by the built-in harness.
    let at_once = at_once().to_string();
    command.env("NEXTEST_TEST_THREADS", &at_once).env("RUST_TEST_THREADS", &at_once);
    Ok(command)
}

fn unit_tests(context: &Context) -> Result<()> {
    context.run_tests(context.scratch()?.give(&mut runner(false)?))
}

fn guest_tests(context: &Context) -> Result<()> {
    context.run_tests(cargo(&["test", "--locked"])?.args(GUEST_MANIFEST))?;
    // A guest whose walls can be taken away one by one; what ships has no such switch.
    let layers = ["--features", "walls", "--test", "layers"];
    context.run_tests(cargo(&["test", "--locked"])?.args(GUEST_MANIFEST).args(layers))
}

/// The command that runs the end-to-end suite on a store, with a binary in `dir`: it must lie where the tests' folders do,
/// which give it further names.
fn suite(store: &str, dir: &Path) -> Result<Command> {
    let mut command = runner(true)?;
    command.env("HOLM_TEST_STORE", store).env("HOLM_BIN", binary(dir)?);
    Ok(command)
}

/// Where the binary lies that is tested on the disk.
fn tested() -> Result<PathBuf> {
    let dir = places::target()?.join("tested");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// `holm` as it ships, with no feature that tests have: built, and put into `dir`, where no build of the tests replaces it.
fn binary(dir: &Path) -> Result<PathBuf> {
    exec::run(&mut cargo(&["build", "--locked", "--package", "holm"])?)?;
    let (built, kept) = (places::target()?.join("debug/holm"), dir.join("holm"));
    // Under another name first: what a process executes cannot be written to.
    let fresh = dir.join("holm.new");
    fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&fresh, &kept).with_context(|| format!("cannot make {}", kept.display()))?;
    Ok(kept)
}

/// What passes the proxy of a sandbox does so whatever the server keeps its runs in: once is enough.
const NOT_OF_A_STORE: [&str; 5] = ["--", "--skip", "attacks::", "--skip", "clients::"];

/// The stores on which the end-to-end suite runs.
const STORES: [&str; 2] = ["sqlite", "postgres"];

/// Has a process die at every step that outlives it, `rounds` times on each store.
pub fn crashes(rounds: u32) -> Result<()> {
    beyond(rounds, &STORES, "crash::", |command| command.env("HOLM_TEST_CRASHES", "all"))
}

/// Runs the tests of hostile output as large as it may become, on each store.
pub fn sizes() -> Result<()> {
    beyond(1, &STORES, "hostile::output::", |command| command.env("HOLM_TEST_SIZES", "full"))
}

/// The arguments of `chaos`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Chaos {
    /// What the faults are decided from [default: any].
    #[arg(long)]
    seed: Option<u64>,
    /// As large as in `test`: 2 servers, 3 agents, 100 runs, and no fault of the database.
    #[arg(long)]
    short: bool,
}

/// Lets parts of a fleet fail, many at once, and shows which when.
pub fn chaos(arguments: Chaos) -> Result<()> {
    ensure!(places::is_root(), "only root can give agents networks that can be cut: run `cargo xtask chaos` as root");
    let seed = arguments.seed.map_or_else(any_seed, Ok)?;
    say::note(&format!("seed {seed}"));
    let result = beyond(1, &["postgres"], "chaos::a_fleet_in_chaos_ends_every_run_once", |command| {
        command.env("HOLM_TEST_CHAOS_SEED", seed.to_string()).env("NEXTEST_PROFILE", "soak");
        // What was done and what came of it is shown also where all went well.
        command.args(if has_nextest() { &["--no-capture"][..] } else { &["--", "--nocapture"] });
        if arguments.short { command } else { command.env("HOLM_TEST_CHAOS", "soak") }
    });
    let short = if arguments.short { " --short" } else { "" };
    result.with_context(|| format!("again: cargo xtask chaos --seed {seed}{short}"))
}

/// Short enough to be typed.
fn any_seed() -> Result<u64> {
    let mut bytes = [0; 4];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from(u32::from_ne_bytes(bytes)))
}

/// Runs some end-to-end tests on each of the stores, `rounds` times, with what makes them do more than in [`test`].
fn beyond(rounds: u32, stores: &[&str], filter: &str, more: impl Fn(&mut Command) -> &mut Command) -> Result<()> {
    setup::setup(&setup::Arguments::default())?;
    let (context, dir) = (Context::default(), tested()?);
    let begun = Instant::now();
    for round in 1..=rounds {
        for store in stores {
            say::step(&format!("round {round} of {rounds} on {store}"));
            context.run_tests(more(suite(store, &dir)?.arg(filter)))?;
        }
    }
    say::result(&format!("{}; {:.0} s in all", context.counts(), begun.elapsed().as_secs_f64()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_made_once_and_an_error_is_not_kept() {
        let place = OnceLock::new();
        assert!(made::<u8>(&place, || bail!("not now")).is_err());
        assert_eq!(made(&place, || Ok(1)).ok(), Some(&1));
        assert_eq!(made(&place, || bail!("it was made")).ok(), Some(&1));
    }

    #[test]
    fn continuous_integration_has_a_bound_in_all() {
        let late = ALL + Duration::from_secs(1);
        assert!(in_time(ALL, true).is_ok() && in_time(late, false).is_ok());
        let error = in_time(late, true).expect_err("too late").to_string();
        assert!(error.contains("4501 s") && error.contains("4500 s"), "{error}");
    }
}
