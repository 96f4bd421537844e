//! The suites that depend on privileges, once more as a user without any.
//!
//! Where xtask runs as root, copies of the built programs go into a folder that the user may read, and run there under an
//! id that nobody has. Where it runs as a plain user already, the other steps were that run, and what only root can test
//! was not tested: a developer is told so, continuous integration fails.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;

use super::{Context, TESTED, at_once, binary, cargo, is_ci};
use crate::{exec, places, say};

/// An id that stands in no account file; the sandboxes of root use ids far above it.
const PLAIN_ID: u32 = 54_321;
/// The suites that depend on privileges, each by its package's folder and its own name. Of the shim's, only the one with a
/// real sandbox does.
const SUITES: [&str; 3] = ["e2e-suite", "runtime-process", "shim-process"];

/// Builds the suites as the user who runs xtask, and runs them as one without privileges.
pub fn tests(context: &Context) -> Result<()> {
    if !places::is_root() {
        return not_root(is_ci());
    }
    let place = Place::new(context)?;
    let holm = binary(&place.dir)?;
    place.lend(&holm)?;
    let programs = test_programs()?;
    for name in SUITES {
        let built = programs.get(name).with_context(|| format!("{name} is not among the test programs"))?;
        let program = place.bring(built, name)?;
        say::note(&format!("{name} as user {PLAIN_ID}"));
        let mut command = place.command(&program);
        command.env("HOLM_BIN", &holm).env("HOLM_TEST_STORE", "sqlite");
        command.env("RUST_TEST_THREADS", at_once().to_string());
        context.run_tests(&mut command).with_context(|| format!("{name} as a plain user"))?;
    }
    Ok(())
}

fn not_root(is_ci: bool) -> Result<()> {
    if is_ci {
        bail!("what only root can test was left out, which CI=true does not allow: run `cargo xtask test` as root");
    }
    say::note(
        "this is a plain user already: the steps before this one were that run; what only root can test was left out",
    );
    Ok(())
}

/// A folder of the plain user's own.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new(context: &Context) -> Result<Self> {
        let dir = context.scratch()?.path().join("plain");
        for path in [dir.clone(), dir.join("home"), dir.join("tmp")] {
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            chown(&path, Some(PLAIN_ID), Some(PLAIN_ID))?;
        }
        Ok(Self { dir })
    }

    fn bring(&self, program: &Path, name: &str) -> Result<PathBuf> {
        let copy = self.dir.join(name);
        fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        self.lend(&copy)?;
        Ok(copy)
    }

    /// Its owner may give a program further names, which saves a copy for each test.
    fn lend(&self, program: &Path) -> Result<()> {
        fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
        Ok(chown(program, Some(PLAIN_ID), Some(PLAIN_ID))?)
    }

    fn command(&self, program: &Path) -> Command {
        let id = PLAIN_ID.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--"]).arg(program);
        command.current_dir(self.dir.join("home"));
        command.env("HOME", self.dir.join("home")).env("TMPDIR", self.dir.join("tmp"));
        for variable in ["XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "USER", "LOGNAME"] {
            command.env_remove(variable);
        }
        command
    }
}

/// All test programs but those of libraries, which ask for no privileges, by their package's folder and their own name; built.
fn test_programs() -> Result<BTreeMap<String, PathBuf>> {
    let mut command = cargo(&["test", "--locked", "--no-run", "--message-format=json-render-diagnostics"])?;
    let messages = exec::read(command.args(TESTED))?;
    let mut programs = BTreeMap::new();
    for message in Message::parse_stream(messages.as_bytes()) {
        if let Message::CompilerArtifact(artifact) = message?
            && artifact.profile.test
            && artifact.target.is_test()
            && let Some(program) = artifact.executable
        {
            let package = artifact.manifest_path.parent().and_then(|dir| dir.file_name()).unwrap_or("crate");
            programs.insert(format!("{package}-{}", artifact.target.name), program.into_std_path_buf());
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    #[test]
    fn continuous_integration_leaves_nothing_out() {
        assert!(super::not_root(false).is_ok());
        let error = super::not_root(true).expect_err("left out").to_string();
        assert!(error.contains("as root"), "{error}");
    }
}
