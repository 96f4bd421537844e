//! The project's own commands: `cargo xtask <command>`.
//!
//! Each command is one file. They drive cargo and the `holm` binary from the outside and import nothing of the crates, so
//! what they show is what a user gets. What they leave out: anything that belongs into a test.

mod bench;
mod dev;
mod exec;
mod fuzz;
mod installation;
mod openapi;
mod places;
mod postgres;
mod say;
mod scratch;
mod setup;
mod sim;
mod soak;
mod test;
mod tidy;

use std::{os::unix::process::CommandExt as _, process::ExitCode};

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the tests need: by apt as root; otherwise say what is missing.
    Setup(setup::Arguments),
    /// Run every check and every test.
    Test(test::Arguments),
    /// Write the description of the API from the code, or compare it.
    Openapi(openapi::Arguments),
    /// Measure.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Many runs while the agent is killed again and again.
    Soak(soak::Arguments),
    /// Have a process die before and after every step that outlives it, on both stores.
    Crashes {
        /// How often.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        rounds: u32,
    },
    /// Have servers, agents, shims, networks and the database of a fleet fail, at any time and many at once.
    Chaos(test::Chaos),
    /// Run the tests of hostile output at full size: 1 GiB in one line, ten million empty lines.
    Sizes,
    /// Give the readers of hostile bytes made-up ones, guided by the code that they reach.
    Fuzz(fuzz::Arguments),
    /// Simulate the lease protocol under faults, seed by seed.
    Sim(sim::Arguments),
    /// Run a server and an agent with a temporary state folder.
    Dev,
    /// Write the table of bounds in docs/limits.md from the code.
    Limits,
    /// Check what the compiler does not: imports between crates, sizes, names, pages and their links, the table of
    /// bounds.
    Tidy,
}

fn main() -> ExitCode {
    if let Some(mut compiler) = fuzz::compiler(&std::env::args_os().collect::<Vec<_>>()) {
        say::error(&format!("cannot become `{}`: {}", exec::line(&compiler), compiler.exec()));
        return ExitCode::FAILURE;
    }
    let arguments = Arguments::parse();
    let result = exec::listen_for_interrupts().and_then(|()| match arguments.command {
        Command::Setup(arguments) => setup::setup(&arguments),
        Command::Test(arguments) => test::test(&arguments),
        Command::Openapi(arguments) => openapi::openapi(&arguments),
        Command::Bench(what) => bench::bench(&what),
        Command::Soak(arguments) => soak::soak(&arguments),
        Command::Crashes { rounds } => test::crashes(rounds),
        Command::Chaos(arguments) => test::chaos(arguments),
        Command::Sizes => test::sizes(),
        Command::Fuzz(arguments) => fuzz::fuzz(&arguments),
        Command::Sim(arguments) => sim::sim(&arguments),
        Command::Dev => dev::dev(),
        Command::Limits => tidy::write_limits(),
        Command::Tidy => tidy::tidy(),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::error(&format!("{error:#}"));
            if exec::interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}
