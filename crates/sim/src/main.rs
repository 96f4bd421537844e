//! `holm-sim`: simulates seeds, and says what did not hold and how to see it again.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser;
use holm_sim::{Mutant, Setting, counts::Counts, simulate, trace::Trace};

/// Simulate the lease protocol under faults.
#[derive(Debug, Parser)]
#[command(name = "holm-sim")]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    seeds: u64,
    /// What is broken on purpose.
    #[arg(long)]
    mutant: Option<Mutant>,
    /// Have shims scheduled too late, beyond the fault model: only sandboxes may overlap then.
    #[arg(long)]
    late_shims: bool,
    /// Print what happened, event by event.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            // Where even that cannot be written, the exit code is all that is left.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many seeds violated something.
fn run(arguments: &Arguments) -> Result<u64, Box<dyn std::error::Error>> {
    let mut out = io::stdout().lock();
    let setting = Setting { mutant: arguments.mutant, late_shims: arguments.late_shims };
    let (mut violated, mut all) = (0, Counts::default());
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        let trace = if arguments.trace { Trace::keeping_lines() } else { Trace::default() };
        let told = simulate(seed, setting, trace)?;
        for line in &told.lines {
            out.write_all(line.as_bytes())?;
        }
        all = all.plus(told.counts);
        if arguments.seeds == 1 {
            writeln!(out, "seed {seed}: trace {}", told.digest)?;
        }
        if let Some(problem) = &told.violation {
            violated += 1;
            writeln!(out, "seed {seed}: {problem}")?;
            writeln!(out, "  see it again: {}", holm_sim::replay(seed, setting))?;
        }
    }
    writeln!(out, "{all:?}")?;
    writeln!(out, "{} seeds, {violated} with a violation", arguments.seeds)?;
    Ok(violated)
}
