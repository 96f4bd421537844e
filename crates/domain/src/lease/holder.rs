//! The agent's half of the lease protocol: a state machine that says when to start, renew and stop.
//!
//! [`Holder`] knows the leases that its agent holds and until when, by this host's boot clock. The agent feeds it what
//! happened ([`Input`]) and does what it says ([`Action`]), nothing else. Deadlines count from *before* the request was
//! sent that the server answered, so they lie before the expiry that the server counts from its receipt (SPEC L3).
//!
//! What always holds: a sandbox is started only under a lease that is live by this clock; every sandbox has a deadline,
//! known to its shim, that never lies beyond the lease; whatever lease is refused is stopped at once.

use std::{collections::BTreeMap, time::Duration};

use crate::{BootMicros, RunId, run::Cancel};

/// The times by which a holder works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HolderConfig {
    /// How often each lease is renewed.
    pub renew_every: Duration,
    /// How soon a renewal that got no answer is tried again.
    pub retry_every: Duration,
}

impl Default for HolderConfig {
    fn default() -> Self {
        Self { renew_every: Duration::from_secs(10), retry_every: Duration::from_secs(1) }
    }
}

/// A run together with the number of the lease under which it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Held {
    /// The run.
    pub run: RunId,
    /// The number of the lease.
    pub fence: u64,
}

/// Why a sandbox is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The server refused the lease: somebody else may hold the run.
    Stale,
    /// The lease ran out by this host's clock.
    Expired,
    /// Somebody asked.
    Cancelled(Cancel),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The server granted a lease of `ttl` in answer to a request sent at `asked_at`.
    Claimed {
        /// Which.
        held: Held,
        /// How long it lasts.
        ttl: Duration,
        /// When the request was sent.
        asked_at: BootMicros,
    },
    /// After a restart, a live shim was found that holds this lease until `deadline`.
    Found {
        /// Which.
        held: Held,
        /// Until when.
        deadline: BootMicros,
    },
    /// The server renewed a lease in answer to a request sent at `asked_at`.
    Renewed {
        /// Which.
        held: Held,
        /// How long it lasts.
        ttl: Duration,
        /// When the request was sent.
        asked_at: BootMicros,
    },
    /// The server refused an operation under this lease as stale.
    Refused {
        /// Which.
        held: Held,
    },
    /// The server says that somebody asked for the end of this run.
    CancelRequested {
        /// Which.
        held: Held,
        /// How urgently.
        how: Cancel,
    },
    /// The run's end was acknowledged by the server, or its sandbox is gone and nothing is to be reported.
    Released {
        /// Which.
        held: Held,
    },
    /// Time passed.
    Tick,
}

/// What the agent must do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox; its shim must kill it at `deadline`.
    Start {
        /// Which.
        held: Held,
        /// By the boot clock.
        deadline: BootMicros,
    },
    /// Tell the shim its new deadline.
    Extend {
        /// Which.
        held: Held,
        /// By the boot clock.
        deadline: BootMicros,
    },
    /// Ask the server for renewal, in one request.
    Renew {
        /// Which.
        held: Vec<Held>,
    },
    /// Stop the sandbox.
    Stop {
        /// Which.
        held: Held,
        /// Why.
        reason: StopReason,
    },
}

#[derive(Debug, Clone, Copy)]
struct Holding {
    fence: u64,
    deadline: BootMicros,
    renew_at: BootMicros,
    stopping: bool,
    cancel: Option<Cancel>,
}

/// The leases that one agent holds.
#[derive(Debug)]
pub struct Holder {
    config: HolderConfig,
    held: BTreeMap<RunId, Holding>,
}

impl Holder {
    /// A holder of nothing.
    pub fn new(config: HolderConfig) -> Self {
        Self { config, held: BTreeMap::new() }
    }

    /// Takes what happened at `now`, and says what to do.
    pub fn step(&mut self, input: Input, now: BootMicros) -> Vec<Action> {
        match input {
            Input::Claimed { held, ttl, asked_at } => self.claimed(held, asked_at.plus(ttl), now),
            Input::Found { held, deadline } => {
                // The renewal comes first: what the server said while the agent was away is not known.
                self.insert(held, deadline, now);
                Vec::new()
            }
            Input::Renewed { held, ttl, asked_at } => self.renewed(held, asked_at.plus(ttl), asked_at),
            Input::Refused { held } => self.stop(held, StopReason::Stale),
            Input::CancelRequested { held, how } => self.cancel(held, how),
            Input::Released { held } => {
                if self.holding(held).is_some() {
                    self.held.remove(&held.run);
                }
                Vec::new()
            }
            Input::Tick => self.tick(now),
        }
    }

    /// When [`Input::Tick`] is due next; nothing while nothing is held.
    pub fn next_tick(&self) -> Option<BootMicros> {
        let live = self.held.values().filter(|holding| !holding.stopping);
        live.map(|holding| holding.renew_at.min(holding.deadline)).min()
    }

    /// What is held, in the order of the runs.
    pub fn held(&self) -> impl Iterator<Item = Held> + '_ {
        self.held.iter().map(|(&run, holding)| Held { run, fence: holding.fence })
    }

    /// Whether a sandbox may be started under this lease at `now`.
    pub fn may_start(&self, held: Held, now: BootMicros) -> bool {
        self.held
            .get(&held.run)
            .is_some_and(|holding| holding.fence == held.fence && !holding.stopping && now < holding.deadline)
    }

    fn insert(&mut self, held: Held, deadline: BootMicros, renew_at: BootMicros) {
        let holding = Holding { fence: held.fence, deadline, renew_at, stopping: false, cancel: None };
        self.held.insert(held.run, holding);
    }

    fn holding(&mut self, held: Held) -> Option<&mut Holding> {
        self.held.get_mut(&held.run).filter(|holding| holding.fence == held.fence)
    }

    fn claimed(&mut self, held: Held, deadline: BootMicros, now: BootMicros) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.held.get(&held.run) {
            // A repeated answer, or one that was overtaken by a newer claim of ours.
            Some(holding) if holding.fence >= held.fence => return actions,
            Some(holding) if !holding.stopping => {
                let old = Held { run: held.run, fence: holding.fence };
                actions.push(Action::Stop { held: old, reason: StopReason::Stale });
            }
            _ => {}
        }
        if now >= deadline {
            // The answer came too late to be of use: the server takes the lease back when it expires.
            self.held.remove(&held.run);
            return actions;
        }
        self.insert(held, deadline, now.plus(self.config.renew_every));
        actions.push(Action::Start { held, deadline });
        actions
    }

    fn renewed(&mut self, held: Held, deadline: BootMicros, asked_at: BootMicros) -> Vec<Action> {
        let renew_at = asked_at.plus(self.config.renew_every);
        let Some(holding) = self.holding(held).filter(|holding| !holding.stopping) else { return Vec::new() };
        if deadline <= holding.deadline {
            return Vec::new();
        }
        holding.deadline = deadline;
        holding.renew_at = renew_at;
        vec![Action::Extend { held, deadline }]
    }

    fn stop(&mut self, held: Held, reason: StopReason) -> Vec<Action> {
        let Some(holding) = self.holding(held).filter(|holding| !holding.stopping) else { return Vec::new() };
        holding.stopping = true;
        vec![Action::Stop { held, reason }]
    }

    fn cancel(&mut self, held: Held, how: Cancel) -> Vec<Action> {
        let Some(holding) = self.holding(held).filter(|holding| !holding.stopping) else { return Vec::new() };
        if holding.cancel >= Some(how) {
            return Vec::new();
        }
        // The lease is still needed: the end must be reported under it, so renewals go on.
        holding.cancel = Some(how);
        vec![Action::Stop { held, reason: StopReason::Cancelled(how) }]
    }

    fn tick(&mut self, now: BootMicros) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut renew = Vec::new();
        let retry_at = now.plus(self.config.retry_every);
        for (&run, holding) in self.held.iter_mut().filter(|(_, holding)| !holding.stopping) {
            let held = Held { run, fence: holding.fence };
            if now >= holding.deadline {
                holding.stopping = true;
                actions.push(Action::Stop { held, reason: StopReason::Expired });
            } else if now >= holding.renew_at {
                holding.renew_at = retry_at;
                renew.push(held);
            }
        }
        if !renew.is_empty() {
            actions.push(Action::Renew { held: renew });
        }
        actions
    }
}
