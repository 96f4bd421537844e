//! Whose runs a host executes: those of its own org and, where an admin of the default org has put it into a pool, those of the
//! orgs with which that pool is shared; and whose turn it is.
//!
//! What always holds: of the orgs that have something for a host, the one comes first that has the fewest runs on the hosts of
//! the pool, and of those that have as many the one that waits longest for a grant. How many they have is counted in the
//! store once a second; in between a server knows what it grants itself, and what a host has whose poll it looks at. What is
//! known goes on to be used while it is read anew, and while it cannot be read, for at most [`KNOWN_MAX`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use holm_domain::{
    AgentId, OrgId,
    host::Host,
    schedule::{Share, in_turn},
};
use holm_store::{Error, PoolLeases};
use tokio::time::Instant;

use crate::{app::App, auth::bootstrap::DEFAULT_ORG};

/// After how long a pool is read anew.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// For how long at most what is known is used.
const KNOWN_MAX: Duration = Duration::from_secs(10);

/// How many pools are remembered before those are forgotten of which no host polls.
const REMEMBERED_MAX: usize = 256;

/// What is told where the read failed for which one waited.
const OTHER_FAILED: &str = "a read that others waited for as well has failed";

/// What one server knows of pools.
#[derive(Debug, Default)]
pub struct Pools {
    default: OnceLock<OrgId>,
    known: Mutex<HashMap<String, Arc<Pool>>>,
    /// Of the hosts that serve several orgs, which those were when they polled last.
    expected: Mutex<HashMap<AgentId, Arc<[OrgId]>>>,
}

#[derive(Debug, Default)]
struct Pool {
    /// Held by who reads it.
    reading: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When it was read last; nothing before that, and once it is not to be relied on.
    read_at: Option<Instant>,
    failed_at: Option<Instant>,
    /// How often what was read before was not to be relied on any more.
    forgotten: u64,
    /// The orgs that it serves, its owner first.
    orgs: Arc<[OrgId]>,
    /// How many runs of each org each host has, and since when that is known.
    hosts: HashMap<AgentId, (Instant, BTreeMap<OrgId, u64>)>,
    /// The same of all hosts together, and the numbers of the last grants.
    shares: BTreeMap<OrgId, Share>,
    grants: u64,
}

impl State {
    /// The orgs that it serves, as they were read no longer ago than that.
    fn read_within(&self, age: Duration) -> Option<Arc<[OrgId]>> {
        self.read_at.is_some_and(|at| at.elapsed() < age).then(|| Arc::clone(&self.orgs))
    }

    /// What was read at `read_at`; of what a host has, what is known since then counts. The order of grants goes on.
    fn set(&mut self, read_at: Instant, orgs: Arc<[OrgId]>, leases: &[PoolLeases]) {
        self.hosts.retain(|_, (known_at, _)| *known_at >= read_at);
        let mut counts: HashMap<AgentId, BTreeMap<OrgId, u64>> = HashMap::new();
        for PoolLeases { agent, org, runs } in leases {
            counts.entry(*agent).or_default().insert(*org, *runs);
        }
        for (agent, held) in counts {
            self.hosts.entry(agent).or_insert((read_at, held));
        }
        self.shares.retain(|org, _| orgs.contains(org));
        self.shares.values_mut().for_each(|share| share.running = 0);
        for (org, runs) in self.hosts.values().flat_map(|(_, held)| held) {
            self.shares.entry(*org).or_default().running += runs;
        }
        (self.read_at, self.orgs) = (Some(read_at), orgs);
    }

    /// What a host has, as it was seen at that time.
    fn set_host(&mut self, agent: AgentId, seen_at: Instant, held: BTreeMap<OrgId, u64>) {
        for (org, runs) in &held {
            self.shares.entry(*org).or_default().running += runs;
        }
        for (org, runs) in self.hosts.insert(agent, (seen_at, held)).map(|(_, before)| before).unwrap_or_default() {
            let share = self.shares.entry(org).or_default();
            share.running = share.running.saturating_sub(runs);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Reads whom it serves and what they have there. Where that takes long or fails, what is known will do for a while.
    async fn served(&self, app: &App, owner: OrgId, name: &str) -> holm_store::Result<Arc<[OrgId]>> {
        let asked_at = Instant::now();
        if let Some(orgs) = locked(&self.state).read_within(KNOWN_FOR) {
            return Ok(orgs);
        }
        let known = || locked(&self.state).read_within(KNOWN_MAX);
        let _reading = match (self.reading.try_lock(), known()) {
            (Ok(reading), _) => reading,
            (Err(_), Some(known)) => return Ok(known),
            (Err(_), None) => self.reading.lock().await,
        };
        if let Some(orgs) = locked(&self.state).read_within(KNOWN_FOR) {
            return Ok(orgs);
        }
        if locked(&self.state).failed_at.is_some_and(|at| at >= asked_at) {
            return Err(Error::unavailable("read a pool", OTHER_FAILED));
        }
        let read = self.read(app, owner, name).await;
        match (read, known()) {
            (Err(error), Some(known)) => {
                tracing::warn!(pool = name, %error, "whom a pool serves is what was read before");
                Ok(known)
            }
            (Err(error), None) if error.is_damage() => {
                tracing::error!(pool = name, %error, "whom a pool serves cannot be read; its hosts serve their own org");
                Ok(Arc::new([owner]))
            }
            (read, _) => read.inspect_err(|_| locked(&self.state).failed_at = Some(Instant::now())),
        }
    }

    async fn read(&self, app: &App, owner: OrgId, name: &str) -> holm_store::Result<Arc<[OrgId]>> {
        loop {
            let (read_at, forgotten) = (Instant::now(), locked(&self.state).forgotten);
            let guests = app.store.pool_orgs(name).await?.into_iter().filter(|org| *org != owner);
            let orgs: Arc<[OrgId]> = std::iter::once(owner).chain(guests).collect();
            let leases = app.store.pool_leases(owner, name).await?;
            let mut state = locked(&self.state);
            // It may have changed between the read and now.
            if state.forgotten == forgotten {
                state.set(read_at, Arc::clone(&orgs), &leases);
                return Ok(orgs);
            }
        }
    }
}

impl Pools {
    /// The org whose admins rule the server, and whose hosts may serve others; nothing before it was made.
    pub async fn default_org(&self, app: &App) -> holm_store::Result<Option<OrgId>> {
        if let Some(org) = self.default.get() {
            return Ok(Some(*org));
        }
        let found = app.store.org_by_name(DEFAULT_ORG).await?.map(|org| org.id);
        Ok(found.map(|org| *self.default.get_or_init(|| org)))
    }

    /// The orgs whose runs `host` executes, its own first.
    pub async fn served(&self, app: &App, host: &Host) -> holm_store::Result<Arc<[OrgId]>> {
        let Some(name) = &host.pool else { return Ok(Arc::new([host.org])) };
        self.known(name).served(app, host.org, name).await
    }

    /// The orgs that the host of that agent serves, as far as is known: its own if nothing is.
    pub fn expected(&self, agent: AgentId, own: OrgId) -> Arc<[OrgId]> {
        let known = locked(&self.expected).get(&agent).cloned();
        known.filter(|orgs| orgs[0] == own).unwrap_or_else(|| Arc::new([own]))
    }

    /// The host of that agent serves these orgs.
    pub fn expect(&self, agent: AgentId, orgs: &Arc<[OrgId]>) {
        let mut expected = locked(&self.expected);
        if orgs.len() > 1 {
            expected.insert(agent, Arc::clone(orgs));
        } else {
            expected.remove(&agent);
        }
    }

    /// A host has so many runs of each org, as it was seen now.
    pub fn seen(&self, host: &Host, held: impl Iterator<Item = OrgId>) {
        let Some(name) = &host.pool else { return };
        let mut counts = BTreeMap::new();
        held.for_each(|org| *counts.entry(org).or_default() += 1);
        locked(&self.known(name).state).set_host(host.id, Instant::now(), counts);
    }

    /// Which of `orgs`, by its place among them, comes first on `host`; nothing if there are none.
    pub fn next(&self, host: &Host, orgs: &[OrgId]) -> Option<usize> {
        let Some(name) = host.pool.as_ref().filter(|_| orgs.len() > 1) else {
            return (!orgs.is_empty()).then_some(0);
        };
        let pool = self.known(name);
        let state = locked(&pool.state);
        in_turn(orgs.iter().map(|org| state.shares.get(org).copied().unwrap_or_default()))
    }

    /// Whether it is the turn of `org` before that of `other` on `host`, also where they have as much.
    pub fn is_before(&self, host: &Host, org: OrgId, other: OrgId) -> bool {
        let Some(name) = &host.pool else { return false };
        // As a look goes through them.
        let orgs = Arc::clone(&locked(&self.known(name).state).orgs);
        let place = |wanted| orgs.iter().position(|org| *org == wanted);
        if place(org) < place(other) {
            self.next(host, &[org, other]) == Some(0)
        } else {
            self.next(host, &[other, org]) == Some(1)
        }
    }

    /// A run of `org` was granted on `host`.
    pub fn granted(&self, host: &Host, org: OrgId) {
        let Some(name) = &host.pool else { return };
        let pool = self.known(name);
        let mut state = locked(&pool.state);
        state.grants += 1;
        let now = Instant::now();
        let (known_at, held) = state.hosts.entry(host.id).or_insert_with(|| (now, BTreeMap::new()));
        *known_at = now;
        *held.entry(org).or_default() += 1;
        let granted = state.grants;
        let share = state.shares.entry(org).or_default();
        *share = Share { running: share.running + 1, granted };
    }

    /// Whom a pool serves has changed, or which hosts are in it: it is read anew before anything more is granted there by this
    /// server. Others know a second later.
    pub fn forget(&self, name: &str) {
        let pool = self.known(name);
        let mut state = locked(&pool.state);
        state.read_at = None;
        state.forgotten += 1;
    }

    fn known(&self, name: &str) -> Arc<Pool> {
        let mut known = locked(&self.known);
        if known.len() >= REMEMBERED_MAX && !known.contains_key(name) {
            known.retain(|_, pool| Arc::strong_count(pool) > 1 || locked(&pool.state).read_within(KNOWN_MAX).is_some());
        }
        Arc::clone(known.entry(name.to_owned()).or_default())
    }
}
