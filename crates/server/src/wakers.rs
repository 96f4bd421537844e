//! Hints that something may have changed: for each org one bell for its queue and one for its agents, one for each run.
//!
//! A hint carries nothing and may be missed or superfluous: whoever is woken reads the store. What one server rings, others
//! on the store hear a moment later ([`crate::tasks::hint`]), or not at all, so a wait on a store that others write to also
//! ends after `reread_every` of [`crate::config::ServeLimits`]. A bell exists only while somebody listens.

mod gathered;

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use holm_domain::{OrgId, RunId, UnixMicros};
use tokio::sync::{Notify, futures::Notified};

pub use gathered::{Gathered, Rung};

/// What somebody listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bell {
    /// What is to be executed for an org.
    Queue(OrgId),
    /// What the agents that serve an org are to be told.
    Agents(OrgId),
    /// A run, its log and its events.
    Run(RunId),
}

impl fmt::Display for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(org) => write!(f, "queue={org}"),
            Self::Agents(org) => write!(f, "agents={org}"),
            Self::Run(run) => write!(f, "run={run}"),
        }
    }
}

/// No bell has that name.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownBell;

impl FromStr for Bell {
    type Err = UnknownBell;

    fn from_str(text: &str) -> Result<Self, UnknownBell> {
        let (kind, id) = text.split_once('=').ok_or(UnknownBell)?;
        let org = || id.parse().map_err(|_| UnknownBell);
        match kind {
            "queue" => org().map(Self::Queue),
            "agents" => org().map(Self::Agents),
            "run" => id.parse().map(Self::Run).map_err(|_| UnknownBell),
            _ => Err(UnknownBell),
        }
    }
}

/// The bells of one server.
#[derive(Debug, Default)]
pub struct Wakers {
    bells: Arc<Bells>,
    /// Whether there may be others who are to hear what is rung here.
    is_shared: AtomicBool,
    /// What they have not been told yet.
    untold: Gathered,
    seal: Notify,
    overdue: Notify,
    /// When overdue runs are looked for next.
    overdue_at: AtomicI64,
}

impl Wakers {
    /// Listens to what is to be executed for an org.
    pub fn listen_queue(&self, org: OrgId) -> Listener {
        Bells::listen(&self.bells, Bell::Queue(org))
    }

    /// Listens to what the agents that serve an org are to be told.
    pub fn listen_agents(&self, org: OrgId) -> Listener {
        Bells::listen(&self.bells, Bell::Agents(org))
    }

    /// Listens to what concerns a run.
    pub fn listen_run(&self, run: RunId) -> Listener {
        Bells::listen(&self.bells, Bell::Run(run))
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
        self.ring(Bell::Queue(org));
    }

    /// Says that an agent that serves an org is to be told something.
    pub fn ring_agents(&self, org: OrgId) {
        self.ring(Bell::Agents(org));
    }

    /// Says that a run, its log or its events changed.
    pub fn ring_run(&self, run: RunId) {
        self.ring(Bell::Run(run));
    }

    fn ring(&self, bell: Bell) {
        self.bells.ring(&bell);
        if self.is_shared.load(Ordering::Relaxed) {
            self.untold.add([bell]);
        }
    }

    /// From now on others are to hear what is rung here.
    pub fn share(&self) {
        self.is_shared.store(true, Ordering::Relaxed);
    }

    /// Waits until something was rung here that others are to hear, and takes it.
    pub async fn untold(&self) -> Rung {
        self.untold.take().await
    }

    /// Rings what was rung elsewhere.
    pub fn echo(&self, rung: &Rung) {
        match rung {
            Rung::Some(bells) => bells.iter().for_each(|bell| self.bells.ring(bell)),
            Rung::All => self.bells.ring_all(),
        }
    }
}

#[derive(Debug, Default)]
struct Bells(Mutex<HashMap<Bell, Arc<Rope>>>);

/// By which one bell is rung.
#[derive(Debug, Default)]
struct Rope {
    waiting: Notify,
    /// How often it was rung since somebody listens.
    rung: AtomicU64,
}

impl Rope {
    fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.waiting.notify_waiters();
    }
}

impl Bells {
    fn listen(bells: &Arc<Self>, key: Bell) -> Listener {
        let mut map = bells.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rope = Arc::clone(map.entry(key).or_default());
        Listener { key, rope, bells: Arc::clone(bells) }
    }

    fn ring(&self, key: &Bell) {
        if let Some(rope) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            rope.ring();
        }
    }

    fn ring_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|rope| rope.ring());
    }
}

/// Hears one bell until it is dropped.
#[derive(Debug)]
pub struct Listener {
    key: Bell,
    rope: Arc<Rope>,
    bells: Arc<Bells>,
}

impl Listener {
    /// A wait that hears every ring from this call on, not only from its first poll on: take it, read, then await it.
    pub fn heard(&self) -> Notified<'_> {
        // `notify_waiters` reaches every `Notified` that was made before it, polled or not.
        self.rope.waiting.notified()
    }

    /// How often it has rung: what was read since it had rung as often may be looked at again.
    pub fn rung(&self) -> u64 {
        self.rope.rung.load(Ordering::SeqCst)
    }

    /// Rings it for all who listen here, and for nobody elsewhere.
    pub fn ring(&self) {
        self.rope.ring();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut map = self.bells.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The map and this listener: nobody else listens, and nobody can begin while the map is locked.
        if Arc::strong_count(&self.rope) == 2 {
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
        assert!(wakers.bells.0.lock().unwrap().is_empty());
    }

    #[test]
    fn others_are_to_hear_what_is_rung_while_it_is_shared() {
        let (wakers, other) = (Wakers::default(), Wakers::default());
        let (org, run) = (OrgId::from_uuid(Uuid::from_u128(1)), RunId::from_uuid(Uuid::from_u128(2)));
        wakers.ring_queue(org);
        wakers.share();
        assert!(wakers.untold().now_or_never().is_none(), "there was nobody else");
        wakers.ring_queue(org);
        wakers.ring_run(run);
        let rung = wakers.untold().now_or_never().unwrap();
        assert_eq!(rung, Rung::Some([Bell::Queue(org), Bell::Run(run)].into()));
        other.share();
        for rung in [rung, Rung::All] {
            let listener = other.listen_queue(org);
            let heard = listener.heard();
            other.echo(&rung);
            assert!(heard.now_or_never().is_some());
        }
        assert!(other.untold().now_or_never().is_none(), "what was rung elsewhere is not told again");
    }

    #[test]
    fn names_of_bells_come_back() {
        let (org, run) = (OrgId::from_uuid(Uuid::from_u128(1)), RunId::from_uuid(Uuid::from_u128(2)));
        for bell in [Bell::Queue(org), Bell::Agents(org), Bell::Run(run)] {
            assert_eq!(bell.to_string().parse(), Ok(bell));
        }
        for text in ["", "queue", "queue=", "run=org_1", "door=x", "run=run_00000000000000000000000002 "] {
            assert_eq!(text.parse::<Bell>(), Err(UnknownBell), "{text}");
        }
    }
}
