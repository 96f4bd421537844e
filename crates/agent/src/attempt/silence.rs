//! How long a shim has been silent, and what that comes to.
//!
//! What always holds: nothing but an answer ends a silence. A shim that takes connections and drops them, with or without a
//! greeting, or that takes commands and says nothing, is as silent as one that does not listen. What decides takes the time
//! as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// How often it is looked whether this agent has run while it waits for a shim.
const WAIT_STEP: Duration = Duration::from_secs(1);

/// A wait for a shim. It is looked at in steps: where one of them took longer than two, this agent did not run, the shim may
/// not have run either, and it has its time once more.
#[derive(Debug, Clone, Copy)]
struct Wait {
    patience: Duration,
    over_at: Instant,
    next_at: Instant,
}

impl Wait {
    fn begin(patience: Duration, now: Instant) -> Self {
        Self { patience, over_at: now + patience, next_at: now + patience.min(WAIT_STEP) }
    }

    /// Takes the step that is due at `next_at`; returns whether the shim was waited for for long enough.
    fn step(&mut self, now: Instant) -> bool {
        if now > self.next_at + WAIT_STEP {
            *self = Self::begin(self.patience, now);
            return false;
        }
        let is_over = now >= self.over_at;
        *self = Self { next_at: self.over_at.min(now + WAIT_STEP), ..*self };
        is_over
    }
}

/// A shim that has been silent for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    /// It waits for a disk: it is waited for, and could not be killed either.
    WaitsForDisk,
    /// Nothing keeps it from answering: it is to be killed.
    Stuck,
}

/// The silence of a shim since its last answer, over however many connections.
#[derive(Debug)]
pub(crate) struct Silence {
    /// How long it may last.
    within: Duration,
    /// Whether the shim has ever said something.
    has_spoken: bool,
    /// The wait for an answer, while one is owed.
    wait: Option<Wait>,
    /// What it has come to.
    came_to: Option<Silent>,
}

impl Silence {
    /// No silence yet; each may last as long as `within`.
    pub(crate) fn new(within: Duration, has_spoken: bool) -> Self {
        Self { within, has_spoken, wait: None, came_to: None }
    }

    /// It begins, unless it goes on already. A shim that never said a word makes its sandbox first, which may take `making`.
    pub(crate) fn begin(&mut self, making: Duration, now: Instant) {
        let making = if self.has_spoken { Duration::ZERO } else { making };
        self.wait.get_or_insert_with(|| Wait::begin(self.within + making, now));
    }

    /// The shim has said something that is no answer.
    pub(crate) fn greeted(&mut self) {
        self.has_spoken = true;
    }

    /// The shim has answered, or is gone; returns what its silence had come to.
    pub(crate) fn end(&mut self) -> Option<Silent> {
        self.has_spoken = true;
        self.wait = None;
        self.came_to.take()
    }

    /// When [`Silence::step`] is due.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.wait.map(|wait| wait.next_at)
    }

    /// Takes the step that is due. Where it has lasted for too long: what it comes to, and whether that is news; then it
    /// has its time once more.
    pub(crate) fn step(&mut self, now: Instant, waits_for_disk: impl FnOnce() -> bool) -> Option<(Silent, bool)> {
        let wait = self.wait.as_mut()?;
        if !wait.step(now) {
            return None;
        }
        *wait = Wait::begin(self.within, now);
        let silent = if waits_for_disk() { Silent::WaitsForDisk } else { Silent::Stuck };
        Some((silent, self.came_to.replace(silent) != Some(silent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(30);

    /// Steps until the wait is over; each comes late by what `late` says of its number. Returns how long that took.
    fn over_after(patience: Duration, late: impl Fn(u32) -> Duration) -> Duration {
        let begun = Instant::now();
        let mut wait = Wait::begin(patience, begun);
        for number in 0..1_000 {
            let now = wait.next_at + late(number);
            if wait.step(now) {
                return now - begun;
            }
        }
        panic!("it has no end");
    }

    #[test]
    fn a_shim_is_waited_for_for_as_long_as_this_agent_runs() {
        for patience in [Duration::from_millis(300), WAIT_STEP, WITHIN] {
            assert_eq!(over_after(patience, |_| Duration::ZERO), patience);
        }
        let slow = over_after(WITHIN, |_| WAIT_STEP / 2);
        assert!(slow >= WITHIN && slow < WITHIN + WAIT_STEP, "{slow:?}");
        let frozen = |number| if number == 28 { Duration::from_secs(600) } else { Duration::ZERO };
        assert_eq!(over_after(WITHIN, frozen), Duration::from_secs(29 + 600 + 30), "just before it was over");
    }

    /// Steps until the silence has lasted for too long, and begins it before each step as a new connection does; returns
    /// when that was, and what it came to.
    fn too_long(silence: &mut Silence, mut now: Instant, waits_for_disk: bool) -> (Instant, Silent, bool) {
        for _ in 0..1_000 {
            silence.begin(WITHIN, now);
            now = silence.next_at().unwrap();
            if let Some((silent, is_news)) = silence.step(now, || waits_for_disk) {
                return (now, silent, is_news);
            }
        }
        panic!("it has no end");
    }

    #[test]
    fn no_connection_ends_a_silence_but_an_answer_does() {
        let start = Instant::now();
        let mut making = Silence::new(WITHIN, false);
        assert_eq!(too_long(&mut making, start, false), (start + WITHIN * 2, Silent::Stuck, true));
        let mut silence = Silence::new(WITHIN, true);
        assert_eq!(too_long(&mut silence, start, false), (start + WITHIN, Silent::Stuck, true));
        let mut answers = Silence::new(WITHIN, false);
        let answered = start + WITHIN / 2;
        answers.begin(WITHIN, start);
        let due = answers.next_at();
        answers.greeted();
        assert_eq!(answers.next_at(), due, "a greeting is no answer");
        assert_eq!(answers.end(), None);
        assert_eq!(answers.next_at(), None, "no answer is owed");
        assert_eq!(too_long(&mut answers, answered, false).0, answered + WITHIN, "it has made its sandbox");
    }

    #[test]
    fn what_a_silence_comes_to_is_news_once_and_its_end_again() {
        let mut silence = Silence::new(WITHIN, true);
        let mut now = Instant::now();
        for round in 0..5 {
            let (later, silent, is_news) = too_long(&mut silence, now, true);
            assert_eq!((later - now, silent, is_news), (WITHIN, Silent::WaitsForDisk, round == 0), "{round}");
            now = later;
        }
        assert_eq!(silence.end(), Some(Silent::WaitsForDisk));
        assert_eq!(silence.end(), None);
        let (now, ..) = too_long(&mut silence, now, true);
        assert_eq!(too_long(&mut silence, now, false), (now + WITHIN, Silent::Stuck, true));
        assert_eq!(too_long(&mut silence, now + WITHIN, false), (now + WITHIN * 2, Silent::Stuck, false));
    }
}
