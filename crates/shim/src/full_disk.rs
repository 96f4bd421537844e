//! The wait of an attempt for a disk that is full: one for its output, its changes and its last events.
//!
//! What always holds: all of them together are waited for no longer than a patience, which output that waited and is written
//! makes whole again, so that a disk that has room now and then is not given up; and no longer than [`HURRIED_WITHIN`] once
//! the run was ended by force. What decides takes the time as an argument.

use std::{cell::Cell, time::Duration};

use holm_domain::BootMicros;

use crate::clock;

/// How soon it is tried again to write what found no room on the disk.
pub const TRY_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How long a full disk is waited for, at most, once the run was ended by force.
pub const HURRIED_WITHIN: Duration = Duration::from_secs(5);

/// The wait for a disk that is full.
#[derive(Debug)]
pub struct FullDisk(Cell<Wait>);

#[derive(Debug, Clone, Copy)]
struct Wait {
    patience: Duration,
    /// What is left of the patience, without the wait that goes on.
    left: Duration,
    /// Since when it is waited, if it is.
    since: Option<BootMicros>,
    /// How long it was waited before the hurry, without the wait that goes on.
    waited: Duration,
    /// Whether the run was ended by force.
    is_hurried: bool,
}

impl Wait {
    /// The wait that goes on has come to its end.
    fn paused(self, now: BootMicros) -> Self {
        let spell = self.since.map_or(Duration::ZERO, |since| now.since(since));
        let waited = if self.is_hurried { self.waited } else { self.waited + spell };
        Self { left: self.left.saturating_sub(spell), since: None, waited, ..self }
    }
}

impl FullDisk {
    /// A disk with room; once it is full, it is waited for as long as `patience`.
    pub fn new(patience: Duration) -> Self {
        let waited = Duration::ZERO;
        Self(Cell::new(Wait { patience, left: patience, since: None, waited, is_hurried: false }))
    }

    /// Notes that there was no room; says when it is to be tried again, unless the patience is over.
    pub fn no_room(&self, now: BootMicros) -> Option<BootMicros> {
        let mut wait = self.0.get();
        if wait.since.is_none() {
            tracing::warn!(left = ?wait.left, "the disk is full: what the run leaves waits for room");
        }
        let until = wait.since.get_or_insert(now).plus(wait.left);
        self.0.set(wait);
        (now < until).then(|| until.min(now.plus(TRY_AGAIN_AFTER)))
    }

    /// Notes that there was room for what waited.
    pub fn has_room(&self, now: BootMicros) {
        let wait = self.0.get();
        if wait.since.is_some() {
            tracing::info!("the disk has room again");
            self.0.set(wait.paused(now));
        }
    }

    /// Notes that there was room for output that waited.
    pub fn has_room_for_output(&self, now: BootMicros) {
        self.has_room(now);
        let wait = self.0.get();
        if !wait.is_hurried {
            self.0.set(Wait { left: wait.patience, ..wait });
        }
    }

    /// The run was ended by force: nobody is to wait long for word of it.
    pub fn hurry(&self, now: BootMicros) {
        let wait = self.0.get();
        if !wait.is_hurried {
            let (since, paused) = (wait.since.map(|_| now), wait.paused(now));
            self.0.set(Wait { left: paused.left.min(HURRIED_WITHIN), since, is_hurried: true, ..paused });
        }
    }

    /// How long it was waited altogether, up to the hurry.
    pub fn waited(&self, now: BootMicros) -> Duration {
        self.0.get().paused(now).waited
    }

    /// Waits until it is worth another try to write what found no room; whether it is, which it is not once the patience is
    /// over.
    pub async fn wait(&self) -> bool {
        let again = self.no_room(clock::boot());
        if again.is_some() {
            clock::sleep_until(again).await;
        }
        again.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: BootMicros = BootMicros(7_000_000);
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Tries until it is given up, without any room; returns how long that took.
    fn given_up_after(disk: &FullDisk, from: BootMicros) -> Duration {
        let mut now = from;
        while let Some(again) = disk.no_room(now) {
            assert!(again > now && again <= now.plus(TRY_AGAIN_AFTER), "{again:?} after {now:?}");
            now = again;
        }
        now.since(from)
    }

    #[test]
    fn a_full_disk_is_given_up_exactly_when_the_patience_is_over() {
        for millis in [0, 1, 100, 250, 600, 60_000] {
            let patience = Duration::from_millis(millis);
            assert_eq!(given_up_after(&FullDisk::new(patience), START), patience);
        }
    }

    #[test]
    fn all_waits_together_have_one_patience() {
        let disk = FullDisk::new(PATIENCE);
        assert!(disk.no_room(START).is_some());
        let some = START.plus(PATIENCE / 4);
        disk.has_room(some);
        let later = some.plus(PATIENCE * 9);
        assert_eq!(given_up_after(&disk, later), PATIENCE * 3 / 4, "a time with room does not count");
        let end = later.plus(PATIENCE * 3 / 4);
        assert_eq!((disk.no_room(end), disk.waited(end)), (None, PATIENCE), "what comes last does not wait once more");
    }

    #[test]
    fn output_that_found_room_waits_anew() {
        let disk = FullDisk::new(PATIENCE);
        for round in 0..4 {
            let begun = START.plus(PATIENCE * 10 * round);
            assert!(disk.no_room(begun).is_some());
            disk.has_room_for_output(begun.plus(PATIENCE / 2));
        }
        let end = START.plus(PATIENCE * 100);
        assert_eq!(disk.waited(end), PATIENCE * 2);
        assert_eq!(given_up_after(&disk, end), PATIENCE);
    }

    #[test]
    fn in_a_hurry_little_is_waited_for_and_only_once() {
        let disk = FullDisk::new(PATIENCE);
        assert!(disk.no_room(START).is_some());
        let killed = START.plus(PATIENCE / 2);
        disk.hurry(killed);
        assert_eq!(given_up_after(&disk, killed), HURRIED_WITHIN);
        let end = killed.plus(HURRIED_WITHIN);
        disk.hurry(end);
        assert_eq!((disk.no_room(end), disk.waited(end)), (None, PATIENCE / 2), "what follows took nobody's time");
        let disk = FullDisk::new(PATIENCE);
        disk.hurry(START);
        assert!(disk.no_room(killed).is_some());
        disk.has_room_for_output(killed.plus(HURRIED_WITHIN / 5));
        assert_eq!(
            given_up_after(&disk, end),
            HURRIED_WITHIN * 4 / 5,
            "it begins with what finds no room, and not anew"
        );
    }

    #[test]
    fn a_hurry_makes_no_wait_longer() {
        let disk = FullDisk::new(PATIENCE);
        assert!(disk.no_room(START).is_some());
        let nearly = START.plus(PATIENCE - Duration::from_secs(1));
        disk.hurry(nearly);
        assert_eq!(given_up_after(&disk, nearly), Duration::from_secs(1));
        let short = FullDisk::new(Duration::from_millis(300));
        short.hurry(START);
        assert_eq!(given_up_after(&short, START), Duration::from_millis(300));
    }
}
