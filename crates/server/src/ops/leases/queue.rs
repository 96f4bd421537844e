//! What the polls of one server share of the queue of an org: the page that was read last, and which of its runs one of them
//! is granting. So many polls cost one look at the queue and not one each, and no two of them try for the same run.
//!
//! What always holds: a poll that waits has looked at the queue, with a look that began after it had begun to listen, and
//! looks again once there is news since then: something was rung for the queue, or a run that somebody tried for is to be had
//! after all. Of all who wait one watches; it is heard by the next as soon as the one before has gone, or can use nothing of
//! what there is. A page is looked at again only as long as nothing was rung for the queue since the look for it began, and
//! for [`REUSED_FOR`]: on a store that others write to, a run may be passed over for so long that was put ahead of others
//! there. What is shared spares work and grants nothing: the compare-and-swap of the store does, here and between servers.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use holm_domain::{
    OrgId, RunId, UnixMicros,
    host::{Capacity, Host},
    run::Run,
    schedule::{self, Match},
};
use holm_store::{DuePlace, Error, RUNS_PAGE_MAX};
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::readable;
use crate::{
    app::App,
    config::{QUEUE_DAMAGED_MAX, QUEUE_LOOK_MAX},
    ops::runs::spec_bytes,
    wakers::{Listener, Wakers},
};

/// How long a page is looked at again.
const REUSED_FOR: Duration = Duration::from_millis(100);

/// How many runs a look sees at first; more, the faster they are granted.
const PORTION_MIN: u32 = 32;

/// How many bytes of what runs are asked to do are kept of a look.
const KEPT_BYTES_MAX: usize = 512 * 1024;

/// How much news there was when somebody began to look, and what hears of more since.
pub(super) type Heard<'a> = (u64, Notified<'a>);

/// What is told where the look failed for which one waited.
const OTHER_FAILED: &str = "a look that others waited for as well has failed";

type Desks = Mutex<HashMap<OrgId, Weak<Desk>>>;

/// The desks of one server: one for each org of which somebody polls.
#[derive(Debug, Default)]
pub struct Queues(Arc<Desks>);

impl Queues {
    /// The desk at which the polls of an org are served.
    pub(super) fn desk(&self, wakers: &Wakers, org: OrgId) -> Arc<Desk> {
        let mut desks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = desks.get(&org).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let desk = Arc::new(Desk {
                org,
                bell: wakers.listen_queue(org),
                state: Mutex::default(),
                looking: tokio::sync::Mutex::default(),
                watching: tokio::sync::Mutex::default(),
                nudged: Notify::new(),
                desks: Arc::clone(&self.0),
            });
            desks.insert(org, Arc::downgrade(&desk));
            desk
        })
    }
}

/// What the polls of one org share.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) org: OrgId,
    /// Rings when there may be more in the queue.
    pub(super) bell: Listener,
    state: Mutex<State>,
    /// Held by who looks at the queue; the others wait for what is seen.
    looking: tokio::sync::Mutex<()>,
    /// Held by the one of all who wait that hears the bell.
    watching: tokio::sync::Mutex<()>,
    /// Heard by who watches, or who does so next.
    nudged: Notify,
    desks: Arc<Desks>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        let mut desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have been made meanwhile.
        if let Entry::Occupied(entry) = desks.entry(self.org)
            && entry.get().strong_count() == 0
        {
            entry.remove();
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// How many looks were begun.
    looks: u64,
    /// The last one that is over.
    last: Option<Look>,
    /// The last one that failed.
    failed: u64,
    /// How often a run was to be had after all that somebody had tried for.
    nudges: u64,
    /// How often the bell had rung, at most, when it was found out that none of the org is granted now.
    held_back_at: Option<u64>,
    /// How many runs it saw at most, without those that were being granted.
    portion: u32,
    /// The runs that are not to be had.
    taken: HashMap<RunId, Taken>,
}

impl State {
    /// How many runs the next look sees: as many more than the last one as that was used, and what others are being granted
    /// hides nothing.
    fn next_limit(&mut self) -> u32 {
        if let Some(seen) = self.last.as_ref().and_then(|look| look.seen.upgrade()) {
            let used = seen.runs.iter().filter(|run| self.taken.contains_key(&run.id)).count();
            self.portion =
                if used * 2 >= seen.runs.len().max(PORTION_MIN as usize) { self.portion * 2 } else { self.portion / 2 };
        }
        self.portion = self.portion.clamp(PORTION_MIN, QUEUE_LOOK_MAX);
        let taken = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        self.portion.saturating_add(taken).min(RUNS_PAGE_MAX)
    }
}

/// Why a run is not to be had.
#[derive(Debug, Clone, Copy)]
enum Taken {
    /// Somebody tries for it.
    Tried,
    /// It was granted, or changed, when so many looks had begun: a later one sees that.
    Gone(u64),
}

/// A look at the head of the queue.
#[derive(Debug, Clone)]
struct Look {
    number: u64,
    /// How often the bell had rung when it began.
    rung: u64,
    begun_at: Instant,
    /// There as long as somebody goes through it.
    seen: Weak<Page>,
    /// The same, if it may be looked at again.
    kept: Option<Arc<Page>>,
}

/// Part of a queue, in its order.
#[derive(Debug)]
struct Page {
    runs: Vec<Arc<Run>>,
    /// The end of the page.
    behind: Option<DuePlace>,
    /// Whether no page follows.
    is_last: bool,
}

impl Page {
    async fn read(app: &App, org: OrgId, after: Option<&DuePlace>, limit: u32) -> holm_store::Result<Arc<Self>> {
        let rows = app.store.run_queue(org, after, limit).await?;
        let is_last = rows.len() < limit as usize;
        let behind = rows.last().map(|last| last.place.clone());
        let runs = readable(app, rows).runs.into_iter().map(Arc::new).collect();
        Ok(Arc::new(Self { runs, behind, is_last }))
    }

    /// Whether it may be kept: what runs are asked to do may be long.
    fn is_small(&self) -> bool {
        let mut bytes = 0;
        self.runs.iter().all(|run| {
            bytes += spec_bytes(run).unwrap_or(KEPT_BYTES_MAX);
            bytes <= KEPT_BYTES_MAX
        })
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen last, if it may be looked at again.
    fn known(&self, app: &App) -> Option<Arc<Page>> {
        let Look { rung, begun_at, kept, .. } = self.state().last.clone()?;
        let is_young = begun_at.elapsed() < REUSED_FOR || !app.store.is_shared();
        kept.filter(|_| is_young && rung == self.bell.rung())
    }

    /// What is known of the head of the queue, if it may be looked at again, else what a look sees that begins from now on; and
    /// whether it is that. Where that look fails, so does everybody who waited for it.
    async fn known_or_seen(&self, app: &App) -> holm_store::Result<(Arc<Page>, bool)> {
        if let Some(seen) = self.known(app) {
            return Ok((seen, false));
        }
        let before = self.state().looks;
        let looking = self.looking.lock().await;
        // Who looked meanwhile may have begun before this was asked for.
        match self.known(app) {
            Some(seen) => Ok((seen, false)),
            None => Ok((self.look_alone(app, looking, before).await?, true)),
        }
    }

    /// The head of the queue, as a look sees it that begins from now on. Those who ask while one goes on share the next.
    async fn look(&self, app: &App) -> holm_store::Result<Arc<Page>> {
        let before = self.state().looks;
        self.look_alone(app, self.looking.lock().await, before).await
    }

    /// What the last look saw if it is a later one than that with the number `before`, else what one sees now.
    async fn look_alone(
        &self,
        app: &App,
        _looking: tokio::sync::MutexGuard<'_, ()>,
        before: u64,
    ) -> holm_store::Result<Arc<Page>> {
        let (number, limit) = {
            let mut state = self.state();
            if state.failed > before {
                return Err(Error::unavailable("look at the queue", OTHER_FAILED));
            }
            if let Some(look) = state.last.as_ref().filter(|look| look.number > before)
                && let Some(seen) = look.seen.upgrade()
            {
                return Ok(seen);
            }
            state.looks += 1;
            (state.looks, state.next_limit())
        };
        let (rung, begun_at) = (self.bell.rung(), Instant::now());
        let seen = match Page::read(app, self.org, None, limit).await {
            Ok(seen) => seen,
            Err(error) => {
                self.state().failed = number;
                return Err(error);
            }
        };
        let kept = seen.is_small().then(|| Arc::clone(&seen));
        let mut state = self.state();
        // Whoever still goes through an earlier page may try for one of these, in vain.
        state.taken.retain(|_, taken| !matches!(taken, Taken::Gone(looks) if *looks < number));
        state.last = Some(Look { number, rung, begun_at, seen: Arc::downgrade(&seen), kept });
        Ok(seen)
    }

    /// Takes the first of `runs` from `at` on that `host` can execute, or for which it is to keep room, and that nobody tries
    /// for, and moves `at` behind it. At most `left` are considered; what others try for is not counted.
    fn take(
        self: &Arc<Self>,
        (runs, at): (&[Arc<Run>], &mut usize),
        left: &mut usize,
        (host, free, now): (&Host, &Capacity, UnixMicros),
    ) -> Step {
        let mut state = self.state();
        while *left > 0
            && let Some(run) = runs.get(*at)
        {
            *at += 1;
            let Entry::Vacant(place) = state.taken.entry(run.id) else { continue };
            *left -= 1;
            let wants_room = match schedule::matches(run, host, free, now) {
                Match::Passes => continue,
                Match::Fits => false,
                // An org has room kept on hosts of another for one run at a time.
                Match::WantsRoom if host.org != self.org && has_other_kept(runs, run.id, now) => continue,
                Match::WantsRoom => true,
                Match::HasRoomKept => return Step::RoomKept,
            };
            place.insert(Taken::Tried);
            let rung = self.bell.rung();
            let (desk, run) = (Arc::clone(self), Arc::clone(run));
            return Step::Offer(Offer { desk, run, wants_room, rung, is_settled: false });
        }
        Step::End
    }

    /// How much there was to hear of: the bell, and what is to be had after all.
    pub(super) fn news(&self) -> u64 {
        self.state().nudges + self.bell.rung()
    }

    /// A run is to be had after all that somebody may have passed over.
    fn nudge(&self) {
        self.state().nudges += 1;
        self.nudged.notify_one();
    }

    /// Waits for a run that `host` can execute, or until the poll has to look itself: then with nothing. `heard` is how much
    /// news there was when it began to look, and `queued` was listening then.
    pub(super) async fn offered(
        self: &Arc<Self>,
        app: &App,
        (mut heard, queued): Heard<'_>,
        (host, free): (&Host, &Capacity),
    ) -> Option<Offer> {
        if host.refusal().is_some() {
            queued.await;
            return None;
        }
        loop {
            let _watch = self.watching.lock().await;
            loop {
                let (rings, nudged) = (self.bell.heard(), self.nudged.notified());
                let news = self.news();
                if news == heard {
                    tokio::select! {
                        biased;
                        () = rings => {}
                        () = nudged => {}
                    }
                    continue;
                }
                heard = news;
                match self.offer(app, host, free).await {
                    // It can use nothing of what there is, and others may.
                    Ok(Offered::Nothing { has_more: true }) => break,
                    Ok(Offered::Nothing { has_more: false }) => {}
                    Ok(Offered::Run(offer)) => return Some(offer),
                    // What is not known has to be read, and the look that follows meets an error as well, and tells.
                    Ok(Offered::MoreToRead) | Err(_) => return None,
                }
            }
        }
    }

    /// The first run of the head of the queue for `host`, as it is seen by a look that began after the bell rang last.
    async fn offer(self: &Arc<Self>, app: &App, host: &Host, free: &Capacity) -> holm_store::Result<Offered> {
        if self.state().held_back_at == Some(self.bell.rung()) {
            return Ok(Offered::Nothing { has_more: false });
        }
        let (seen, _) = self.known_or_seen(app).await?;
        match self.take((&seen.runs, &mut 0), &mut (QUEUE_LOOK_MAX as usize), (host, free, app.now())) {
            Step::Offer(offer) => return Ok(Offered::Run(offer)),
            Step::End if !seen.is_last => return Ok(Offered::MoreToRead),
            Step::End | Step::RoomKept => {}
        }
        let state = self.state();
        Ok(Offered::Nothing { has_more: seen.runs.iter().any(|run| !state.taken.contains_key(&run.id)) })
    }
}

/// Whether a host keeps room for another of `runs` than that one.
fn has_other_kept(runs: &[Arc<Run>], run: RunId, now: UnixMicros) -> bool {
    runs.iter().any(|other| other.id != run && other.room_kept.is_some_and(|kept| now < kept.until))
}

/// What comes of going through part of a queue.
#[derive(Debug)]
enum Step {
    Offer(Offer),
    /// A run for which the host keeps room: nothing that stands behind it is for that.
    RoomKept,
    End,
}

/// What there is for one who waits.
#[derive(Debug)]
enum Offered {
    Run(Offer),
    /// Nothing in the head of the queue, which goes on.
    MoreToRead,
    /// Nothing at all.
    Nothing {
        /// Whether there may be something for others.
        has_more: bool,
    },
}

/// A run that one poll tries for, and no other of this server meanwhile. If nothing comes of that, who watches looks again.
#[derive(Debug)]
pub(super) struct Offer {
    desk: Arc<Desk>,
    /// The run as it was seen.
    pub(super) run: Arc<Run>,
    /// Whether room is to be kept for it, because there is too little now.
    pub(super) wants_room: bool,
    /// How often the bell had rung when it was offered.
    rung: u64,
    is_settled: bool,
}

impl Offer {
    /// The run was granted, has room kept for it, or cannot be granted for what is stored of it: the others need not try.
    pub(super) fn settle(mut self) {
        let mut state = self.desk.state();
        let looks = state.looks;
        state.taken.insert(self.run.id, Taken::Gone(looks));
        self.is_settled = true;
    }

    /// The run is not as it was seen. It may have come back to the queue since, and been passed over.
    pub(super) fn lose(self) {
        if self.desk.bell.rung() == self.rung {
            self.settle();
        }
    }

    /// None of the org is granted now, nor would others be given it, unless something was rung for meanwhile: which may be
    /// that one is again.
    pub(super) fn leave(mut self) {
        let mut state = self.desk.state();
        state.held_back_at = state.held_back_at.max(Some(self.rung));
        state.taken.remove(&self.run.id);
        self.is_settled = true;
        drop(state);
        if self.desk.bell.rung() != self.rung {
            self.desk.nudge();
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if !self.is_settled {
            self.desk.state().taken.remove(&self.run.id);
            self.desk.nudge();
        }
    }
}

/// One poll's way through the queue of an org, in its order: through what is known of its head, then through a look at it,
/// then page by page.
///
/// What is damaged is passed over and not counted: nobody can decide on it, not even that it waited too long, so it stands
/// first in the queue until it is repaired, and as many of them as one look has candidates would block it for good. So the
/// look goes on behind them. Of those whose row cannot be read, what bounds it is the queue; of the others, each costs a
/// transaction, and [`QUEUE_DAMAGED_MAX`] end the look. What others claim meanwhile hides no run from it.
#[derive(Debug)]
pub(super) struct Queue {
    desk: Arc<Desk>,
    /// What was offered while the poll waited.
    offered: Option<Offer>,
    page: Option<Arc<Page>>,
    /// How far it has come in the page.
    at: usize,
    /// Whether it has looked itself.
    has_looked: bool,
    /// How many runs are still to be considered.
    left: usize,
    /// How many more may turn out to be damaged when they are granted.
    damaged_left: usize,
    /// Those that did.
    damaged: HashSet<RunId>,
    /// Whether the host keeps room for a run that stands here.
    pub(super) keeps_room: bool,
}

impl Queue {
    /// A way that has not begun, but for what is offered.
    pub(super) fn new(desk: Arc<Desk>, offered: Option<Offer>) -> Self {
        let (left, damaged_left) = (QUEUE_LOOK_MAX as usize, QUEUE_DAMAGED_MAX);
        let damaged = HashSet::new();
        Self { desk, offered, page: None, at: 0, has_looked: false, left, damaged_left, damaged, keeps_room: false }
    }

    /// The org whose queue it is.
    pub(super) fn org(&self) -> OrgId {
        self.desk.org
    }

    /// The next run that `host` can execute with `free` left, or for which it is to keep room, as far as the page goes.
    pub(super) fn next(&mut self, host: &Host, free: &Capacity, now: UnixMicros) -> Option<Offer> {
        let is_still_so = |offer: &Offer| match schedule::matches(&offer.run, host, free, now) {
            Match::Fits => !offer.wants_room,
            Match::WantsRoom => offer.wants_room,
            Match::HasRoomKept | Match::Passes => false,
        };
        if let Some(offer) = self.offered.take().filter(is_still_so) {
            return Some(offer);
        }
        let page = self.page.as_ref()?;
        loop {
            let offer = match self.desk.take((&page.runs, &mut self.at), &mut self.left, (host, free, now)) {
                Step::Offer(offer) => offer,
                Step::End => return None,
                Step::RoomKept => {
                    self.keeps_room = true;
                    return None;
                }
            };
            if !self.damaged.contains(&offer.run.id) {
                return Some(offer);
            }
            self.left += 1;
            offer.settle();
        }
    }

    /// Goes on with the next page that has a run which can be read; whether there is one and the look is not over.
    pub(super) async fn go_on(&mut self, app: &App) -> holm_store::Result<bool> {
        loop {
            let next = match &self.page {
                None => {
                    let (seen, has_looked) = self.desk.known_or_seen(app).await?;
                    self.has_looked = has_looked;
                    seen
                }
                Some(_) if self.damaged_left == 0 => return Ok(false),
                Some(page) if self.has_looked => {
                    if page.is_last || self.left == 0 {
                        return Ok(false);
                    }
                    Page::read(app, self.desk.org, page.behind.as_ref(), QUEUE_LOOK_MAX).await?
                }
                Some(_) => {
                    (self.has_looked, self.left) = (true, QUEUE_LOOK_MAX as usize);
                    self.desk.look(app).await?
                }
            };
            let has_runs = !next.runs.is_empty();
            (self.page, self.at) = (Some(next), 0);
            if has_runs {
                return Ok(true);
            }
        }
    }

    /// A run that was considered cannot be granted for what is stored of it.
    pub(super) fn pass_over(&mut self, run: RunId) {
        self.damaged.insert(run);
        self.damaged_left = self.damaged_left.saturating_sub(1);
        self.left += 1;
    }
}

#[cfg(test)]
mod tests;
