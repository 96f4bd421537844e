//! The compiler of the targets: rustc with the instrumentation of LLVM that libFuzzer reads, for what is ours alone.
//!
//! Cargo calls xtask, by a name of its own, where it would call rustc for a member of the workspace
//! (`RUSTC_WORKSPACE_WRAPPER`), and xtask becomes rustc with some more flags. What is not ours is compiled as ever, and
//! not anew: the targets are built from the packages of the tests, so its features are the same. Cargo keeps apart what
//! different wrappers have built, by their paths; so the name tells the flags.

use std::{
    ffi::{OsStr, OsString},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{exec, places, test};

/// What cargo-fuzz asks of the compiler, as far as the stable one has it; quick enough to run many inputs, and quick to build.
/// Not a profile's, which would concern what is not ours as well.
const FLAGS: [&str; 6] = [
    "-Copt-level=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// How the name begins by which xtask is called as the compiler.
const NAME: &str = "rustc-for-fuzzing-";

/// Builds targets, each by its name.
pub fn build<'a>(targets: impl Iterator<Item = &'a str>, dir: &Path) -> Result<()> {
    let mut cargo = exec::cargo();
    cargo.args(["build", "--locked"]).arg(test::WHOLE).current_dir(places::root()?);
    cargo.args(targets.flat_map(|target| ["--example", target]));
    // Only members of the workspace are ever compiled incrementally.
    cargo.env("RUSTC_WORKSPACE_WRAPPER", named(dir)?).env("CARGO_INCREMENTAL", "0");
    exec::run(&mut cargo)
}

/// Where cargo puts a target.
pub fn built(target: &str) -> Result<PathBuf> {
    Ok(places::target()?.join("debug/examples").join(target))
}

/// This program, by the name that makes it the compiler.
fn named(dir: &Path) -> Result<PathBuf> {
    let mut flags = DefaultHasher::new();
    FLAGS.hash(&mut flags);
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let name = dir.join(format!("{NAME}{:016x}", flags.finish()));
    let this = std::env::current_exe().context("xtask does not know its own file")?;
    match fs::remove_file(&name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => symlink(this, &name),
    }
    .with_context(|| format!("cannot make {}", name.display()))?;
    Ok(name)
}

/// What to become, where this program was called as the compiler: the arguments are its own name, rustc, and rustc's.
pub fn compiler(arguments: &[OsString]) -> Option<Command> {
    let [name, rustc, arguments @ ..] = arguments else { return None };
    let name = Path::new(name).file_name()?;
    if !name.as_encoded_bytes().starts_with(NAME.as_bytes()) {
        return None;
    }
    let mut command = Command::new(rustc);
    command.args(arguments);
    if is_instrumented(arguments) {
        command.args(FLAGS);
    }
    Some(command)
}

/// Whether a target may contain what is compiled: neither what runs while others are compiled, nor a question of cargo's.
fn is_instrumented(arguments: &[OsString]) -> bool {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).map(OsString::as_os_str)
    };
    let Some(name) = value("--crate-name") else { return false };
    name != "___"
        && !name.as_encoded_bytes().starts_with(b"build_script_")
        && value("--crate-type") != Some(OsStr::new("proc-macro"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn becomes(line: &str) -> Option<String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        compiler(&words).map(|command| exec::line(&command))
    }

    #[test]
    fn only_what_a_target_contains_is_instrumented() {
        let instrumented = |arguments: &str| {
            let became = becomes(&format!("target/fuzz/{NAME}1 rustc {arguments}")).expect("it is the compiler");
            assert!(became.starts_with(&format!("rustc {arguments}")), "{became}");
            became.contains("sancov")
        };
        assert!(instrumented("--crate-name holm_wire --edition=2024 src/lib.rs --crate-type lib"));
        assert!(instrumented("--crate-name spool targets/spool.rs --crate-type bin"));
        for other in [
            "-vV",
            "- --crate-name ___ --print=file-names --crate-type bin",
            "--crate-name build_script_build build.rs --crate-type bin",
            "--crate-name holm_derive src/lib.rs --crate-type proc-macro",
        ] {
            assert!(!instrumented(other), "{other}");
        }
    }

    #[test]
    fn by_its_own_name_it_is_no_compiler() {
        assert_eq!(becomes("target/debug/xtask fuzz spool"), None);
        assert_eq!(becomes(&format!("{NAME}1")), None);
    }
}
