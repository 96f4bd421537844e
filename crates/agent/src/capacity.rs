//! What is free on this host, and who has the rest.
//!
//! What always holds: what was taken is given back exactly once, when its [`Permit`] or [`Offer`] is dropped, by whoever
//! has it (SPEC L7). What is offered and what is occupied never add up to more than there is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holm_domain::host::Capacity;
use tokio::sync::Notify;

#[derive(Debug)]
struct Inner {
    all: Capacity,
    free: Mutex<Capacity>,
    changed: Notify,
}

/// All that there is on the host.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

/// A part of the capacity that a run occupies.
#[derive(Debug)]
pub(crate) struct Permit {
    inner: Arc<Inner>,
    taken: Capacity,
}

/// A part of the capacity that is offered to the control plane; permits are cut from it.
#[derive(Debug)]
pub(crate) struct Offer {
    permit: Permit,
}

impl Inner {
    fn free(&self) -> MutexGuard<'_, Capacity> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool of which all is free.
    pub(crate) fn new(all: Capacity) -> Self {
        Self { inner: Arc::new(Inner { all, free: Mutex::new(all), changed: Notify::new() }) }
    }

    /// Waits until there is a place, and offers all that is free.
    pub(crate) async fn offer(&self) -> Offer {
        loop {
            let changed = self.inner.changed.notified();
            {
                let mut free = self.inner.free();
                if free.runs > 0 && free.memory_bytes > 0 {
                    let taken = std::mem::take(&mut *free);
                    return Offer { permit: Permit { inner: self.inner.clone(), taken } };
                }
            }
            changed.await;
        }
    }

    /// Takes what a run that was found again occupies: all of it, or what there is.
    pub(crate) fn take_for_found(&self, wanted: Capacity) -> Permit {
        let mut free = self.inner.free();
        let taken = Capacity {
            runs: wanted.runs.min(free.runs),
            cpus_milli: wanted.cpus_milli.min(free.cpus_milli),
            memory_bytes: wanted.memory_bytes.min(free.memory_bytes),
        };
        *free = free.less(&taken);
        Permit { inner: self.inner.clone(), taken }
    }
}

impl Offer {
    /// What is offered.
    pub(crate) fn capacity(&self) -> Capacity {
        self.permit.taken
    }

    /// Whether nothing of the host is left that could be offered later. To be asked before anything is cut from it.
    pub(crate) fn is_all(&self) -> bool {
        self.permit.taken == self.permit.inner.all
    }

    /// Cuts a permit from the offer; nothing if it does not fit. Processors are shared: a run takes what is left of them.
    pub(crate) fn cut(&mut self, wanted: Capacity) -> Option<Permit> {
        let left = &mut self.permit.taken;
        let taken = Capacity { cpus_milli: wanted.cpus_milli.min(left.cpus_milli), ..wanted };
        if !left.fits(&taken) {
            return None;
        }
        *left = left.less(&taken);
        Some(Permit { inner: self.permit.inner.clone(), taken })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.taken == Capacity::default() {
            return;
        }
        let mut free = self.inner.free();
        free.runs += self.taken.runs;
        free.cpus_milli += self.taken.cpus_milli;
        free.memory_bytes += self.taken.memory_bytes;
        drop(free);
        self.inner.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn capacity(runs: u32, memory_bytes: u64) -> Capacity {
        Capacity { runs, cpus_milli: 1_000, memory_bytes }
    }

    #[tokio::test]
    async fn what_is_taken_comes_back_once() {
        let pool = Pool::new(capacity(2, 100));
        let mut offer = pool.offer().await;
        assert_eq!(offer.capacity(), capacity(2, 100));
        assert!(offer.is_all());
        assert!(pool.offer().now_or_never().is_none(), "all is offered already");
        let first = offer.cut(capacity(1, 60)).unwrap();
        assert!(offer.cut(capacity(1, 60)).is_none(), "more than is left");
        let second = offer.cut(capacity(1, 40)).unwrap();
        assert!(offer.cut(capacity(1, 0)).is_none(), "no place is left");
        drop(offer);
        assert!(pool.offer().now_or_never().is_none(), "no place is free");
        drop(first);
        let part = pool.offer().await;
        assert_eq!(part.capacity().memory_bytes, 60);
        assert!(!part.is_all());
        drop(part);
        drop(second);
        assert_eq!(pool.offer().await.capacity(), capacity(2, 100));
    }

    #[tokio::test]
    async fn a_waiter_is_woken_by_what_is_given_back() {
        let pool = Pool::new(capacity(1, 10));
        let permit = pool.offer().await.cut(capacity(1, 10)).unwrap();
        let waiter = tokio::spawn({
            let pool = pool.clone();
            async move { pool.offer().await.capacity() }
        });
        tokio::task::yield_now().await;
        drop(permit);
        assert_eq!(waiter.await.unwrap(), capacity(1, 10));
    }

    #[tokio::test]
    async fn found_runs_never_give_back_more_than_they_took() {
        let pool = Pool::new(capacity(1, 10));
        let first = pool.take_for_found(capacity(1, 8));
        let second = pool.take_for_found(capacity(1, 8));
        drop(first);
        drop(second);
        assert_eq!(pool.offer().await.capacity(), capacity(1, 10));
    }
}
