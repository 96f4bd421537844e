//! `cargo xtask setup`: what the tests need beside Rust.

use anyhow::Result;

/// The arguments of `setup`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only say what is missing.
    #[arg(long)]
    pub check: bool,
}

/// Installs what is missing.
pub fn setup(_arguments: &Arguments) -> Result<()> {
    Ok(())
}
