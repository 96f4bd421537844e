//! What of a host outlives its processes: journals, spools, last words.

use std::collections::BTreeMap;

use holm_domain::{BootMicros, InstanceId, lease::holder::Held};

use crate::shim::Shim;

/// What the journal says of an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    /// During which boot it was written.
    pub(crate) boot: u32,
    /// The sequence of the first log entry.
    pub(crate) first_seq: u64,
    /// When the lease ran out as it was known then.
    pub(crate) deadline: BootMicros,
}

/// What outlives the processes of a host; the process of a shim is in its entry while there is one.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// The process of the agent that was started last.
    pub(crate) instance: Option<InstanceId>,
    /// One record an attempt.
    pub(crate) journal: BTreeMap<Held, Record>,
    /// One entry a shim that got its orders.
    pub(crate) shims: BTreeMap<Held, Shim>,
}

impl Disk {
    /// Removes all of an attempt.
    pub(crate) fn remove(&mut self, held: Held) {
        self.journal.remove(&held);
        self.shims.remove(&held);
    }

    /// Whether nothing is left of any attempt.
    pub(crate) fn is_clear(&self) -> bool {
        self.journal.is_empty() && self.shims.is_empty()
    }
}
