//! `holm-sim`: simulates seeds, and says what did not hold and how to see it again.

use std::{
    fmt::{self, Display, Formatter},
    io::{self, Write as _},
    iter,
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use clap::Parser;
use holm_sim::{Mutant, Setting, Told, counts::Counts, simulate, trace::Trace};

/// After how many seeds it is said how far it has come.
const TOLD_EVERY: u64 = 1_000;

/// Simulate the lease protocol under faults.
#[derive(Debug, Parser)]
#[command(name = "holm-sim")]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, as many at once as there are processors.
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
    let setting = Setting { mutant: arguments.mutant, late_shims: arguments.late_shims };
    let (first, end) = (arguments.seed, arguments.seed.saturating_add(arguments.seeds));
    // Events of one seed are not printed among those of another.
    let jobs = if arguments.trace { 1 } else { thread::available_parallelism()?.get() };
    let (next, begun) = (AtomicU64::new(first), Instant::now());
    let (sender, told) = mpsc::sync_channel(jobs);
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let seeds = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|seed| *seed < end);
                for seed in seeds {
                    let trace = if arguments.trace { Trace::keeping_lines() } else { Trace::default() };
                    if sender.send((seed, simulate(seed, setting, trace))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut so_far = SoFar { setting, begun, seeds: 0, violated: 0, counts: Counts::default() };
        for (seed, told) in told {
            so_far.tell(seed, &told?, arguments.seeds == 1)?;
        }
        writeln!(io::stdout(), "{}\n{so_far}", so_far.counts)?;
        Ok(so_far.violated)
    })
}

/// What came of the seeds so far.
struct SoFar {
    setting: Setting,
    begun: Instant,
    seeds: u64,
    violated: u64,
    counts: Counts,
}

impl SoFar {
    /// Adds what is told of a seed, and prints what of it is worth a line.
    fn tell(&mut self, seed: u64, told: &Told, is_only: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for line in &told.lines {
            out.write_all(line.as_bytes())?;
        }
        if is_only {
            writeln!(out, "seed {seed}: trace {}", told.digest)?;
        }
        self.counts = self.counts.plus(told.counts);
        self.seeds += 1;
        if let Some(problem) = &told.violation {
            self.violated += 1;
            writeln!(out, "seed {seed}: {problem}")?;
            writeln!(out, "  see it again: {}", holm_sim::replay(seed, self.setting))?;
        }
        if self.seeds.is_multiple_of(TOLD_EVERY) {
            writeln!(out, "{self}")?;
        }
        Ok(())
    }
}

impl Display for SoFar {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { seeds, violated, .. } = self;
        let each_second = *seeds as f64 / self.begun.elapsed().as_secs_f64();
        write!(out, "{seeds} seeds, {each_second:.1} a second, {violated} with a violation")
    }
}
