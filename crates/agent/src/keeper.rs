//! The one task that feeds the lease machine and passes its decisions on.
//!
//! What always holds: a lease is kept up exactly as long as an attempt needs it; what the machine says is passed on before
//! the next thing is looked at; nothing here waits for an attempt or for the control plane.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::Arc,
    time::Duration,
};

use holm_api::agent::{ClaimedRun, Directive, DirectiveKind, HeldLease, Renew, RenewLease, Renewed};
use holm_domain::{
    BootMicros,
    lease::holder::{Action, Held, Input, StopReason},
    run::Cancel,
    schedule,
};
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};

use crate::{
    admission,
    attempt::{
        Attempt, Origin,
        orders::{Lost, Orders},
        traced::Traced,
    },
    capacity::{Offer, Permit, Pool},
    clock,
    control::{ControlError, ControlPlane},
    journal::Claim,
    occupancy::Stay,
    poll::{Answer, Poller},
    reaper,
    recover::Survivor,
    station::{Shared, attempt_of, held},
    usage,
};

/// The most leases in one renewal.
const RENEW_MAX: usize = 1_000;
/// The most renewals that may wait for an answer at once.
const RENEWALS_MAX: usize = 8;
/// How many attempts that ended are remembered; a grant is not told once more for long enough that more were needed.
const OVER_MAX: usize = 4_096;
/// How long attempts may take to let go when the agent leaves.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);
/// How long after the kill of what did not end in time a draining agent waits for its attempts.
const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

/// What the keeper hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// The control plane answered to a poll.
    Polled(Answer),
    /// The control plane answered to a renewal.
    Renewed {
        /// When the request was sent.
        asked_at: BootMicros,
        /// The answer.
        result: Result<Renewed, ControlError>,
    },
    /// An attempt does not need its lease any more.
    Released(Held),
    /// This process is not heard any more.
    Unheard(Unheard),
}

/// Why the control plane does not hear this process any more, which ends then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unheard {
    /// A newer process of this agent has registered.
    Superseded,
    /// The key of the host was revoked.
    Revoked,
}

/// How an agent goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Runs go on beside their shims; the next agent takes them up.
    Leave,
    /// Runs are asked to end; what still runs after `within` is killed.
    Drain {
        /// How long runs may take to end.
        within: Duration,
    },
}

#[derive(Debug)]
struct Entry {
    task: Id,
    orders: watch::Sender<Orders>,
    is_released: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Working,
    Draining { kill_at: Instant },
    Closing { give_up_at: Instant },
}

impl Phase {
    fn ends_at(self) -> Option<Instant> {
        match self {
            Phase::Working => None,
            Phase::Draining { kill_at: at } | Phase::Closing { give_up_at: at } => Some(at),
        }
    }
}

/// Keeps the leases of an agent.
pub(crate) struct Keeper<C> {
    shared: Arc<Shared<C>>,
    pool: Pool,
    events: mpsc::Receiver<Event>,
    attempts: BTreeMap<Held, Entry>,
    /// The attempts that ended last.
    over: VecDeque<Held>,
    tasks: JoinSet<()>,
    pollers: JoinSet<()>,
    renewals: JoinSet<()>,
    reaping: JoinSet<()>,
    held: watch::Sender<Vec<HeldLease>>,
    phase: Phase,
    unheard: Option<Unheard>,
}

impl<C: ControlPlane> Keeper<C> {
    /// A keeper of nothing, who hears `events`.
    pub(crate) fn new(shared: Arc<Shared<C>>, events: mpsc::Receiver<Event>) -> Self {
        let pool = Pool::new(shared.config.capacity);
        Self {
            shared,
            pool,
            events,
            attempts: BTreeMap::new(),
            over: VecDeque::new(),
            tasks: JoinSet::new(),
            pollers: JoinSet::new(),
            renewals: JoinSet::new(),
            reaping: JoinSet::new(),
            held: watch::channel(Vec::new()).0,
            phase: Phase::Working,
            unheard: None,
        }
    }

    /// Works until `shutdown` and what it asks for are done, or until this process is not heard any more.
    pub(crate) async fn run(
        mut self,
        survivors: Vec<Survivor>,
        shutdown: impl Future<Output = Shutdown>,
    ) -> Result<(), Unheard> {
        let mut shutdown = std::pin::pin!(shutdown);
        for survivor in survivors {
            self.take_up(survivor);
        }
        self.start_pollers();
        let mut reap = tokio::time::interval(self.shared.config.reap_every);
        reap.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while matches!(self.phase, Phase::Working) || !self.tasks.is_empty() {
            self.publish();
            let tick = self.shared.holder.lock().next_tick();
            let phase_ends = self.phase.ends_at();
            tokio::select! {
                Some(event) = self.events.recv() => self.hear(event),
                () = clock::sleep_until(tick) => self.step(Input::Tick),
                Some(joined) = self.tasks.join_next_with_id() => self.joined(joined),
                Some(_) = self.renewals.join_next() => {}
                Some(_) = self.reaping.join_next() => {}
                _ = reap.tick() => self.reap(),
                how = &mut shutdown, if matches!(self.phase, Phase::Working) => self.begin_shutdown(how),
                () = tokio::time::sleep_until(phase_ends.unwrap_or_else(Instant::now)), if phase_ends.is_some() => {
                    self.phase_over();
                }
            }
        }
        self.pollers.shutdown().await;
        self.unheard.map_or(Ok(()), Err)
    }

    fn start_pollers(&mut self) {
        let poller = Poller { shared: self.shared.clone(), held: self.held.subscribe() };
        let (claimer, pool) = (poller.clone(), self.pool.clone());
        self.pollers.spawn(async move {
            claimer.claim(pool).await;
        });
        self.pollers.spawn(admission::tell(self.shared.clone()));
        self.pollers.spawn(async move {
            poller.listen().await;
        });
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Polled(Answer { asked_at, polled, mut offer, done }) => {
                for claimed in polled.claimed {
                    self.claimed(claimed, asked_at, offer.as_mut());
                }
                polled.directives.into_iter().for_each(|directive| self.directed(directive));
                self.publish();
                // Nobody waits any more when the agent goes away.
                let _is_heard = done.send(());
            }
            Event::Renewed { asked_at, result: Ok(renewed) } => self.renewed(asked_at, renewed),
            Event::Unheard(why) => self.unheard(why),
            Event::Renewed { result: Err(error), .. } => match error.unheard() {
                Some(why) => self.unheard(why),
                None => tracing::warn!(%error, "leases could not be renewed"),
            },
            Event::Released(held) => {
                if let Some(entry) = self.attempts.get_mut(&held) {
                    entry.is_released = true;
                }
                self.step(Input::Released { held });
            }
        }
    }

    fn claimed(&mut self, claimed: ClaimedRun, asked_at: BootMicros, offer: Option<&mut Offer>) {
        let held = Held { run: claimed.run, fence: claimed.fence };
        // Told once more, because the control plane did not know that the answer arrived. One fence is one attempt.
        if self.attempts.contains_key(&held) || self.over.contains(&held) {
            return;
        }
        let permit = offer.and_then(|offer| offer.cut(schedule::demand(&claimed.spec)));
        let Some(permit) = permit else {
            tracing::error!(run = %held.run, fence = held.fence, "more was granted than was offered; the lease expires");
            return;
        };
        let Some(stay) = self.shared.occupancy.enter(attempt_of(held)) else {
            tracing::error!(run = %held.run, fence = held.fence, "a lease was granted that is being wound up");
            return;
        };
        let claim = Claim {
            attempt: attempt_of(held),
            runtime: claimed.runtime,
            spec: claimed.spec,
            first_log_seq: claimed.next_log_seq,
        };
        let input = Input::Claimed { held, ttl: Duration::from_millis(claimed.ttl_ms), asked_at };
        let actions = self.shared.holder.lock().step(input, clock::boot_now());
        let shared = &self.shared;
        let traced = Traced::claimed(&shared.config.tracer, claim.attempt, shared.who(), claimed.trace);
        let mut pending = Some((claim, permit, stay, traced));
        for action in actions {
            match action {
                Action::Start { held: started, deadline } if started == held => {
                    if let Some((claim, permit, stay, traced)) = pending.take() {
                        self.spawn((claim, traced), deadline, Origin::Claimed, permit, stay);
                    }
                }
                other => self.act(other),
            }
        }
        if let Some((_, _, stay, _)) = pending {
            tracing::warn!(run = %held.run, fence = held.fence, "a lease was granted too late to be of use");
            stay.clear();
        }
    }

    fn take_up(&mut self, survivor: Survivor) {
        let Survivor { claim, traced, deadline, origin, stay } = survivor;
        let permit = self.pool.take_for_found(schedule::demand(&claim.spec));
        let input = Input::Found { held: held(claim.attempt), deadline };
        self.spawn((claim, traced), deadline, origin, permit, stay);
        self.step(input);
    }

    fn spawn(
        &mut self,
        (claim, traced): (Claim, Traced),
        deadline: BootMicros,
        origin: Origin,
        permit: Permit,
        stay: Stay,
    ) {
        let held = held(claim.attempt);
        let (orders, received) = watch::channel(Orders::until(deadline));
        let attempt = Attempt { shared: self.shared.clone(), claim, traced, origin, orders: received, stay, permit };
        let task = self.tasks.spawn(attempt.run()).id();
        self.attempts.insert(held, Entry { task, orders, is_released: false });
        if !matches!(self.phase, Phase::Working) {
            self.close_one(held);
        }
    }

    fn step(&mut self, input: Input) {
        let actions = self.shared.holder.lock().step(input, clock::boot_now());
        actions.into_iter().for_each(|action| self.act(action));
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start { held, .. } => {
                tracing::error!(run = %held.run, fence = held.fence, "a lease begins that nobody was granted");
            }
            Action::Extend { held, deadline } => {
                self.order(held, |orders| orders.deadline = orders.deadline.max(deadline))
            }
            Action::Renew { held } => self.renew(&held),
            Action::Stop { held, reason } => {
                tracing::info!(run = %held.run, fence = held.fence, ?reason, "an attempt is to stop");
                self.order(held, |orders| match reason {
                    StopReason::Stale => orders.lost = Some(Lost::Stale),
                    StopReason::Expired => orders.lost = orders.lost.or(Some(Lost::Expired)),
                    StopReason::Cancelled(how) => orders.cancel = orders.cancel.max(Some(how)),
                });
            }
        }
    }

    fn order(&self, held: Held, change: impl FnOnce(&mut Orders)) {
        if let Some(entry) = self.attempts.get(&held) {
            entry.orders.send_modify(change);
        }
    }

    fn renew(&mut self, held: &[Held]) {
        for part in held.chunks(RENEW_MAX) {
            if self.renewals.len() >= RENEWALS_MAX {
                tracing::warn!("too many renewals wait for an answer; the next attempt follows");
                return;
            }
            let (shared, part) = (self.shared.clone(), part.to_vec());
            self.renewals.spawn(async move {
                let usage = usage::measure(&shared, &part).await;
                let lease =
                    |held: Held| RenewLease { run: held.run, fence: held.fence, usage: usage.get(&held).copied() };
                let leases = part.into_iter().map(lease).collect();
                let body = Renew { agent: shared.agent, instance: shared.instance(), leases };
                let asked_at = clock::boot_now();
                let result = shared.control.renew(body).await;
                if shared.events.send(Event::Renewed { asked_at, result }).await.is_err() {
                    tracing::debug!("nobody keeps leases any more");
                }
            });
        }
    }

    fn renewed(&mut self, asked_at: BootMicros, renewed: Renewed) {
        for lease in renewed.leases {
            let held = Held { run: lease.run, fence: lease.fence };
            match lease.ttl_ms {
                Some(ttl_ms) => {
                    self.step(Input::Renewed { held, ttl: Duration::from_millis(ttl_ms), asked_at });
                    if let Some(how) = lease.cancel {
                        self.step(Input::CancelRequested { held, how });
                    }
                }
                None => self.step(Input::Refused { held }),
            }
        }
    }

    fn directed(&mut self, directive: Directive) {
        let held = Held { run: directive.run, fence: directive.fence };
        self.step(match directive.what {
            DirectiveKind::Terminate => Input::CancelRequested { held, how: Cancel::Terminate },
            DirectiveKind::Kill => Input::CancelRequested { held, how: Cancel::Kill },
            DirectiveKind::Stale => Input::Refused { held },
        });
    }

    /// Says what is held, without what is over or lost.
    fn publish(&self) {
        let live = self.attempts.iter().filter(|(_, entry)| !entry.is_released && entry.orders.borrow().lost.is_none());
        let lease = |(held, entry): (&Held, &Entry)| HeldLease {
            run: held.run,
            fence: held.fence,
            cancel: entry.orders.borrow().cancel,
        };
        let leases: Vec<HeldLease> = live.map(lease).collect();
        self.held.send_if_modified(|known| {
            let is_changed = *known != leases;
            *known = leases;
            is_changed
        });
    }

    fn joined(&mut self, joined: Result<(Id, ()), JoinError>) {
        let id = match &joined {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(held) = self.attempts.iter().find_map(|(held, entry)| (entry.task == id).then_some(*held)) else {
            return;
        };
        self.attempts.remove(&held);
        self.over.push_back(held);
        if self.over.len() > OVER_MAX {
            self.over.pop_front();
        }
        if let Err(error) = joined {
            tracing::error!(run = %held.run, fence = held.fence, %error, "a supervisor failed; the reaper removes what it left");
        }
        // Nobody is left who needs the lease, however the supervisor ended.
        self.step(Input::Released { held });
    }

    fn reap(&mut self) {
        if !self.reaping.is_empty() || !matches!(self.phase, Phase::Working) {
            return;
        }
        let shared = self.shared.clone();
        self.reaping.spawn_blocking(move || {
            reaper::reap(&shared);
        });
    }

    /// This process may not claim, renew or report. A successor in the same folder takes its shims up; without one they
    /// keep their deadlines.
    fn unheard(&mut self, why: Unheard) {
        if self.unheard.is_none() {
            self.unheard = Some(why);
            tracing::error!(?why, "the control plane does not hear this process any more; it ends");
            self.begin_shutdown(Shutdown::Leave);
        }
    }

    fn begin_shutdown(&mut self, how: Shutdown) {
        tracing::info!(?how, attempts = self.attempts.len(), "the agent goes away");
        self.pollers.abort_all();
        let now = Instant::now();
        self.phase = match how {
            Shutdown::Leave => Phase::Closing { give_up_at: now + LEAVE_PATIENCE },
            Shutdown::Drain { within } => Phase::Draining { kill_at: now + within },
        };
        let all: Vec<Held> = self.attempts.keys().copied().collect();
        all.into_iter().for_each(|held| self.close_one(held));
    }

    fn close_one(&self, held: Held) {
        self.order(held, |orders| match self.phase {
            Phase::Working => {}
            Phase::Draining { .. } => orders.cancel = orders.cancel.max(Some(Cancel::Terminate)),
            Phase::Closing { .. } => orders.leave = true,
        });
    }

    fn phase_over(&mut self) {
        match self.phase {
            Phase::Working => {}
            Phase::Draining { .. } => {
                tracing::warn!(attempts = self.attempts.len(), "runs did not end in time; they are killed");
                self.attempts
                    .values()
                    .for_each(|entry| entry.orders.send_modify(|orders| orders.cancel = Some(Cancel::Kill)));
                self.phase = Phase::Closing { give_up_at: Instant::now() + DRAIN_PATIENCE };
            }
            Phase::Closing { .. } => {
                tracing::error!(attempts = self.attempts.len(), "attempts did not let go in time; their shims stay");
                self.tasks.abort_all();
            }
        }
    }
}
