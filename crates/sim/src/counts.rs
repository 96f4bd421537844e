//! How much happened in a simulation.

/// How much happened, to see that what is to be seen happens at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Events of all kinds.
    pub events: u64,
    /// Faults that happened at one moment.
    pub faults: u64,
    /// Saves that came too late: somebody else had saved meanwhile.
    pub conflicts: u64,
    /// Messages that were lost.
    pub lost: u64,
    /// Messages that came twice.
    pub doubled: u64,
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
            faults: self.faults + other.faults,
            conflicts: self.conflicts + other.conflicts,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
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
