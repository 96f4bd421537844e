//! `cargo xtask test`: every check and every test.

use std::process::Command;

use anyhow::Result;

use crate::{exec, postgres::Postgres, say};

/// The arguments of `test`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// Runs everything; the first failure ends it.
pub fn test(_arguments: &Arguments) -> Result<()> {
    say::step("PostgreSQL");
    let postgres = Postgres::start()?;
    exec::run(Command::new("cargo").args(["test", "--workspace"]).env("HOLM_TEST_POSTGRES", postgres.url()))
}
