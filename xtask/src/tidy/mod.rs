//! `cargo xtask tidy`: the rules of the project that no compiler knows.
//!
//! Every check is a pure function from what is in the checkout to a list of [`Finding`]s, with a test that shows that it
//! bites. Left out: formatting (rustfmt) and what clippy finds.

mod imports;
mod limits;
mod links;
mod names;
mod pages;
mod source;
mod text;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{exec, places, say};

/// One thing that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the top of the checkout; with a line where there is one.
    pub place: String,
    /// Which rule, and what to do.
    pub problem: String,
    /// Whether it only deserves a look.
    pub warning: bool,
}

impl Finding {
    fn error(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into(), warning: false }
    }

    fn warning(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { warning: true, ..Self::error(place, problem) }
    }
}

/// A text file of the checkout.
#[derive(Debug, Clone)]
pub struct File {
    /// From the top of the checkout, with `/`.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// Checks the whole checkout; any finding that is not a warning is an error.
pub fn tidy() -> Result<()> {
    let files = files()?;
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(text::check(file));
        findings.extend(names::check_path(&file.path));
    }
    findings.extend(source::check_all(&files));
    findings.extend(imports::check(&files)?);
    findings.extend(pages::check(&files));
    findings.extend(links::check(&files));
    findings.extend(limits::check(&files));
    report(&findings)
}

/// Writes the table of bounds into its page.
pub fn write_limits() -> Result<()> {
    let path = places::root()?.join(limits::PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", limits::PAGE))?;
    let written = limits::page_with_table(&page, &files()?);
    let written = written.with_context(|| format!("{} has no place for the table", limits::PAGE))?;
    fs::write(&path, written).with_context(|| format!("cannot write {}", limits::PAGE))
}

fn report(findings: &[Finding]) -> Result<()> {
    for finding in findings {
        let kind = if finding.warning { "warning" } else { "error" };
        say::result(&format!("{kind}: {}: {}", finding.place, finding.problem));
    }
    let errors = findings.iter().filter(|finding| !finding.warning).count();
    if errors > 0 {
        bail!("tidy found {errors} {}", if errors == 1 { "error" } else { "errors" });
    }
    say::result(&format!("tidy: {} warnings, no errors", findings.len()));
    Ok(())
}

/// The text files that git knows or would add.
fn files() -> Result<Vec<File>> {
    let root = places::root()?;
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(&root);
    let mut files = Vec::new();
    for path in exec::read(&mut git)?.split('\0').filter(|path| !path.is_empty()) {
        let full: PathBuf = root.join(path);
        // Listed and not there: deleted, and not committed yet.
        let Ok(kind) = fs::symlink_metadata(&full) else { continue };
        if kind.is_file() {
            let bytes = fs::read(&full).with_context(|| format!("cannot read {path}"))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(File { path: path.to_owned(), text });
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_fail_and_warnings_do_not() {
        assert!(report(&[Finding::warning("a", "b")]).is_ok());
        assert!(report(&[Finding::warning("a", "b"), Finding::error("c", "d")]).is_err());
    }
}
