//! Which attempts something is done for at this moment, what they occupy, and which places in the pool of user ids they have.
//!
//! What always holds: an attempt has at most one [`Stay`], so the supervisor and the reaper never work on the same one; a
//! place is given to one attempt at a time and stays taken until everything of that attempt was removed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holm_domain::BootMicros;
use holm_runtime::{AttemptId, Error, Resources};

use crate::usage::CpuTime;

#[derive(Debug, Clone, Default)]
struct Entry {
    uid_slot: Option<u32>,
    /// What it may occupy, once that is planned.
    resources: Option<Arc<Resources>>,
    /// The processor time that it had used at the last look.
    used: Option<CpuTime>,
    /// Nobody looks after it now: something could not be removed, or whoever did so failed.
    left: bool,
}

/// The attempts that there are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Occupancy {
    entries: Arc<Mutex<BTreeMap<AttemptId, Entry>>>,
}

/// The sole right to work on one attempt. Dropped without [`Stay::clear`], it leaves the attempt to the reaper.
#[derive(Debug)]
pub(crate) struct Stay {
    occupancy: Occupancy,
    attempt: AttemptId,
    cleared: bool,
}

impl Occupancy {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the attempt; nothing while somebody has it.
    pub(crate) fn enter(&self, attempt: AttemptId) -> Option<Stay> {
        let mut entries = self.entries();
        let entry = entries.entry(attempt).or_insert(Entry { left: true, ..Entry::default() });
        if !entry.left {
            return None;
        }
        entry.left = false;
        Some(Stay { occupancy: self.clone(), attempt, cleared: false })
    }

    /// What the attempt may occupy, if that is known.
    pub(crate) fn resources(&self, attempt: AttemptId) -> Option<Arc<Resources>> {
        self.entries().get(&attempt)?.resources.clone()
    }

    /// How much of the processors the attempt had on average since the last look, in thousandths of one.
    pub(crate) fn cpus_milli(&self, attempt: AttemptId, now: CpuTime) -> Option<u64> {
        self.entries().get_mut(&attempt)?.used.replace(now)?.cpus_milli_until(now)
    }
}

impl Entry {
    fn occupy(&mut self, resources: &Resources) {
        self.uid_slot = resources.uid_slot;
        self.resources = Some(Arc::new(resources.clone()));
    }
}

impl Stay {
    /// The attempt.
    pub(crate) fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// Makes a plan with the places that others have, and takes the one that it chose.
    pub(crate) fn plan(&self, plan: impl FnOnce(&[u32]) -> Result<Resources, Error>) -> Result<Resources, Error> {
        let mut entries = self.occupancy.entries();
        let taken: Vec<u32> = entries.values().filter_map(|entry| entry.uid_slot).collect();
        let resources = plan(&taken)?;
        if resources.uid_slot.is_some_and(|slot| taken.contains(&slot)) {
            return Err(Error::Exhausted("the pool of user ids"));
        }
        entries.entry(self.attempt).or_default().occupy(&resources);
        Ok(resources)
    }

    /// Its sandbox begins now.
    pub(crate) fn begun(&self, now: BootMicros) {
        self.occupancy.entries().entry(self.attempt).or_default().used = Some(CpuTime { at: now, used_us: 0 });
    }

    /// Takes the place that found resources name. If somebody else has it by now, it is struck out of them: what they name
    /// otherwise may be removed, but not what lives in a place that is not theirs any more.
    pub(crate) fn adopt(&self, resources: &mut Resources) {
        let mut entries = self.occupancy.entries();
        let slot = resources.uid_slot;
        if slot.is_some() && entries.iter().any(|(id, entry)| *id != self.attempt && entry.uid_slot == slot) {
            resources.uid_slot = None;
        }
        entries.entry(self.attempt).or_default().occupy(resources);
    }

    /// Nothing of the attempt is left.
    pub(crate) fn clear(mut self) {
        self.cleared = true;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut entries = self.occupancy.entries();
        if self.cleared {
            entries.remove(&self.attempt);
        } else if let Some(entry) = entries.get_mut(&self.attempt) {
            entry.left = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::record;

    fn resources(fence: u64, uid_slot: Option<u32>) -> Resources {
        Resources { uid_slot, ..record(fence).resources }
    }

    #[test]
    fn one_at_a_time_and_left_ones_can_be_taken_over() {
        let occupancy = Occupancy::default();
        let attempt = record(1).claim.attempt;
        let stay = occupancy.enter(attempt).unwrap();
        assert!(occupancy.enter(attempt).is_none());
        drop(stay);
        occupancy.enter(attempt).unwrap().clear();
        assert!(occupancy.entries().is_empty());
    }

    #[test]
    fn a_place_stays_taken_until_all_is_removed() {
        let occupancy = Occupancy::default();
        let (first, second) = (record(1).claim.attempt, record(2).claim.attempt);
        let stay = occupancy.enter(first).unwrap();
        stay.plan(|taken| {
            assert!(taken.is_empty());
            Ok(resources(1, Some(0)))
        })
        .unwrap();
        drop(stay);
        let other = occupancy.enter(second).unwrap();
        let refused = other.plan(|taken| {
            assert_eq!(taken, [0]);
            Ok(resources(2, Some(0)))
        });
        assert!(matches!(refused, Err(Error::Exhausted(_))), "a runtime that gives a place twice is not believed");
        occupancy.enter(first).unwrap().clear();
        other.plan(|taken| Ok(resources(2, Some(taken.len() as u32)))).unwrap();
    }

    #[test]
    fn a_place_that_somebody_else_has_is_struck_out() {
        let occupancy = Occupancy::default();
        let owner = occupancy.enter(record(2).claim.attempt).unwrap();
        owner.plan(|_| Ok(resources(2, Some(5)))).unwrap();
        let old = occupancy.enter(record(1).claim.attempt).unwrap();
        let mut found = resources(1, Some(5));
        old.adopt(&mut found);
        assert_eq!(found.uid_slot, None);
        let mut free = resources(1, Some(6));
        old.adopt(&mut free);
        assert_eq!(free.uid_slot, Some(6));
    }
}
