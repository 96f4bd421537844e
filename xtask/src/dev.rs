//! `cargo xtask dev`: a server and an agent with a state folder of their own, gone when they end.

use std::process::Command;

use anyhow::Result;

use crate::{exec, places, say};

/// Builds the binary and runs `holm up` with a temporary `HOLM_HOME` until it is interrupted.
pub fn dev() -> Result<()> {
    exec::run(exec::cargo().args(["build", "--package", "holm"]).current_dir(places::root()?))?;
    let home = tempfile::Builder::new().prefix("holm-dev-").tempdir()?;
    say::note(&format!("HOLM_HOME={}", home.path().display()));
    exec::run(Command::new(places::target()?.join("debug/holm")).arg("up").env("HOLM_HOME", home.path()))
}
