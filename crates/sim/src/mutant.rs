//! Faults in the glue of the simulator, made on purpose: each breaks what one part of the protocol is there for.

use clap::ValueEnum;

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mutant {
    /// Writes reach the server under the newest fence, whichever they bear.
    NoFenceCheck,
    /// The same of renewals alone; other writes are looked at.
    NoFenceCheckOfRenewals,
    /// The same of word that a command was started.
    NoFenceCheckOfStarts,
    /// The same of output.
    NoFenceCheckOfAppends,
    /// The same of events.
    NoFenceCheckOfEvents,
    /// The same of word that a sandbox has ended.
    NoFenceCheckOfSandboxEnds,
    /// The same of the end of a run.
    NoFenceCheckOfFinishes,
    /// The shim knows no deadline.
    NoShimDeadline,
    /// Leases count from the answer of the server and not from before the request.
    DeadlineFromAnswer,
    /// The servers wait no longer after the expiry than the least that they can be told, far less than clocks and
    /// schedulers stray here.
    NoMargin,
    /// A save replaces what is stored, whichever version it was decided on.
    WeakSwap,
    /// Output whose acknowledgement was lost counts as acknowledged.
    LostAcknowledgement,
    /// Nothing that happens on a server wakes a poll that waits there; only time does.
    LostWakeUps,
    /// An agent that was restarted makes a sandbox again before it was told that the lease is still held.
    MadeAgainUnasked,
}

/// What is otherwise than it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Setting {
    /// What is broken on purpose.
    pub mutant: Option<Mutant>,
    /// Shims are scheduled later than the margin allows, beyond the fault model: sandboxes of a run may overlap then, and
    /// everything else must hold all the same.
    pub late_shims: bool,
}

impl From<Mutant> for Setting {
    fn from(mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), late_shims: false }
    }
}

impl Mutant {
    /// Every mutant.
    pub const ALL: [Self; 14] = [
        Self::NoFenceCheck,
        Self::NoFenceCheckOfRenewals,
        Self::NoFenceCheckOfStarts,
        Self::NoFenceCheckOfAppends,
        Self::NoFenceCheckOfEvents,
        Self::NoFenceCheckOfSandboxEnds,
        Self::NoFenceCheckOfFinishes,
        Self::NoShimDeadline,
        Self::DeadlineFromAnswer,
        Self::NoMargin,
        Self::WeakSwap,
        Self::LostAcknowledgement,
        Self::LostWakeUps,
        Self::MadeAgainUnasked,
    ];

    /// Its name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoFenceCheck => "no-fence-check",
            Self::NoFenceCheckOfRenewals => "no-fence-check-of-renewals",
            Self::NoFenceCheckOfStarts => "no-fence-check-of-starts",
            Self::NoFenceCheckOfAppends => "no-fence-check-of-appends",
            Self::NoFenceCheckOfEvents => "no-fence-check-of-events",
            Self::NoFenceCheckOfSandboxEnds => "no-fence-check-of-sandbox-ends",
            Self::NoFenceCheckOfFinishes => "no-fence-check-of-finishes",
            Self::NoShimDeadline => "no-shim-deadline",
            Self::DeadlineFromAnswer => "deadline-from-answer",
            Self::NoMargin => "no-margin",
            Self::WeakSwap => "weak-swap",
            Self::LostAcknowledgement => "lost-acknowledgement",
            Self::LostWakeUps => "lost-wake-ups",
            Self::MadeAgainUnasked => "made-again-unasked",
        }
    }
}
