//! `cargo xtask openapi`: the committed description of the API is the one that the binary prints.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{exec, places, say};

/// The arguments of `openapi`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Arguments {
    /// Only compare, and fail if they differ.
    #[arg(long)]
    pub check: bool,
}

/// Builds the binary and writes or compares `openapi/v1.json`.
pub fn openapi(arguments: &Arguments) -> Result<()> {
    exec::run(exec::cargo().args(["build", "--quiet", "--package", "holm"]).current_dir(places::root()?))?;
    let printed = exec::read(Command::new(places::target()?.join("debug/holm")).arg("openapi"))?;
    let printed = format!("{}\n", printed.trim_end());
    let path = document()?;
    if !arguments.check {
        fs::create_dir_all(path.parent().context("the document lies in a folder")?)?;
        return fs::write(&path, printed).with_context(|| format!("cannot write {}", path.display()));
    }
    let committed = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    match first_difference(&committed, &printed) {
        None => Ok(()),
        Some(difference) => {
            say::note(&difference);
            bail!("openapi/v1.json is not what the code says: run `cargo xtask openapi` and commit it")
        }
    }
}

fn document() -> Result<PathBuf> {
    Ok(places::root()?.join("openapi/v1.json"))
}

/// Where two documents differ first, for people.
fn first_difference(committed: &str, printed: &str) -> Option<String> {
    let mut lines = (1..).zip(committed.lines().zip(printed.lines()));
    if let Some((number, (old, new))) = lines.find(|(_, (old, new))| old != new) {
        return Some(format!("line {number}: committed `{}`, printed `{}`", old.trim(), new.trim()));
    }
    (committed != printed).then(|| "one document goes on where the other ends".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        assert_eq!(first_difference("{\n}\n", "{\n}\n"), None);
        assert!(first_difference("{\n\"a\"\n}\n", "{\n\"b\"\n}\n").is_some_and(|text| text.contains("line 2")));
        assert!(first_difference("{\n}\n", "{\n}\n\n").is_some());
        assert!(first_difference("{\n", "{\n}\n").is_some());
    }
}
