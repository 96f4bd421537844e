//! Hints that something may have changed: for each org one bell for its queue and one for its agents, one for each run.
//!
//! A hint carries nothing and may be missed or superfluous: whoever is woken reads the store. A server never hears what
//! another server rings, so a wait on a store that others write to also ends after `reread_every` of
//! [`crate::config::ServeLimits`]. A bell exists only while somebody listens.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use holm_domain::{OrgId, RunId, UnixMicros};
use tokio::sync::{Notify, futures::Notified};

/// The bells of one server.
#[derive(Debug, Default)]
pub struct Wakers {
    queues: Arc<Bells<OrgId>>,
    agents: Arc<Bells<OrgId>>,
    runs: Arc<Bells<RunId>>,
    seal: Notify,
    overdue: Notify,
    /// When overdue runs are looked for next.
    overdue_at: AtomicI64,
}

impl Wakers {
    /// Listens to what is to be executed for an org.
    pub fn listen_queue(&self, org: OrgId) -> Listener<OrgId> {
        Bells::listen(&self.queues, org)
    }

    /// Listens to what the agents that serve an org are to be told.
    pub fn listen_agents(&self, org: OrgId) -> Listener<OrgId> {
        Bells::listen(&self.agents, org)
    }

    /// Listens to what concerns a run.
    pub fn listen_run(&self, run: RunId) -> Listener<RunId> {
        Bells::listen(&self.runs, run)
    }

    /// Says that a log became worth sealing; which one stands in the store.
    pub fn want_sealed(&self) {
        self.seal.notify_one();
    }

    /// Waits until a log is worth sealing.
    pub async fn sealable(&self) {
        self.seal.notified().await;
    }

    /// Says that a run that was saved is overdue at `deadline`.
    pub fn expect_deadline(&self, deadline: Option<UnixMicros>) {
        if deadline.is_some_and(|deadline| deadline.0 < self.overdue_at.load(Ordering::SeqCst)) {
            self.overdue.notify_one();
        }
    }

    /// Waits until a run was saved that is overdue before `planned`, when they are looked for next.
    pub async fn overdue_before(&self, planned: UnixMicros) {
        self.overdue_at.store(planned.0, Ordering::SeqCst);
        self.overdue.notified().await;
    }

    /// Says that there is more to be executed for an org.
    pub fn ring_queue(&self, org: OrgId) {
        self.queues.ring(&org);
    }

    /// Says that an agent that serves an org is to be told something.
    pub fn ring_agents(&self, org: OrgId) {
        self.agents.ring(&org);
    }

    /// Says that a run, its log or its events changed.
    pub fn ring_run(&self, run: RunId) {
        self.runs.ring(&run);
    }
}

#[derive(Debug)]
struct Bells<K>(Mutex<HashMap<K, Arc<Notify>>>);

impl<K> Default for Bells<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> Bells<K> {
    fn listen(bells: &Arc<Self>, key: K) -> Listener<K> {
        let mut map = bells.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bell = Arc::clone(map.entry(key).or_default());
        Listener { key, bell, bells: Arc::clone(bells) }
    }

    fn ring(&self, key: &K) {
        if let Some(bell) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            bell.notify_waiters();
        }
    }
}

/// Hears one bell until it is dropped.
#[derive(Debug)]
pub struct Listener<K: Copy + Eq + Hash> {
    key: K,
    bell: Arc<Notify>,
    bells: Arc<Bells<K>>,
}

impl<K: Copy + Eq + Hash> Listener<K> {
    /// A wait that hears every ring from this call on, not only from its first poll on: take it, read, then await it.
    pub fn heard(&self) -> Notified<'_> {
        // `notify_waiters` reaches every `Notified` that was made before it, polled or not.
        self.bell.notified()
    }
}

impl<K: Copy + Eq + Hash> Drop for Listener<K> {
    fn drop(&mut self) {
        let mut map = self.bells.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The map and this listener: nobody else listens, and nobody can begin while the map is locked.
        if Arc::strong_count(&self.bell) == 2 {
            map.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_ring_between_reading_and_waiting_is_heard() {
        let wakers = Wakers::default();
        let run = RunId::from_uuid(Uuid::from_u128(1));
        let listener = wakers.listen_run(run);
        let heard = listener.heard();
        wakers.ring_run(RunId::from_uuid(Uuid::from_u128(2)));
        wakers.ring_agents(OrgId::from_uuid(Uuid::from_u128(1)));
        assert!(listener.heard().now_or_never().is_none(), "bells of others are not heard");
        wakers.ring_run(run);
        assert!(heard.now_or_never().is_some());
    }

    #[test]
    fn a_bell_lives_while_somebody_listens() {
        let wakers = Wakers::default();
        let org = OrgId::from_uuid(Uuid::from_u128(1));
        let (one, other) = (wakers.listen_queue(org), wakers.listen_queue(org));
        drop(one);
        let heard = other.heard();
        wakers.ring_queue(org);
        assert!(heard.now_or_never().is_some(), "the other still listens");
        drop(other);
        assert!(wakers.queues.0.lock().unwrap().is_empty());
    }
}
