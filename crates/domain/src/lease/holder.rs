//! The agent's half of the lease protocol: a state machine that says when to start, renew and stop.
//!
//! [`Holder`] knows the leases that its agent holds and until when, by this host's boot clock. The agent feeds it what
//! happened ([`Input`]) and does what it says ([`Action`]), nothing else. Deadlines count from *before* the request was
//! sent that the server answered, so they lie before the expiry that the server counts from its receipt (SPEC L3).
//!
//! What always holds: a sandbox is started only under a lease that is live by this clock; every sandbox has a deadline,
//! known to its shim, that never lies beyond the lease; whatever lease is refused is stopped at once. No lease is renewed
//! later because there are others: what is due soon goes along with what is due, so that many become one request.

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
    /// Whether a renewal was asked for and no answer has come.
    asked: bool,
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
        let holding = Holding { fence: held.fence, deadline, renew_at, asked: false, stopping: false, cancel: None };
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
        holding.asked = false;
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
        let is_due = |holding: &Holding| !holding.stopping && now >= holding.renew_at;
        // What waits for an answer does not go along: it has a time of its own.
        let soon = if self.held.values().any(is_due) { now.plus(self.config.renew_every / 2) } else { now };
        for (&run, holding) in self.held.iter_mut().filter(|(_, holding)| !holding.stopping) {
            let held = Held { run, fence: holding.fence };
            if now >= holding.deadline {
                holding.stopping = true;
                actions.push(Action::Stop { held, reason: StopReason::Expired });
            } else if now >= holding.renew_at || soon >= holding.renew_at && !holding.asked {
                holding.renew_at = retry_at;
                holding.asked = true;
                renew.push(held);
            }
        }
        if !renew.is_empty() {
            actions.push(Action::Renew { held: renew });
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn held(number: u64) -> Held {
        Held { run: RunId::from_uuid(Uuid::from_u128(number.into())), fence: 1 }
    }

    fn at(ms: u64) -> BootMicros {
        BootMicros(1_000_000 + ms * 1_000)
    }

    fn claimed(holder: &mut Holder, number: u64, ms: u64) {
        let actions = holder.step(Input::Claimed { held: held(number), ttl: TTL, asked_at: at(ms) }, at(ms));
        assert!(matches!(actions[..], [Action::Start { .. }]), "{actions:?}");
    }

    fn tick(holder: &mut Holder, ms: u64) -> Vec<Held> {
        match &holder.step(Input::Tick, at(ms))[..] {
            [] => Vec::new(),
            [Action::Renew { held }] => held.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn answered(holder: &mut Holder, number: u64, asked_ms: u64, ms: u64) {
        let actions = holder.step(Input::Renewed { held: held(number), ttl: TTL, asked_at: at(asked_ms) }, at(ms));
        let extended = Action::Extend { held: held(number), deadline: at(asked_ms).plus(TTL) };
        assert_eq!(actions, [extended], "the deadline counts from before the request");
    }

    #[test]
    fn leases_that_come_one_by_one_are_renewed_by_a_few_requests() {
        let mut holder = Holder::new(HolderConfig::default());
        (0..200).for_each(|number| claimed(&mut holder, number, number * 50));
        let (mut requests, mut renewals) = (0, 0);
        while let Some(next) = holder.next_tick().filter(|next| *next < at(70_000)) {
            let ms = (next.0 - 1_000_000) / 1_000;
            let asked = tick(&mut holder, ms);
            assert!(!asked.is_empty(), "a tick is for something");
            let is_settled = ms >= 20_000;
            requests += u32::from(is_settled);
            renewals += if is_settled { asked.len() } else { 0 };
            (0..200).filter(|number| asked.contains(&held(*number))).for_each(|number| {
                answered(&mut holder, number, ms, ms + 20);
            });
        }
        // Fifty seconds, in which each is renewed every ten or a little earlier.
        assert!((200 * 4..=200 * 6).contains(&renewals), "{renewals}");
        assert!(requests <= 11, "{requests}");
    }

    #[test]
    fn what_waits_for_an_answer_is_asked_again_in_its_own_time_only() {
        let mut holder = Holder::new(HolderConfig::default());
        claimed(&mut holder, 1, 0);
        claimed(&mut holder, 2, 5_500);
        assert_eq!(tick(&mut holder, 9_999), []);
        assert_eq!(tick(&mut holder, 10_000), [held(1)], "the other one is not due soon");
        claimed(&mut holder, 3, 10_100);
        assert_eq!(tick(&mut holder, 10_900), []);
        assert_eq!(tick(&mut holder, 11_000), [held(1), held(2)], "no answer came");
        answered(&mut holder, 2, 11_000, 11_010);
        answered(&mut holder, 1, 10_000, 11_020);
        assert_eq!(tick(&mut holder, 20_000), [held(1), held(2), held(3)], "an answer to the first request");
        assert_eq!(tick(&mut holder, 20_100), []);
    }

    #[test]
    fn a_refusal_is_that_of_one_lease_alone() {
        let mut holder = Holder::new(HolderConfig::default());
        (1..=3).for_each(|number| claimed(&mut holder, number, 0));
        assert_eq!(tick(&mut holder, 10_000).len(), 3);
        let stopped = holder.step(Input::Refused { held: held(2) }, at(10_050));
        assert_eq!(stopped, [Action::Stop { held: held(2), reason: StopReason::Stale }]);
        [1, 3].into_iter().for_each(|number| answered(&mut holder, number, 10_000, 10_050));
        assert_eq!(tick(&mut holder, 20_000), [held(1), held(3)]);
    }
}
