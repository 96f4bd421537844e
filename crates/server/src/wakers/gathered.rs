//! Bells that were rung and that somebody has not taken note of yet.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

use super::Bell;

/// Of how many bells it is remembered that they were rung; where there are more, all were.
const RUNG_MAX: usize = 1_000;

/// Bells that were rung.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// These.
    Some(HashSet<Bell>),
    /// All there are.
    All,
}

impl Default for Rung {
    fn default() -> Self {
        Self::Some(HashSet::new())
    }
}

impl Rung {
    fn add(&mut self, bells: impl IntoIterator<Item = Bell>) {
        let Self::Some(rung) = self else { return };
        rung.extend(bells);
        if rung.len() > RUNG_MAX {
            *self = Self::All;
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Some(rung) if rung.is_empty())
    }
}

/// Gathers bells for one who takes them: however often one was rung meanwhile, it is taken once.
#[derive(Debug, Default)]
pub struct Gathered {
    rung: Mutex<Rung>,
    any: Notify,
}

impl Gathered {
    /// Adds bells.
    pub fn add(&self, bells: impl IntoIterator<Item = Bell>) {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).add(bells);
        self.any.notify_one();
    }

    /// Adds what was taken elsewhere.
    pub fn add_rung(&self, rung: Rung) {
        match rung {
            Rung::Some(bells) => self.add(bells),
            Rung::All => {
                *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = Rung::All;
                self.any.notify_one();
            }
        }
    }

    /// Waits until there is any, and takes what there is. Nothing is lost by dropping the wait.
    pub async fn take(&self) -> Rung {
        loop {
            let rung = std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner));
            if !rung.is_empty() {
                return rung;
            }
            // Who adds between the look and this leaves word.
            self.any.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use holm_domain::RunId;
    use uuid::Uuid;

    use super::*;

    fn runs(count: usize) -> impl Iterator<Item = Bell> {
        (0..count as u128).map(|number| Bell::Run(RunId::from_uuid(Uuid::from_u128(number))))
    }

    #[test]
    fn what_is_rung_often_is_taken_once() {
        let gathered = Gathered::default();
        assert_eq!(gathered.take().now_or_never(), None);
        gathered.add(runs(2));
        gathered.add(runs(3));
        assert_eq!(gathered.take().now_or_never(), Some(Rung::Some(runs(3).collect())));
        assert_eq!(gathered.take().now_or_never(), None);
    }

    #[test]
    fn too_many_are_all() {
        let gathered = Gathered::default();
        gathered.add(runs(RUNG_MAX));
        assert_eq!(gathered.take().now_or_never(), Some(Rung::Some(runs(RUNG_MAX).collect())));
        gathered.add(runs(RUNG_MAX + 1));
        gathered.add(runs(1));
        assert_eq!(gathered.take().now_or_never(), Some(Rung::All));
        gathered.add_rung(Rung::All);
        gathered.add_rung(Rung::Some(runs(1).collect()));
        assert_eq!(gathered.take().now_or_never(), Some(Rung::All));
        assert_eq!(gathered.take().now_or_never(), None);
    }

    #[tokio::test]
    async fn who_waits_is_told() {
        let gathered = Gathered::default();
        let (taken, ()) = tokio::join!(gathered.take(), async {
            tokio::task::yield_now().await;
            gathered.add(runs(1));
        });
        assert_eq!(taken, Rung::Some(runs(1).collect()));
    }
}
