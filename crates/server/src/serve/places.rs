//! Places for connections, and who may have how many.
//!
//! A connection is a stranger until a request on it bears a token that works; from then on it counts for whoever asked on it
//! last. What always holds: strangers keep nobody out, because some places are never taken by anybody else and the oldest
//! makes room for the next one; and whoever has nothing gets in as long as somebody has two, because where there are no
//! more places one of theirs is asked to leave: one that is idle, else one that waits, else one at work, the longest first.
//! One that was asked to leave ends in order, and is cut where that takes longer than [`LEAVE_WITHIN`]. An agent for which
//! nobody can leave is heard all the same, as a stranger.
//!
//! Left out: memory ([`crate::account`]).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holm_domain::ErrorCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{config::ServeLimits, gate::Party, problem::Failure};

/// How long one that was asked to leave may take to end in order.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// One of as many places, and at least one, is only for strangers and for those who were asked to leave.
const NEWCOMERS_SHARE: usize = 16;
/// How long a stranger has at least until it makes room.
const GRACE: Duration = Duration::from_secs(1);
/// How long one that was cut may take to be gone before another is looked for.
const CUT_PAUSE: Duration = Duration::from_millis(1);

/// All places of a server.
#[derive(Debug)]
pub struct Places {
    limits: ServeLimits,
    free: Arc<Semaphore>,
    open: Mutex<Open>,
}

impl Places {
    /// As many as the limits say.
    pub fn new(limits: &ServeLimits) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(limits.connections_max));
        Arc::new(Self { limits: *limits, free, open: Mutex::default() })
    }

    /// Waits for a free place, and has a stranger make room if there is none.
    pub async fn free(&self) -> io::Result<OwnedSemaphorePermit> {
        loop {
            tokio::select! {
                biased;
                free = Arc::clone(&self.free).acquire_owned() => return free.map_err(io::Error::other),
                () = self.make_room() => {}
            }
        }
    }

    /// Cuts the oldest stranger, once it has had its time. Where there is none, some were asked to leave.
    async fn make_room(&self) {
        let oldest = self.open().strangers.first_key_value().map(|(number, (since, _))| (*number, *since));
        let Some((number, since)) = oldest else { return sleep(GRACE).await };
        sleep_until(since + GRACE).await;
        let cut = self.open().strangers.remove(&number);
        if let Some((_, cut)) = cut {
            tracing::debug!("a connection on which no token has come makes room for another");
            cut.cancel();
        }
        sleep(CUT_PAUSE).await;
    }

    /// Gives a place to a new connection.
    pub fn seat(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Arc<Seat> {
        let (cut, leave) = (CancellationToken::new(), CancellationToken::new());
        let mut open = self.open();
        let number = open.turn();
        open.strangers.insert(number, (Instant::now(), cut.clone()));
        drop(open);
        Arc::new(Seat { places: Arc::clone(self), number, requests: Mutex::default(), cut, leave, _place: place })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is done on a connection; what can better be spared is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nothing.
    Idle,
    /// A stream or a poll, which end in order at any time.
    Waits,
    /// A request that takes its time.
    Works,
}

/// Since when a connection is at its stage, as a number that grows, and its own number.
type Spot = (Stage, u64, u64);

/// Where one more is to go.
enum Room {
    /// Anywhere.
    Free,
    /// In the place of this one, which is to leave.
    Of(u64),
    /// Nowhere: what comes on it is heard, and it makes room as a stranger does.
    None,
}

#[derive(Debug)]
struct Known {
    party: Party,
    spot: Spot,
    leave: CancellationToken,
}

#[derive(Debug, Default)]
struct Open {
    strangers: BTreeMap<u64, (Instant, CancellationToken)>,
    known: HashMap<u64, Known>,
    /// The connections of each party that has any, the one first that can best be spared.
    parties: HashMap<Party, BTreeSet<Spot>>,
    members: usize,
    turns: u64,
}

impl Open {
    fn turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    fn enter(&mut self, number: u64, known: Known) {
        self.members += usize::from(!known.party.is_agent);
        self.parties.entry(known.party).or_default().insert(known.spot);
        self.known.insert(number, known);
    }

    fn leave(&mut self, number: u64) -> Option<Known> {
        let left = self.known.remove(&number)?;
        self.members -= usize::from(!left.party.is_agent);
        if let Some(spots) = self.parties.get_mut(&left.party) {
            spots.remove(&left.spot);
            if spots.is_empty() {
                self.parties.remove(&left.party);
            }
        }
        Some(left)
    }

    /// The connection is at `stage` from now on; one that is not known has none.
    fn reach(&mut self, number: u64, stage: Stage) {
        let turn = self.turn();
        if let Some(known) = self.leave(number) {
            self.enter(number, Known { spot: (stage, turn, number), ..known });
        }
    }

    fn count(&self, party: Party) -> usize {
        self.parties.get(&party).map_or(0, BTreeSet::len)
    }

    /// Which place there is for one more of `party`, if that is within the limits.
    fn room(&self, limits: &ServeLimits, party: Party) -> Result<Room, Failure> {
        let of_org = self.count(party) + self.count(party.other());
        let org_max = limits.connections_per_org_max + limits.connections_for_agents;
        let too_many = |whose: &str, count, max, way_out: &str| {
            let detail = format!("{whose} {count} connections open and may have {max}; {way_out}");
            Err(Failure::new(ErrorCode::TooMany, detail))
        };
        if of_org >= org_max {
            return too_many("the org has", of_org, org_max, "close some, or try again");
        }
        let (count, max) = (self.count(party), limits.connections_per_org_max);
        if !party.is_agent && count >= max {
            return too_many("the org has", count, max, "close some, or try again");
        }
        let newcomers = limits.connections_max.div_ceil(NEWCOMERS_SHARE);
        let all_max = limits.connections_max.saturating_sub(newcomers).max(1);
        let members_max = limits.connections_max.saturating_sub(limits.connections_for_agents).min(all_max);
        let (members_full, full) = (!party.is_agent && self.members >= members_max, self.known.len() >= all_max);
        if !members_full && !full {
            return Ok(Room::Free);
        }
        match self.spared(party, members_full) {
            Some(number) => Ok(Room::Of(number)),
            None if party.is_agent => Ok(Room::None),
            None if members_full => too_many("all orgs together have", self.members, members_max, "try again"),
            None => too_many("all orgs together have", self.known.len(), all_max, "try again"),
        }
    }

    /// What each party could spare best, and how many it has.
    fn offers(&self) -> impl Iterator<Item = (Party, Spot, usize)> + '_ {
        self.parties.iter().filter_map(|(party, spots)| Some((*party, *spots.first()?, spots.len())))
    }

    /// The connection that is to leave for one of `party`: an idle one of its own or of a party that has more, else one of a
    /// party that has more all the same once `party` has one more; of those of whoever has the most.
    fn spared(&self, party: Party, of_members: bool) -> Option<u64> {
        let own = self.count(party);
        let offers = self.offers().filter(|(party, ..)| !(of_members && party.is_agent));
        let fair = offers.filter(|(holder, (stage, ..), count)| match stage {
            Stage::Idle => *count > own || *holder == party,
            Stage::Waits | Stage::Works => *count > own + 1,
        });
        let best = fair.max_by_key(|(_, (stage, since, _), count)| (*stage == Stage::Idle, *count, Reverse(*since)));
        best.map(|(_, (.., number), _)| number)
    }
}

/// A request that is under way on a connection, until its answer is sent.
#[derive(Debug)]
pub struct UnderWay(Arc<Seat>);

impl UnderWay {
    /// The request waits from now on, and is to end in order once this is cancelled.
    pub fn wait(&self) -> CancellationToken {
        self.0.places.open().reach(self.0.number, Stage::Waits);
        self.0.leave.clone()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        *requests -= 1;
        if *requests == 0 {
            self.0.places.open().reach(self.0.number, Stage::Idle);
        }
    }
}

/// The place of one connection.
#[derive(Debug)]
pub struct Seat {
    places: Arc<Places>,
    number: u64,
    requests: Mutex<usize>,
    /// Cancelled when the connection is to be gone at once.
    pub cut: CancellationToken,
    /// Cancelled when it is to end in order.
    pub leave: CancellationToken,
    // Given back when the connection has ended.
    _place: OwnedSemaphorePermit,
}

impl Seat {
    fn requests(&self) -> MutexGuard<'_, usize> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        let mut requests = self.requests();
        *requests += 1;
        self.places.open().reach(self.number, Stage::Works);
        drop(requests);
        UnderWay(Arc::clone(self))
    }

    /// Counts the connection for `party` from now on, and no more for whom it was counted before, or answers `too_many`. What
    /// comes on one that is to leave is the last.
    pub fn take(&self, party: Party) -> Result<(), Failure> {
        let mut open = self.places.open();
        if self.leave.is_cancelled() || open.known.get(&self.number).is_some_and(|known| known.party == party) {
            return Ok(());
        }
        let before = open.leave(self.number);
        let spared = match open.room(&self.places.limits, party) {
            Ok(Room::Free) => None,
            Ok(Room::Of(number)) => Some(number),
            Ok(Room::None) => {
                open.strangers.entry(self.number).or_insert_with(|| (Instant::now(), self.cut.clone()));
                return Ok(());
            }
            Err(refused) => {
                if let Some(known) = before {
                    open.enter(self.number, known);
                }
                return Err(refused);
            }
        };
        if let Some(known) = spared.and_then(|number| open.leave(number)) {
            tracing::debug!("a connection is asked to leave, so that another has its place");
            known.leave.cancel();
        }
        let spot = (Stage::Works, open.turn(), self.number);
        open.enter(self.number, Known { party, spot, leave: self.leave.clone() });
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

#[cfg(test)]
mod tests {
    use holm_domain::OrgId;
    use uuid::Uuid;

    use super::*;

    fn open(counts: &[(u128, usize)], stage: Stage) -> Open {
        let mut open = Open::default();
        for (org, count) in counts {
            for _ in 0..*count {
                let number = open.turn();
                let known =
                    Known { party: member(*org), spot: (stage, number, number), leave: CancellationToken::new() };
                open.enter(number, known);
            }
        }
        open
    }

    fn member(org: u128) -> Party {
        Party { org: OrgId::from_uuid(Uuid::from_u128(org)), is_agent: false }
    }

    #[test]
    fn who_is_spared_is_found_among_as_many_as_there_are_parties() {
        let mut open = open(&[(1, 2_000), (2, 2_001)], Stage::Waits);
        assert_eq!(open.offers().count(), 2);
        assert_eq!(open.spared(member(3), true), Some(2_001), "the first of whoever has the most");
        open.reach(2_001, Stage::Works);
        assert_eq!(open.spared(member(3), true), Some(2_002), "who is at work comes last");
        open.reach(7, Stage::Idle);
        assert_eq!(open.spared(member(1), true), Some(7), "and who is idle first");
        assert_eq!(open.spared(member(2), true), None, "of who has fewer nobody is spared");
    }

    #[test]
    fn who_has_nothing_gets_in_as_long_as_somebody_has_two() {
        assert_eq!(open(&[(1, 1), (2, 2)], Stage::Works).spared(member(3), true), Some(2));
        assert_eq!(open(&[(1, 1), (2, 1)], Stage::Works).spared(member(3), true), None);
    }
}
