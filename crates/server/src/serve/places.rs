//! Places for connections, and who may have how many.
//!
//! A connection is a stranger until a request on it bears a token that works; from then on it counts for whoever asked on it
//! last. What always holds: strangers keep nobody out, because the oldest makes room for the next one; some places are
//! never taken by anybody but strangers and agents, so an agent always comes to be heard, whatever the others do.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::ServeLimits,
    gate::{Gate, Gates, Party, Pass},
    problem::Failure,
};

/// How long a stranger has at least to say who it is.
const STRANGER_GRACE: Duration = Duration::from_secs(1);
/// How long one that was cut may take to be gone before another is looked for.
const CUT_PAUSE: Duration = Duration::from_millis(1);

/// All places of a server.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    known: Gates,
    strangers: Mutex<BTreeMap<u64, Stranger>>,
    arrivals: AtomicU64,
}

#[derive(Debug, Clone)]
struct Stranger {
    since: Instant,
    cut: CancellationToken,
}

impl Places {
    /// As many as the limits say.
    pub fn new(limits: &ServeLimits) -> Arc<Self> {
        let but_a_share = limits.connections_max.saturating_sub(limits.connections_for_agents);
        let known = Gates {
            // What is left to agents is not for those of one org alone.
            agents: Gate::new("connections", but_a_share),
            others: Gate::bounded("connections", limits.connections_per_org_max, but_a_share),
        };
        let free = Arc::new(Semaphore::new(limits.connections_max));
        Arc::new(Self { free, known, strangers: Mutex::default(), arrivals: AtomicU64::default() })
    }

    /// Waits for a free place; what has none stays in the kernel's queue.
    pub async fn free(&self) -> io::Result<OwnedSemaphorePermit> {
        loop {
            tokio::select! {
                biased;
                free = Arc::clone(&self.free).acquire_owned() => return free.map_err(io::Error::other),
                () = self.make_room() => {}
            }
        }
    }

    /// Cuts the oldest stranger, once it has had its time.
    async fn make_room(&self) {
        let oldest = self.strangers().first_key_value().map(|(number, stranger)| (*number, stranger.clone()));
        let Some((number, oldest)) = oldest else { return sleep(STRANGER_GRACE).await };
        sleep_until(oldest.since + STRANGER_GRACE).await;
        if self.strangers().remove(&number).is_some() {
            tracing::debug!("a connection that has not said whose it is makes room for another");
            oldest.cut.cancel();
        }
        sleep(CUT_PAUSE).await;
    }

    /// Gives a place to a new connection.
    pub fn seat(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Arc<Seat> {
        let number = self.arrivals.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        self.strangers().insert(number, Stranger { since: Instant::now(), cut: cut.clone() });
        Arc::new(Seat { places: Arc::clone(self), number, cut, known: Mutex::default(), _place: place })
    }

    fn strangers(&self) -> MutexGuard<'_, BTreeMap<u64, Stranger>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection.
#[derive(Debug)]
pub struct Seat {
    places: Arc<Places>,
    number: u64,
    /// Cancelled when the connection is to make room.
    pub cut: CancellationToken,
    known: Mutex<Option<(Party, Pass)>>,
    // Given back when the connection has ended.
    _place: OwnedSemaphorePermit,
}

impl Seat {
    /// Counts the connection for `party` from now on, or answers `too_many`.
    pub fn take(&self, party: Party) -> Result<(), Failure> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|(holder, _)| *holder == party) {
            return Ok(());
        }
        *known = Some((party, self.places.known.enter(party, 1)?));
        drop(known);
        self.places.strangers().remove(&self.number);
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.places.strangers().remove(&self.number);
    }
}
