//! What README promises somebody who has just cloned: its commands are read from it, so that it cannot drift.
//!
//! The clone is of the commit that is checked out. It is built in the dev profile into the checkout's own target folder,
//! where the dependencies are built already.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Context;
use crate::{exec, places, say};

/// The heading below which the commands stand.
const HEADING: &str = "## On a fresh machine";
/// What the first command prints, and nothing else.
const PRINTED: &str = "hello\n";
/// What is left out of the first command: the release profile would cost a build of everything.
const RELEASE: &str = "--release";

/// Clones, runs the first command, and ends what it started.
pub fn check(_: &Context) -> Result<()> {
    let root = places::root()?;
    let readme = fs::read_to_string(root.join("README.md")).context("README.md")?;
    let [first, second] = commands(&readme)?;
    ensure!(second == ["cargo", "xtask", "test"], "README's second command is `{}`", second.join(" "));
    let place = tempfile::Builder::new().prefix("holm-fresh-").tempdir()?;
    let clone = Clone::new(&root, place.path())?;
    let printed = clone.run(&first[1..]);
    let ended = clone.run(&down(&first)?);
    let printed = printed?;
    ensure!(printed == PRINTED, "README's `{}` printed {printed:?}, not {PRINTED:?}", first.join(" "));
    ended.context("ending what README's first command started")?;
    ensure!(!place.path().join("home/up.sock").exists(), "`holm down` left its socket");
    let changed = exec::read(Command::new("git").args(["status", "--porcelain"]).current_dir(&clone.dir))?;
    ensure!(changed.is_empty(), "README's first command changed the clone:\n{changed}");
    say::note(&format!("README's `{}` printed {}", first.join(" "), PRINTED.trim()));
    Ok(())
}

/// A clone with a home of its own.
struct Clone {
    dir: PathBuf,
    home: PathBuf,
}

impl Clone {
    fn new(root: &Path, place: &Path) -> Result<Self> {
        let git = |dir: &Path| {
            let mut command = Command::new("git");
            command.current_dir(dir);
            command
        };
        let commit = exec::read(git(root).args(["rev-parse", "HEAD"]))?;
        let dir = place.join("holm");
        exec::read(git(root).args(["clone", "--quiet", "--no-checkout", "."]).arg(&dir))?;
        exec::read(git(&dir).args(["checkout", "--quiet", "--detach", commit.trim()]))?;
        Ok(Self { dir, home: place.join("home") })
    }

    /// Runs cargo as README says; what it prints on standard output.
    fn run(&self, arguments: &[String]) -> Result<String> {
        let mut command = exec::cargo();
        command.args(arguments.iter().filter(|word| *word != RELEASE)).current_dir(&self.dir);
        command.env("CARGO_TARGET_DIR", places::target()?).env("HOLM_HOME", &self.home);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("HOLM_") && name != "HOLM_HOME" {
                command.env_remove(name);
            }
        }
        exec::read(&mut command)
    }
}

/// The commands below the heading, each the one line of a block.
fn commands(readme: &str) -> Result<[Vec<String>; 2]> {
    let (_, below) = readme.split_once(HEADING).with_context(|| format!("README has no `{HEADING}`"))?;
    let below = below.split("\n## ").next().unwrap_or(below);
    let blocks: Vec<&str> = below.split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    let words = |block: &&str| block.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match blocks.as_slice() {
        [first, second] if !first.contains('\n') && !second.contains('\n') => Ok([words(first), words(second)]),
        _ => bail!("below README's `{HEADING}` there are not two commands: {blocks:?}"),
    }
}

/// `holm down`, in the way in which `first` runs `holm`.
fn down(first: &[String]) -> Result<Vec<String>> {
    let is_cargo = first.first().is_some_and(|word| word == "cargo") && first.iter().any(|word| word == RELEASE);
    let end = first.iter().position(|word| word == "--").filter(|_| is_cargo);
    let end = end.with_context(|| format!("README's first command is no `cargo run {RELEASE} -- …`"))?;
    Ok(first[1..=end].iter().cloned().chain(["down".to_owned()]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_from_readme() {
        let readme = include_str!("../../../README.md");
        let [first, second] = commands(readme).expect("two commands");
        assert_eq!(first.join(" "), "cargo run --release -- run -- echo hello");
        assert_eq!(down(&first).expect("a way").join(" "), "run --release -- down");
        assert_eq!(second.join(" "), "cargo xtask test");
    }

    #[test]
    fn what_reads_otherwise_is_refused() {
        for readme in ["", "## On a fresh machine\n", "## On a fresh machine\n```sh\na\nb\n```\n```sh\nc\n```\n"] {
            assert!(commands(readme).is_err(), "{readme}");
        }
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(down(&words("cargo build --release")).is_err() && down(&words("make run -- x")).is_err());
    }
}
