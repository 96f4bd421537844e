//! What ends a sandbox, and when: a state machine without I/O.
//!
//! A [`Verdict`] takes what happened ([`Input`]) and says what to do now ([`Action`]) and when it must be asked again
//! ([`Verdict::next_tick`]). The watchdog obeys it.
//!
//! What always holds: a sandbox that has not ended is killed at the first step at or after its lease's deadline; a deadline
//! only ever moves later, and not at all once it has passed; a kill is never taken back, needs nobody's consent, and is
//! repeated until everything has died. Why a sandbox was ended is kept as a set, because several things may happen at once;
//! [`crate::outcome`] says which of them counts.

use std::time::Duration;

use holm_domain::{BootMicros, run::Cancel};

/// How soon a kill is repeated for the first time while something of the sandbox still lives; from then on it takes twice
/// as long each time.
pub const KILL_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The longest pause between two kills.
pub const KILL_AGAIN_AFTER_MAX: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The command was started: its time limit counts from now.
    Started,
    /// The command and all its output have come to an end: its time limit does not count any more.
    Finished,
    /// Everything in the sandbox has died.
    Ended,
    /// The lease was renewed.
    Extend {
        /// The number of the lease.
        fence: u64,
        /// The new deadline.
        deadline: BootMicros,
    },
    /// Somebody asked for the end of the run.
    Cancel(Cancel),
    /// The agent says that the lease is lost.
    Stop,
    /// The shim itself is to end.
    Shutdown,
    /// The shim cannot go on: the guest spoke nonsense, or the output cannot be kept.
    GiveUp,
    /// Nothing is left to be done in the sandbox.
    Dismiss,
    /// Time passed.
    Tick,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send SIGTERM to the workload, if that is possible.
    Terminate,
    /// Kill everything.
    Kill,
}

/// Why a sandbox is being ended; several may be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Causes {
    /// The command took longer than it may.
    pub time_limit: bool,
    /// The lease ran out or was lost.
    pub lease: bool,
    /// Somebody asked.
    pub cancelled: Option<Cancel>,
    /// The shim was told to end.
    pub shutdown: bool,
}

/// What a verdict is made from.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The number of the lease.
    pub fence: u64,
    /// When the lease runs out.
    pub deadline: BootMicros,
    /// From the start of the command to its forced end.
    pub time_limit: Duration,
    /// From the polite request to end to the kill.
    pub terminate_grace: Duration,
}

/// What ends a sandbox, and when.
#[derive(Debug, Clone)]
pub struct Verdict {
    terms: Terms,
    causes: Causes,
    time_limit_at: Option<BootMicros>,
    grace_ends_at: Option<BootMicros>,
    kill_again_at: Option<BootMicros>,
    kill_again_after: Duration,
    finished: bool,
    ended: bool,
}

impl Verdict {
    /// A sandbox that is about to be made.
    pub fn new(terms: Terms) -> Self {
        let causes = Causes::default();
        Self {
            terms,
            causes,
            time_limit_at: None,
            grace_ends_at: None,
            kill_again_at: None,
            kill_again_after: KILL_AGAIN_AFTER,
            finished: false,
            ended: false,
        }
    }

    /// When the lease runs out.
    pub fn deadline(&self) -> BootMicros {
        self.terms.deadline
    }

    /// Why the sandbox is being ended, as far as anything does.
    pub fn causes(&self) -> Causes {
        self.causes
    }

    /// Whether the sandbox is to be dead.
    pub fn is_killed(&self) -> bool {
        self.kill_again_at.is_some() || self.ended
    }

    /// Whether everything in the sandbox has died.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// When [`Input::Tick`] is due next; nothing once everything has died.
    pub fn next_tick(&self) -> Option<BootMicros> {
        if self.ended {
            return None;
        }
        let pending = [self.time_limit_at, self.grace_ends_at].into_iter().flatten().min();
        Some(self.kill_again_at.unwrap_or(self.terms.deadline.min(pending.unwrap_or(self.terms.deadline))))
    }

    /// Takes what happened at `now`, and says what to do.
    pub fn step(&mut self, input: Input, now: BootMicros) -> Option<Action> {
        if self.ended {
            // The lease goes on without the sandbox: the end is still to be reported under it.
            if let Input::Extend { fence, deadline } = input {
                self.extend(fence, deadline);
            }
            return None;
        }
        // What time decides comes first: an extension or an end that arrives late does not undo what was due before it.
        let due = self.tick(now);
        let asked = match input {
            Input::Started => {
                self.time_limit_at.get_or_insert(now.plus(self.terms.time_limit));
                None
            }
            Input::Finished => {
                self.finished = true;
                self.time_limit_at = None;
                self.grace_ends_at = None;
                None
            }
            Input::Ended => {
                self.ended = true;
                return None;
            }
            Input::Extend { fence, deadline } => {
                self.extend(fence, deadline);
                None
            }
            Input::Cancel(how) => self.cancel(how, now),
            Input::Stop => {
                self.causes.lease = true;
                self.kill(now)
            }
            Input::Shutdown => {
                self.causes.shutdown = true;
                self.kill(now)
            }
            Input::GiveUp | Input::Dismiss => self.kill(now),
            Input::Tick => None,
        };
        due.or(asked)
    }

    fn extend(&mut self, fence: u64, deadline: BootMicros) {
        if fence == self.terms.fence && !self.causes.lease {
            self.terms.deadline = self.terms.deadline.max(deadline);
        }
    }

    fn tick(&mut self, now: BootMicros) -> Option<Action> {
        if now >= self.terms.deadline && !self.is_killed() {
            self.causes.lease = true;
        }
        if self.time_limit_at.is_some_and(|at| now >= at) && !self.is_killed() {
            self.causes.time_limit = true;
        }
        let grace_over = self.grace_ends_at.is_some_and(|at| now >= at);
        if grace_over && !self.is_killed() {
            self.causes.cancelled = self.causes.cancelled.or(Some(Cancel::Terminate));
        }
        let again = self.kill_again_at.is_some_and(|at| now >= at);
        if again || (!self.is_killed() && (self.causes.lease || self.causes.time_limit || grace_over)) {
            return self.kill(now);
        }
        None
    }

    fn cancel(&mut self, how: Cancel, now: BootMicros) -> Option<Action> {
        if self.is_killed() || self.causes.cancelled >= Some(how) {
            return None;
        }
        // There is no command left that could be asked; what goes on has the grace to come to its end.
        if self.finished && how == Cancel::Terminate {
            self.grace_ends_at.get_or_insert(now.plus(self.terms.terminate_grace));
            return None;
        }
        self.causes.cancelled = Some(how);
        match how {
            Cancel::Kill => self.kill(now),
            Cancel::Terminate => {
                self.grace_ends_at = Some(now.plus(self.terms.terminate_grace));
                Some(Action::Terminate)
            }
        }
    }

    fn kill(&mut self, now: BootMicros) -> Option<Action> {
        self.kill_again_at = Some(now.plus(self.kill_again_after));
        self.kill_again_after = (self.kill_again_after * 2).min(KILL_AGAIN_AFTER_MAX);
        Some(Action::Kill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: BootMicros = BootMicros(1_000_000);

    fn secs(after: u64) -> BootMicros {
        START.plus(Duration::from_secs(after))
    }

    fn verdict() -> Verdict {
        Verdict::new(Terms {
            fence: 7,
            deadline: secs(30),
            time_limit: Duration::from_secs(20),
            terminate_grace: Duration::from_secs(10),
        })
    }

    #[test]
    fn the_lease_kills_at_its_deadline_and_not_before() {
        let mut verdict = verdict();
        assert_eq!(verdict.next_tick(), Some(secs(30)));
        assert_eq!(verdict.step(Input::Tick, BootMicros(secs(30).0 - 1)), None);
        assert_eq!(verdict.step(Input::Tick, secs(30)), Some(Action::Kill));
        assert!(verdict.causes().lease && !verdict.causes().time_limit);
    }

    #[test]
    fn an_extension_counts_only_in_time_forward_and_under_the_same_fence() {
        let mut verdict = verdict();
        verdict.step(Input::Extend { fence: 7, deadline: secs(40) }, START);
        assert_eq!(verdict.deadline(), secs(40));
        verdict.step(Input::Extend { fence: 8, deadline: secs(90) }, START);
        verdict.step(Input::Extend { fence: 7, deadline: secs(20) }, START);
        assert_eq!(verdict.deadline(), secs(40));
        assert_eq!(
            verdict.step(Input::Extend { fence: 7, deadline: secs(90) }, secs(40)),
            Some(Action::Kill),
            "too late"
        );
        assert_eq!(verdict.deadline(), secs(40));
        assert!(verdict.causes().lease);
    }

    #[test]
    fn the_time_limit_counts_from_the_start_to_the_finish() {
        let mut limited = verdict();
        assert_eq!(limited.step(Input::Started, secs(5)), None);
        assert_eq!(limited.next_tick(), Some(secs(25)));
        assert_eq!(limited.step(Input::Tick, secs(25)), Some(Action::Kill));
        assert!(limited.causes().time_limit && !limited.causes().lease);

        let mut finished = verdict();
        finished.step(Input::Started, secs(5));
        finished.step(Input::Finished, secs(6));
        assert_eq!(finished.step(Input::Tick, secs(25)), None);
        assert_eq!(finished.causes(), Causes::default());
    }

    #[test]
    fn cancellation_is_polite_once_and_then_kills() {
        let mut verdict = verdict();
        verdict.step(Input::Started, START);
        assert_eq!(verdict.step(Input::Cancel(Cancel::Terminate), secs(1)), Some(Action::Terminate));
        assert_eq!(verdict.step(Input::Cancel(Cancel::Terminate), secs(2)), None);
        assert_eq!(verdict.next_tick(), Some(secs(11)), "asking again does not prolong the grace");
        assert_eq!(verdict.step(Input::Tick, secs(11)), Some(Action::Kill));
        assert_eq!(verdict.causes().cancelled, Some(Cancel::Terminate));

        let mut finished = self::verdict();
        finished.step(Input::Finished, secs(1));
        assert_eq!(finished.step(Input::Cancel(Cancel::Terminate), secs(2)), None, "nobody is left who could be asked");
        assert_eq!((finished.causes(), finished.next_tick()), (Causes::default(), Some(secs(12))));
        assert_eq!(finished.step(Input::Cancel(Cancel::Terminate), secs(5)), None);
        assert_eq!(finished.step(Input::Tick, secs(12)), Some(Action::Kill));
        assert_eq!(finished.causes().cancelled, Some(Cancel::Terminate));

        let mut verdict = self::verdict();
        verdict.step(Input::Cancel(Cancel::Terminate), secs(1));
        assert_eq!(verdict.step(Input::Cancel(Cancel::Kill), secs(2)), Some(Action::Kill));
        assert_eq!(verdict.causes().cancelled, Some(Cancel::Kill));
    }

    #[test]
    fn a_kill_is_repeated_until_everything_has_died() {
        let mut verdict = verdict();
        assert_eq!(verdict.step(Input::Stop, START), Some(Action::Kill));
        assert_eq!(verdict.next_tick(), Some(START.plus(KILL_AGAIN_AFTER)));
        assert_eq!(verdict.step(Input::Tick, START), None);
        assert_eq!(verdict.step(Input::Tick, START.plus(KILL_AGAIN_AFTER)), Some(Action::Kill));
        assert_eq!(verdict.step(Input::Ended, secs(1)), None);
        assert_eq!(verdict.next_tick(), None);
        assert_eq!(verdict.step(Input::Tick, secs(100)), None);
        assert_eq!(verdict.causes(), Causes { lease: true, ..Causes::default() });
    }

    #[test]
    fn kills_go_on_for_ever_at_growing_pauses() {
        let mut verdict = verdict();
        verdict.step(Input::Stop, START);
        let (mut now, mut pause) = (START, KILL_AGAIN_AFTER);
        for _ in 0..1_000 {
            let next = verdict.next_tick().expect("it never gives up");
            assert_eq!(next, now.plus(pause));
            assert_eq!(verdict.step(Input::Tick, next), Some(Action::Kill));
            (now, pause) = (next, (pause * 2).min(KILL_AGAIN_AFTER_MAX));
        }
        assert_eq!(pause, KILL_AGAIN_AFTER_MAX);
    }

    #[test]
    fn what_comes_after_the_kill_is_no_cause_of_it() {
        let mut verdict = verdict();
        verdict.step(Input::Started, START);
        verdict.step(Input::Dismiss, secs(1));
        verdict.step(Input::Cancel(Cancel::Kill), secs(2));
        verdict.step(Input::Tick, secs(60));
        assert_eq!(verdict.causes(), Causes::default());
    }

    fn inputs() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Started),
            Just(Input::Finished),
            (6u64..9, 0u64..100).prop_map(|(fence, after)| Input::Extend { fence, deadline: secs(after) }),
            Just(Input::Cancel(Cancel::Terminate)),
            Just(Input::Cancel(Cancel::Kill)),
            Just(Input::Stop),
            Just(Input::Dismiss),
            Just(Input::Tick),
            Just(Input::Tick),
        ]
    }

    proptest! {
        #[test]
        fn no_sequence_of_inputs_outlives_the_deadline(steps in prop::collection::vec((inputs(), 0u64..9_000_000), 1..60)) {
            let mut verdict = verdict();
            let mut now = START;
            for (input, pause) in steps {
                now = BootMicros(now.0 + pause);
                let (before, was_killed) = (verdict.deadline(), verdict.is_killed());
                let action = verdict.step(input, now);
                prop_assert!(verdict.deadline() >= before, "a deadline never moves back");
                prop_assert!(!was_killed || verdict.is_killed(), "a kill is never taken back");
                if now >= before && !was_killed {
                    prop_assert_eq!(action, Some(Action::Kill), "the deadline that was known before has passed");
                }
                prop_assert!(verdict.is_killed() || now < verdict.deadline());
                let next = verdict.next_tick();
                prop_assert!(next.is_some_and(|at| verdict.is_killed() || (at <= verdict.deadline() && at > now)));
            }
        }
    }
}
