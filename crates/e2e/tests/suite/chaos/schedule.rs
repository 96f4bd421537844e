//! What is done to a fleet and when, decided from a seed before anything begins.
//!
//! Every part that can fail has times of its own in which it is well and in which it is not, so any number of them are ill at
//! once, and none fails twice at the same time. When the schedule is over, all are well.

use std::fmt;

use holm_e2e::{network::Cut, world::fleet::Part};

/// How large it all is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub servers: usize,
    pub agents: usize,
    pub runs: usize,
    /// How long parts fail, in milliseconds; all runs are submitted within the first nine tenths of it.
    pub span_ms: u64,
    /// Whether the database fails as well.
    pub database: bool,
}

/// A part that fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is killed with SIGKILL, and started again.
    Killed(Part),
    /// It stands still after SIGSTOP until SIGCONT.
    Paused(Part),
    /// The wire of the host of an agent is cut.
    Cut(usize, Cut),
    /// One of the shims that there are is killed with SIGKILL.
    ShimKilled(u64),
    /// One of the shims that there are stands still, for less than the margin.
    ShimPaused(u64),
    /// The database ends, in order or by a crash, and is started again.
    Database { crash: bool },
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A run is submitted that writes so many lines at such a pace.
    Submit {
        lines: u32,
        pause_ms: u32,
    },
    /// The run that was submitted so manieth is cancelled.
    Cancel {
        run: usize,
        kill: bool,
    },
    /// The log of the run that was submitted so manieth is read.
    Read {
        run: usize,
    },
    Begin(Fault),
    End(Fault),
}

/// A step and when it is done, in milliseconds from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub at_ms: u64,
    pub step: Step,
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3} s  {:?}", self.at_ms as f64 / 1_000.0, self.step)
    }
}

/// Numbers that look like chance (SplitMix64), the same for the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `least` to `most`.
    fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.next().is_multiple_of(many)
    }
}

/// How long something that fails is well before it does, and how long it fails, in milliseconds.
struct Pace {
    well: (u64, u64),
    ill: (u64, u64),
}

/// A server comes back soon; leases live through most of it.
const SERVER: Pace = Pace { well: (4_000, 10_000), ill: (200, 3_500) };
/// Shorter and longer than a lease with its margin.
const AGENT: Pace = Pace { well: (4_000, 9_000), ill: (300, 7_000) };
const WIRE: Pace = Pace { well: (4_000, 9_000), ill: (300, 7_000) };
/// A shim that stands still keeps no deadline: less than the margin of leases, with room for a machine that is busy.
const SHIM: Pace = Pace { well: (2_000, 5_000), ill: (50, 300) };
const DATABASE: Pace = Pace { well: (12_000, 25_000), ill: (500, 4_000) };

/// The schedule of a seed.
pub fn schedule(seed: u64, shape: Shape) -> Vec<Due> {
    let mut chance = Chance(seed);
    let mut steps = work(&mut chance, shape);
    for part in (0..shape.servers).map(Part::Server) {
        faults(&mut chance, &mut steps, shape, &SERVER, |chance| stopped(chance, part));
    }
    for agent in 0..shape.agents {
        faults(&mut chance, &mut steps, shape, &AGENT, |chance| stopped(chance, Part::Agent(agent)));
        faults(&mut chance, &mut steps, shape, &WIRE, |chance| {
            let cuts = [Cut::Both, Cut::ToHost, Cut::FromHost, Cut::Off];
            Fault::Cut(agent, cuts[chance.within(0, 3) as usize])
        });
    }
    faults(&mut chance, &mut steps, shape, &SHIM, |chance| {
        let which = chance.next();
        if chance.one_in(4) { Fault::ShimKilled(which) } else { Fault::ShimPaused(which) }
    });
    if shape.database {
        faults(&mut chance, &mut steps, shape, &DATABASE, |chance| Fault::Database { crash: chance.one_in(2) });
    }
    // Stable, so that what a part does stays in its order.
    steps.sort_by_key(|due| due.at_ms);
    steps
}

fn stopped(chance: &mut Chance, part: Part) -> Fault {
    if chance.one_in(2) { Fault::Killed(part) } else { Fault::Paused(part) }
}

/// The runs, one after another at an even pace, and what is asked of them meanwhile.
fn work(chance: &mut Chance, shape: Shape) -> Vec<Due> {
    let mut steps = Vec::new();
    for run in 0..shape.runs {
        let at_ms = shape.span_ms * 9 / 10 * run as u64 / shape.runs as u64;
        // Some take longer than a lease and its margin: only they could be alive when their run is granted anew.
        let pause = if chance.one_in(3) { (200, 300) } else { (40, 100) };
        let (lines, pause_ms) = (chance.within(15, 40) as u32, chance.within(pause.0, pause.1) as u32);
        steps.push(Due { at_ms, step: Step::Submit { lines, pause_ms } });
        if chance.one_in(12) {
            let kill = chance.one_in(2);
            steps.push(Due { at_ms: at_ms + chance.within(100, 4_000), step: Step::Cancel { run, kill } });
        }
        for _ in 0..2 {
            steps.push(Due { at_ms: at_ms + chance.within(500, 6_000), step: Step::Read { run } });
        }
    }
    steps
}

fn faults(
    chance: &mut Chance,
    steps: &mut Vec<Due>,
    shape: Shape,
    pace: &Pace,
    mut draw: impl FnMut(&mut Chance) -> Fault,
) {
    // The first comes as soon as any may.
    let mut at_ms = chance.within(0, pace.well.1);
    loop {
        let until_ms = at_ms + chance.within(pace.ill.0, pace.ill.1);
        let fault = draw(chance);
        if until_ms > shape.span_ms {
            return;
        }
        steps.push(Due { at_ms, step: Step::Begin(fault) });
        steps.push(Due { at_ms: until_ms, step: Step::End(fault) });
        at_ms = until_ms + chance.within(pace.well.0, pace.well.1);
    }
}

#[test]
fn a_seed_is_a_schedule_in_which_all_get_well() {
    let shape = Shape { servers: 2, agents: 3, runs: 100, span_ms: 45_000, database: true };
    let all = schedule(1, shape);
    assert_eq!(all, schedule(1, shape));
    assert_ne!(all, schedule(2, shape));
    assert!(all.is_sorted_by_key(|due| due.at_ms));
    assert_eq!(all.iter().filter(|due| matches!(due.step, Step::Submit { .. })).count(), 100);
    let mut ill: Vec<Fault> = Vec::new();
    for due in &all {
        match due.step {
            Step::Begin(fault) => ill.push(fault),
            Step::End(fault) => {
                let at = ill.iter().position(|begun| *begun == fault).expect("what ends has begun");
                ill.remove(at);
            }
            _ => {}
        }
    }
    assert_eq!(ill, [], "what has begun ends");
}
