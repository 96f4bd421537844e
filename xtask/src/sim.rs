//! `cargo xtask sim`: the lease protocol under faults, in one thread, from one seed.

use anyhow::Result;

use crate::{exec, places};

/// The arguments of `sim`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, as many at once as there are processors.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// What is broken on purpose, by name.
    #[arg(long)]
    mutant: Option<String>,
    /// Have shims scheduled too late, beyond the fault model: only sandboxes may overlap then.
    #[arg(long)]
    late_shims: bool,
    /// Print what happened, event by event.
    #[arg(long)]
    trace: bool,
    /// With the release build, which many seeds are worth.
    #[arg(long)]
    release: bool,
}

/// Simulates seeds; fails where something does not hold.
pub fn sim(arguments: &Arguments) -> Result<()> {
    let mut cargo = exec::cargo();
    cargo.args(["run", "--quiet", "--package", "holm-sim"]).current_dir(places::root()?);
    cargo.args(arguments.release.then_some("--release")).arg("--");
    cargo.args(["--seed", &arguments.seed.to_string(), "--seeds", &arguments.seeds.to_string()]);
    cargo.args(arguments.mutant.iter().flat_map(|mutant| ["--mutant", mutant]));
    cargo.args(arguments.late_shims.then_some("--late-shims"));
    cargo.args(arguments.trace.then_some("--trace"));
    exec::run(&mut cargo)
}
