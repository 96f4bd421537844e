//! What is free on this host, and who has the rest.
//!
//! What always holds: what was taken is given back exactly once, when its [`Permit`] or [`Offer`] is dropped, by whoever
//! has it (SPEC L7). What two polls offer at the same time never adds up to more than there is. Of a run that fits, the
//! greater offer hears as well as the lesser: an offer that is neither greater nor alone is not worth its questions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holm_domain::host::Capacity;
use tokio::sync::Notify;

#[derive(Debug)]
struct Inner {
    all: Capacity,
    stock: Mutex<Stock>,
    changed: Notify,
}

/// What is neither occupied nor offered, and what is offered.
#[derive(Debug)]
struct Stock {
    free: Capacity,
    offered: Vec<Capacity>,
}

impl Stock {
    /// Whether an offer of what is free would hear of runs that none of those hears of that wait for an answer.
    fn is_worth_offering(&self) -> bool {
        let free = &self.free;
        let adds = |offered: &Capacity| free.runs >= offered.runs || free.memory_bytes > offered.memory_bytes;
        free.runs > 0 && free.memory_bytes > 0 && self.offered.iter().all(adds)
    }
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
    /// What it was at first.
    whole: Capacity,
}

impl Inner {
    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool of which all is free.
    pub(crate) fn new(all: Capacity) -> Self {
        let stock = Mutex::new(Stock { free: all, offered: Vec::new() });
        Self { inner: Arc::new(Inner { all, stock, changed: Notify::new() }) }
    }

    /// Waits until an offer is worth it, and offers all that is free.
    pub(crate) async fn offer(&self) -> Offer {
        loop {
            let changed = self.inner.changed.notified();
            {
                let mut stock = self.inner.stock();
                if stock.is_worth_offering() {
                    let whole = std::mem::take(&mut stock.free);
                    stock.offered.push(whole);
                    return Offer { permit: Permit { inner: self.inner.clone(), taken: whole }, whole };
                }
            }
            changed.await;
        }
    }

    /// Takes what a run that was found again occupies: all of it, or what there is.
    pub(crate) fn take_for_found(&self, wanted: Capacity) -> Permit {
        let mut stock = self.inner.stock();
        let free = stock.free;
        let taken = Capacity {
            runs: wanted.runs.min(free.runs),
            cpus_milli: wanted.cpus_milli.min(free.cpus_milli),
            memory_bytes: wanted.memory_bytes.min(free.memory_bytes),
        };
        stock.free = free.less(&taken);
        Permit { inner: self.inner.clone(), taken }
    }
}

impl Offer {
    /// What is offered.
    pub(crate) fn capacity(&self) -> Capacity {
        self.permit.taken
    }

    /// Whether nothing of the host is left that could be offered later.
    pub(crate) fn is_all(&self) -> bool {
        self.whole == self.permit.inner.all
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
        let mut stock = self.inner.stock();
        let free = &mut stock.free;
        free.runs += self.taken.runs;
        free.cpus_milli += self.taken.cpus_milli;
        free.memory_bytes += self.taken.memory_bytes;
        drop(stock);
        self.inner.changed.notify_waiters();
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let mut stock = self.permit.inner.stock();
        if let Some(index) = stock.offered.iter().position(|offered| *offered == self.whole) {
            stock.offered.swap_remove(index);
        }
        drop(stock);
        // What is left of it is given back next, by its permit, and that is told; where nothing is left, another offer may
        // be worth it all the same.
        if self.permit.taken == Capacity::default() {
            self.permit.inner.changed.notify_waiters();
        }
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
        assert!(pool.offer().now_or_never().is_none(), "all is offered already");
        let first = offer.cut(capacity(1, 60)).unwrap();
        assert!(offer.cut(capacity(1, 60)).is_none(), "more than is left");
        let second = offer.cut(capacity(1, 40)).unwrap();
        assert!(offer.cut(capacity(1, 0)).is_none(), "no place is left");
        drop(offer);
        assert!(pool.offer().now_or_never().is_none(), "no place is free");
        drop(first);
        assert_eq!(pool.offer().await.capacity().memory_bytes, 60);
        drop(second);
        assert_eq!(pool.offer().await.capacity(), capacity(2, 100));
    }

    #[tokio::test]
    async fn an_offer_that_hears_of_nothing_more_than_another_waits() {
        let pool = Pool::new(capacity(4, 100));
        let mut first = pool.offer().await;
        assert!(first.is_all());
        let permits = [30, 10, 10].map(|memory| first.cut(capacity(1, memory)).unwrap());
        drop(first);
        let first = pool.offer().await;
        assert_eq!(first.capacity().memory_bytes, 50);
        assert!(!first.is_all());
        let [large, small, other] = permits;
        drop(small);
        assert_eq!(pool.offer().now_or_never().unwrap().capacity().runs, 1, "as many places");
        let first_again = (drop(first), pool.offer().await).1;
        assert_eq!(first_again.capacity().runs, 2);
        drop(other);
        assert!(pool.offer().now_or_never().is_none(), "fewer places and less memory");
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.offer().await.capacity() }
        });
        tokio::task::yield_now().await;
        drop(first_again);
        assert_eq!(waiting.await.unwrap().runs, 3, "the other was answered");
        drop(large);
        assert!(pool.offer().await.is_all());
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
