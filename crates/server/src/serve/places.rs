//! Places for connections, and who may have how many.
//!
//! A connection is a stranger until a request on it bears a token that works; from then on it counts for whoever asked on it
//! last. What always holds: strangers keep nobody out, because the oldest makes room for the next one; some places are
//! never taken by anybody but strangers and agents; one org has clearly fewer than all; and where only known ones are left,
//! one on which nothing is asked makes room, of whoever has the most.
//!
//! Left out: what several orgs together keep busy. A connection on which a request is under way makes no room.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holm_domain::ErrorCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{config::ServeLimits, gate::Party, problem::Failure};

/// How long a connection has at least, from its beginning or its last answer, until it makes room.
const GRACE: Duration = Duration::from_secs(1);
/// How long one that was cut may take to be gone before another is looked for.
const CUT_PAUSE: Duration = Duration::from_millis(1);

/// All places of a server.
#[derive(Debug)]
pub struct Places {
    limits: ServeLimits,
    free: Arc<Semaphore>,
    open: Mutex<Open>,
    arrivals: AtomicU64,
}

impl Places {
    /// As many as the limits say.
    pub fn new(limits: &ServeLimits) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(limits.connections_max));
        Arc::new(Self { limits: *limits, free, open: Mutex::default(), arrivals: AtomicU64::default() })
    }

    /// Waits for a free place, and has somebody make room if there is none.
    pub async fn free(&self) -> io::Result<OwnedSemaphorePermit> {
        loop {
            tokio::select! {
                biased;
                free = Arc::clone(&self.free).acquire_owned() => return free.map_err(io::Error::other),
                () = self.make_room() => {}
            }
        }
    }

    /// Cuts the connection that can best be spared, once it has had its time.
    async fn make_room(&self) {
        let Some((number, since)) = self.open().spared() else { return sleep(GRACE).await };
        sleep_until(since + GRACE).await;
        let cut = self.open().give_up(number, since);
        if let Some(line) = cut {
            tracing::debug!("a connection on which nothing is asked makes room for another");
            line.cut.cancel();
        }
        sleep(CUT_PAUSE).await;
    }

    /// Gives a place to a new connection.
    pub fn seat(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Arc<Seat> {
        let number = self.arrivals.fetch_add(1, Ordering::Relaxed);
        let quiet = Mutex::new(Quiet { requests: 0, since: Instant::now() });
        let line = Arc::new(Line { cut: CancellationToken::new(), quiet });
        self.open().strangers.insert(number, (Instant::now(), Arc::clone(&line)));
        Arc::new(Seat { places: Arc::clone(self), number, line, _place: place })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Open {
    strangers: BTreeMap<u64, (Instant, Arc<Line>)>,
    known: HashMap<u64, (Party, Arc<Line>)>,
    counts: HashMap<Party, usize>,
}

impl Open {
    fn enter(&mut self, number: u64, party: Party, line: &Arc<Line>) {
        *self.counts.entry(party).or_default() += 1;
        self.known.insert(number, (party, Arc::clone(line)));
    }

    fn leave(&mut self, number: u64) -> Option<(Party, Arc<Line>)> {
        let left = self.known.remove(&number)?;
        match self.counts.get_mut(&left.0) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.counts.remove(&left.0)),
        }
        Some(left)
    }

    fn count(&self, party: Party) -> usize {
        self.counts.get(&party).copied().unwrap_or(0)
    }

    /// Whether one more of `party` is within the limits.
    fn check(&self, limits: &ServeLimits, party: Party) -> Result<(), Failure> {
        let of_org = self.count(party) + self.count(party.other());
        let org_max = limits.connections_per_org_max + limits.connections_for_agents;
        let too_many = |whose: &str, count, max, way_out: &str| {
            let detail = format!("{whose} {count} connections open and may have {max}; {way_out}");
            Err(Failure::new(ErrorCode::TooMany, detail))
        };
        if of_org >= org_max {
            return too_many("the org has", of_org, org_max, "close some, or try again");
        }
        if party.is_agent {
            return Ok(());
        }
        let (count, max) = (self.count(party), limits.connections_per_org_max);
        if count >= max {
            return too_many("the org has", count, max, "close some, or try again");
        }
        let others: usize = self.counts.iter().filter(|(party, _)| !party.is_agent).map(|(_, count)| count).sum();
        let others_max = limits.connections_max.saturating_sub(limits.connections_for_agents);
        if others >= others_max {
            return too_many("all orgs together have", others, others_max, "try again");
        }
        Ok(())
    }

    /// The connection that can best be spared, and since when it is what it is: the oldest stranger, else the one that has
    /// been idle for longest, of the party that has the most.
    fn spared(&self) -> Option<(u64, Instant)> {
        if let Some((number, (since, _))) = self.strangers.first_key_value() {
            return Some((*number, *since));
        }
        let idle = self.known.iter().filter_map(|(number, (party, line))| Some((*number, *party, line.idle_since()?)));
        let longest = idle.max_by_key(|(_, party, since)| (self.count(*party), Reverse(*since)));
        longest.map(|(number, _, since)| (number, since))
    }

    /// Counts the connection no more, if it is still what it was `since` then.
    fn give_up(&mut self, number: u64, since: Instant) -> Option<Arc<Line>> {
        if let Some((_, line)) = self.strangers.remove(&number) {
            return Some(line);
        }
        self.known.get(&number).filter(|(_, line)| line.idle_since() == Some(since))?;
        self.leave(number).map(|(_, line)| line)
    }
}

/// What is seen of a connection from outside.
#[derive(Debug)]
struct Line {
    cut: CancellationToken,
    quiet: Mutex<Quiet>,
}

#[derive(Debug)]
struct Quiet {
    requests: usize,
    since: Instant,
}

impl Line {
    fn quiet(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle_since(&self) -> Option<Instant> {
        let quiet = self.quiet();
        (quiet.requests == 0).then_some(quiet.since)
    }
}

/// A request that is under way on a connection, until its answer is sent.
#[derive(Debug)]
pub struct UnderWay(Arc<Line>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut quiet = self.0.quiet();
        quiet.requests -= 1;
        quiet.since = Instant::now();
    }
}

/// The place of one connection.
#[derive(Debug)]
pub struct Seat {
    places: Arc<Places>,
    number: u64,
    line: Arc<Line>,
    // Given back when the connection has ended.
    _place: OwnedSemaphorePermit,
}

impl Seat {
    /// Cancelled when the connection is to make room.
    pub fn cut(&self) -> CancellationToken {
        self.line.cut.clone()
    }

    /// Begins a request.
    pub fn begin(&self) -> UnderWay {
        self.line.quiet().requests += 1;
        UnderWay(Arc::clone(&self.line))
    }

    /// Counts the connection for `party` from now on, and no more for whom it was counted before, or answers `too_many`.
    pub fn take(&self, party: Party) -> Result<(), Failure> {
        let mut open = self.places.open();
        if open.known.get(&self.number).is_some_and(|(holder, _)| *holder == party) {
            return Ok(());
        }
        let before = open.leave(self.number);
        if let Err(refused) = open.check(&self.places.limits, party) {
            if let Some((holder, line)) = before {
                open.enter(self.number, holder, &line);
            }
            return Err(refused);
        }
        open.enter(self.number, party, &self.line);
        open.strangers.remove(&self.number);
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.places.open();
        open.strangers.remove(&self.number);
        open.leave(self.number);
    }
}
