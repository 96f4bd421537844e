//! How much happened in a simulation.

use std::fmt::{Display, Formatter};

use crate::plan::Fault;

/// How much happened, to see that what is to be seen happens at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Events of all kinds.
    pub events: u64,
    /// Faults that happened at one moment, in the order of [`Fault::ALL`].
    pub faults: [u64; Fault::ALL.len()],
    /// Saves that came too late: somebody else had saved meanwhile.
    pub conflicts: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Messages that came twice.
    pub doubled: u64,
    /// Messages that took long.
    pub delayed: u64,
    /// Messages that came where their way was cut: lost, or held.
    pub cut_off: u64,
    /// Sandboxes that began to live.
    pub launches: u64,
    /// Sandboxes that began to live while another one of their run did.
    pub overlaps: u64,
    /// Sandboxes that a shim killed for want of time.
    pub kills: u64,
    /// Attempts that an agent took up after a restart.
    pub taken_up: u64,
    /// Runs that came back to the queue.
    pub requeued: u64,
    /// Runs that ended with success.
    pub succeeded: u64,
    /// Runs that ended.
    pub ended: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            faults: std::array::from_fn(|fault| self.faults[fault] + other.faults[fault]),
            conflicts: self.conflicts + other.conflicts,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            delayed: self.delayed + other.delayed,
            cut_off: self.cut_off + other.cut_off,
            launches: self.launches + other.launches,
            overlaps: self.overlaps + other.overlaps,
            kills: self.kills + other.kills,
            taken_up: self.taken_up + other.taken_up,
            requeued: self.requeued + other.requeued,
            succeeded: self.succeeded + other.succeeded,
            ended: self.ended + other.ended,
        }
    }
}

impl Display for Counts {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let faults = Fault::ALL.iter().zip(self.faults).map(|(fault, count)| format!("{fault:?} {count}"));
        let faults = faults.collect::<Vec<_>>().join(", ");
        let Self { lost, doubled, delayed, cut_off, conflicts, launches, overlaps, kills, taken_up, requeued, .. } =
            self;
        writeln!(out, "faults: {faults}")?;
        writeln!(out, "messages: {lost} lost, {doubled} doubled, {delayed} late, {cut_off} cut off")?;
        writeln!(out, "saves that came too late: {conflicts}")?;
        write!(
            out,
            "sandboxes: {launches}, of which {overlaps} overlapped and {kills} were killed for want of time; "
        )?;
        writeln!(out, "{taken_up} were taken up")?;
        let Self { events, succeeded, ended, .. } = self;
        write!(out, "runs: {ended}, of which {succeeded} succeeded; {requeued} came back to the queue; {events} events")
    }
}
