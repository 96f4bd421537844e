//! `cargo xtask fuzz`: the readers of hostile bytes under coverage-guided fuzzing.
//!
//! The crate in `fuzz/` has the targets. They are built by this project's own compiler with the instrumentation of
//! LLVM that libFuzzer reads, in the dev profile with its overflow checks and debug assertions; sanitizers would need
//! a nightly compiler and find little where there is no `unsafe`. A target begins with seeds that its real encoders
//! make, the corpus that is kept in `fuzz/corpus/`, and what earlier runs on this machine have found out. Memory and
//! time of each input are bounded. What an input must not do is a panic of the target: it ends the run, and the input
//! is kept.

mod compiler;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{exec, places, say};
pub use compiler::compiler;
use report::Report;

/// The arguments of `fuzz`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only these targets; each is a file in `fuzz/targets`.
    targets: Vec<String>,
    /// How long each target is fuzzed, in seconds.
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Only give this input to the one target that is named.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seconds", "keep"])]
    replay: Option<PathBuf>,
    /// Do not fuzz: choose anew the inputs that are kept in `fuzz/corpus`, of all that there are by now.
    #[arg(long, conflicts_with = "seconds")]
    keep: bool,
}

/// For the build and the beginning, beyond the time for which a target is fuzzed.
const BEYOND: Duration = Duration::from_secs(120);
/// The most inputs of a target that are kept, and the longest of them, in bytes; those of findings are kept beside.
const KEPT_MAX: usize = 64;
const KEPT_BYTES_MAX: u64 = 2_048;
/// How many targets run at once at most; more than there are processors, since some wait for a disk or for a clock.
const AT_ONCE_MAX: usize = 3;
/// The longest input, what one may take, and that a leak is none: what is held for the next input looks like one.
const BOUNDS: &[&str] = &["-max_len=65536", "-timeout=20", "-rss_limit_mb=1024", "-detect_leaks=0"];
/// The variable that names the folder into which a target writes its seeds.
const SEEDS_VARIABLE: &str = "HOLM_FUZZ_SEEDS";

/// Fuzzes, replays or keeps.
pub fn fuzz(arguments: &Arguments) -> Result<()> {
    let targets = chosen(&arguments.targets, targets()?)?;
    build(&targets)?;
    if let Some(input) = &arguments.replay {
        let [target] = targets.as_slice() else { bail!("name the one target that is to replay {}", input.display()) };
        let place = place()?;
        return exec::run(target.command()?.arg(input).env("TMPDIR", place.path()));
    }
    if arguments.keep {
        return targets.iter().try_for_each(Target::keep);
    }
    run_all(targets, Duration::from_secs(arguments.seconds), None)
}

/// The draws of a run that tells of a change and not of chance.
const SEED: u32 = 1;

/// Builds every target and fuzzes it for some time, each time with the same draws.
pub fn fuzz_all(each: Duration) -> Result<()> {
    let targets = targets()?;
    build(&targets)?;
    run_all(targets, each, Some(SEED))
}

/// A target by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target(String);

fn targets() -> Result<Vec<Target>> {
    let dir = places::root()?.join("fuzz/targets");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        targets.extend(name.strip_suffix(".rs").map(|name| Target(name.to_owned())));
    }
    targets.sort_by(|one, other| one.0.cmp(&other.0));
    ensure!(!targets.is_empty(), "there are no targets in {}", dir.display());
    Ok(targets)
}

/// Those that are named; all where none is.
fn chosen(names: &[String], all: Vec<Target>) -> Result<Vec<Target>> {
    if names.is_empty() {
        return Ok(all);
    }
    let known = all.iter().map(|target| target.0.as_str()).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let found = all.iter().find(|target| target.0 == *name).cloned();
        found.with_context(|| format!("there is no target `{name}`; there are {known}"))
    };
    names.iter().map(find).collect()
}

/// The folder of what is kept on this machine.
fn dir() -> Result<PathBuf> {
    Ok(places::target()?.join("fuzz"))
}

fn build(targets: &[Target]) -> Result<()> {
    compiler::build(targets.iter().map(|target| target.0.as_str()), &dir()?)
}

/// Fuzzes all targets, some at once; what is found by one stops no other.
fn run_all(targets: Vec<Target>, each: Duration, seed: Option<u32>) -> Result<()> {
    let at_once = thread::available_parallelism().map_or(1, |cores| 2 * cores.get()).min(AT_ONCE_MAX);
    let waiting = Mutex::new(targets.into_iter());
    let next = || waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let findings = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(target) = next() {
                    if let Err(error) = exec::within(each + BEYOND, || target.run(each, seed)) {
                        say::error(&format!("{error:#}"));
                        findings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(target.0);
                    }
                }
            });
        }
    });
    exec::check_interrupt()?;
    let findings = findings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(findings.is_empty(), "fuzzing failed: {}", findings.join(", "));
    Ok(())
}

impl Target {
    /// A folder of the target's own below another.
    fn folder(&self, above: &Path) -> Result<PathBuf> {
        let folder = above.join(&self.0);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    fn kept(&self) -> Result<PathBuf> {
        self.folder(&places::root()?.join("fuzz/corpus"))
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(compiler::built(&self.0)?);
        command.args(BOUNDS).env_remove(SEEDS_VARIABLE);
        Ok(command)
    }

    fn run(&self, time: Duration, seed: Option<u32>) -> Result<()> {
        let (grown, seeds) = (self.folder(&dir()?.join("corpus"))?, self.folder(&dir()?.join("seeds"))?);
        let (found, place) = (self.folder(&dir()?.join("findings"))?, place()?);
        let mut command = self.command()?;
        command.arg(format!("-max_total_time={}", time.as_secs())).arg("-print_final_stats=1");
        command.args(seed.map(|seed| format!("-seed={seed}")));
        command.arg(format!("-artifact_prefix={}/", found.display()));
        // What is new goes into the first folder.
        command.args([&grown, &seeds, &self.kept()?]).env(SEEDS_VARIABLE, &seeds).env("TMPDIR", place.path());
        let Output { status, stderr, .. } = exec::output(&mut command)?;
        let said = String::from_utf8_lossy(&stderr);
        let report = Report::read(&said);
        if status.success() {
            say::result(&format!("{}: {report}", self.0));
            ensure!(report.is_guided(), "{} saw no code being reached: the instrumentation does not work", self.0);
            return Ok(());
        }
        let way = match report.input() {
            Some(input) => format!("`cargo xtask fuzz {} --replay {input}` replays it", self.0),
            None => "no input was kept".to_owned(),
        };
        bail!("{}: a finding ({status}); {way}\n{}", self.0, report.problem());
    }

    /// Chooses anew what is kept: few and small inputs that reach as much as all that there are. Those that have a name of
    /// their own stay.
    fn keep(&self) -> Result<()> {
        let (kept, place) = (self.kept()?, place()?);
        let merged = self.folder(place.path())?;
        let mut command = self.command()?;
        // Which code is reached counts, not how often.
        command.args(["-set_cover_merge=1", "-use_counters=0"]).env("TMPDIR", place.path());
        exec::read(command.args([&merged, &kept, &self.folder(&dir()?.join("corpus"))?]))?;
        for (_, earlier) in inputs(&kept)?.into_iter().filter(|(_, path)| is_digest(path)) {
            fs::remove_file(earlier)?;
        }
        let small = inputs(&merged)?.into_iter().filter(|(length, path)| *length <= KEPT_BYTES_MAX && is_digest(path));
        for (_, input) in small.take(KEPT_MAX) {
            fs::copy(&input, kept.join(input.file_name().context("an input has a name")?))?;
        }
        say::result(&format!("{}: {} inputs are kept", self.0, inputs(&kept)?.len()));
        Ok(())
    }
}

/// The inputs in a folder with their lengths, the shortest first.
fn inputs(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        inputs.push((entry.metadata()?.len(), entry.path()));
    }
    inputs.sort();
    Ok(inputs)
}

/// Whether an input has the name that libFuzzer gave it.
fn is_digest(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.len() == 40 && name.iter().all(u8::is_ascii_hexdigit)
}

/// A folder for the files of a target, in memory where that can be.
fn place() -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("holm-fuzz-");
    builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).context("cannot make a temporary folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_known_by_their_files() {
        let all = targets().expect("the targets of this checkout");
        assert!(all.contains(&Target("spool".to_owned())), "{all:?}");
        assert_eq!(chosen(&[], all.clone()).expect("all"), all);
        assert_eq!(chosen(&["spool".to_owned()], all.clone()).expect("one").len(), 1);
        let error = chosen(&["spoon".to_owned()], all).expect_err("no such target").to_string();
        assert!(error.contains("`spoon`") && error.contains("spool"), "{error}");
    }

    #[test]
    fn inputs_with_names_of_their_own_are_told_from_others() {
        assert!(is_digest(Path::new("spool/5f3a1a6e8115612cef6d9bc1e42cc8a9a5b8f119")));
        assert!(!is_digest(Path::new("spool/file-missing")));
    }
}
