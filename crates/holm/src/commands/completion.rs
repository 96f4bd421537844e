//! `holm completion`: the script that completes commands and flags in a shell.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::{cli::Cli, session::Session};

/// Prints the script.
pub fn execute(session: &Session, shell: &str) -> anyhow::Result<u8> {
    let shell: Shell = shell.parse().map_err(|problem: String| super::Usage::new("SHELL", shell, problem))?;
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "holm", &mut script);
    session.output.verbatim(&script)?;
    Ok(0)
}
