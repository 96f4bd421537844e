//! What each org may do at most ([`holm_domain::org_limits`]), on all servers together.
//!
//! A rate is decided by [`holm_domain::rate`] on a state that the store keeps. So that not each request changes the store, a
//! server takes what comes in [`AHEAD`] and spends it from its memory; what is not spent within [`UNSPENT_MAX`] is lost. So
//! over any span, however many servers there are and however often they start anew, no more is done than the rate allows in
//! that span and in [`UNSPENT_MAX`], and the burst. A state only grows: what is refused by the one that was seen last need not
//! be looked up.
//!
//! How many runs hold leases is counted in the store before more are granted. Where it comes to it, servers do that by
//! turns, each of which ends with the grants; one whose server dies ends by itself after [`TURN_MAX`]. How many runs are queued is
//! counted now and then; what other servers take in meanwhile may go beyond the limit.
//!
//! Which limit a request is kept by stands in one table, [`WRITES`]: a request that changes something and is not in it is
//! refused.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::extract::MatchedPath;
use holm_domain::{
    ErrorCode, OrgId, UnixMicros,
    org_limits::{OrgLimit, OrgLimits},
    rate::{Rate, Taken},
};
use holm_store::Error;
use http::{Method, request::Parts};
use tokio::{
    sync::{Mutex as Turns, OwnedMutexGuard},
    time::Instant,
};

use crate::{app::App, config::SWAPS_MAX, problem::Failure};

/// What is taken at once, beyond what is needed.
pub const AHEAD: Duration = Duration::from_millis(100);
/// For how long what was taken may be spent.
pub const UNSPENT_MAX: Duration = Duration::from_secs(1);
/// After how long the limits of an org are looked up anew.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// For how many orgs something is remembered before what is old is forgotten.
const REMEMBERED_MAX: usize = 4_096;
/// Closer to the limit of running runs than this they are counted before each grant.
const NEAR_RUNS: u64 = 4_096;
/// For how long a count counts for each [`NEAR_RUNS`] that the limit is away.
const COUNTED_FOR: Duration = Duration::from_millis(250);
/// For how long a count counts at most, however far the limit is.
const COUNTED_FOR_MAX: Duration = Duration::from_secs(5);
/// Counting takes at most one part in this many of the time.
const COUNTING_PART: u32 = 20;
/// How long a turn of granting lasts at most.
pub const TURN_MAX: Duration = Duration::from_secs(5);
/// How often a turn is asked for that another server has, and how long is waited in between.
const TURN_ASKED_MAX: u32 = 20;
const TURN_ASKED_EVERY: Duration = Duration::from_millis(10);
/// The state of the turns, beside those of the rates.
const TURN: &str = "runs_running_turn";
/// When who may not queue a run may try again.
const QUEUE_RETRY_AFTER: Duration = Duration::from_secs(5);

/// What keeps a request that changes something within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// A rate of its org, of which each request is one unit.
    By(OrgLimit),
    /// A rate of the org that it is about, of which the operation takes as many units as that has.
    Within(OrgLimit),
    /// Nothing of its own, and why.
    Otherwise(&'static str),
}

/// What keeps each request that changes something.
pub const WRITES: &[(Method, &str, Kept)] = {
    use OrgLimit::{AgentWrites, ApiWrites, Appends, LeaseRequests, Renewals, Submits};
    &[
        (Method::POST, "/v1/runs", Kept::By(Submits)),
        (Method::DELETE, "/v1/runs/{id}", Kept::By(ApiWrites)),
        (Method::POST, "/v1/runs/{id}/cancel", Kept::By(ApiWrites)),
        (Method::POST, "/v1/hosts/{id}/cordon", Kept::By(ApiWrites)),
        (Method::POST, "/v1/hosts/{id}/uncordon", Kept::By(ApiWrites)),
        (Method::POST, "/v1/hosts/{id}/revoke", Kept::By(ApiWrites)),
        (Method::POST, "/v1/hosts/joins", Kept::By(ApiWrites)),
        (Method::DELETE, "/v1/hosts/joins/{id}", Kept::By(ApiWrites)),
        (Method::POST, "/v1/orgs", Kept::By(ApiWrites)),
        (Method::POST, "/v1/orgs/{org}/limits", Kept::By(ApiWrites)),
        (Method::POST, "/v1/pools/{pool}/hosts/{id}", Kept::By(ApiWrites)),
        (Method::DELETE, "/v1/pools/{pool}/hosts/{id}", Kept::By(ApiWrites)),
        (Method::POST, "/v1/pools/{pool}/orgs/{org}", Kept::By(ApiWrites)),
        (Method::DELETE, "/v1/pools/{pool}/orgs/{org}", Kept::By(ApiWrites)),
        (Method::POST, "/v1/keys/rotate", Kept::By(ApiWrites)),
        (Method::POST, "/v1/keys/envelope/rotate", Kept::By(ApiWrites)),
        (Method::POST, "/v1/keys/{id}/withdraw", Kept::By(ApiWrites)),
        (Method::POST, "/v1/tokens", Kept::By(ApiWrites)),
        (Method::DELETE, "/v1/tokens/{id}", Kept::By(ApiWrites)),
        (Method::POST, "/v1/secrets", Kept::By(ApiWrites)),
        (Method::PUT, "/v1/secrets/{name}", Kept::By(ApiWrites)),
        (Method::PUT, "/v1/secrets/{name}/for", Kept::By(ApiWrites)),
        (Method::DELETE, "/v1/secrets/{name}", Kept::By(ApiWrites)),
        (Method::POST, "/agent/v1/enrol", Kept::By(AgentWrites)),
        (
            Method::POST,
            "/agent/v1/session",
            Kept::Otherwise("it writes nothing, and the leases of the host hang on it"),
        ),
        (Method::POST, "/agent/v1/register", Kept::By(AgentWrites)),
        (Method::POST, "/agent/v1/runs/{id}/secrets", Kept::Within(AgentWrites)),
        (Method::POST, "/agent/v1/runs/{id}/events", Kept::Within(AgentWrites)),
        (Method::PUT, "/agent/v1/runs/{id}/changes", Kept::Within(AgentWrites)),
        // Its bytes are kept by `LogBytes` as well.
        (Method::POST, "/agent/v1/runs/{id}/logs", Kept::By(Appends)),
        (Method::POST, "/agent/v1/poll", Kept::By(LeaseRequests)),
        (Method::POST, "/agent/v1/renew", Kept::By(Renewals)),
        (Method::POST, "/agent/v1/runs/{id}/start", Kept::By(LeaseRequests)),
        (Method::POST, "/agent/v1/runs/{id}/ended", Kept::By(LeaseRequests)),
        (Method::POST, "/agent/v1/runs/{id}/finish", Kept::By(LeaseRequests)),
    ]
};

/// What keeps requests of that method to that route; nothing for those that change nothing.
pub fn kept(method: &Method, route: &str) -> Result<Option<Kept>, Failure> {
    if method.is_safe() {
        return Ok(None);
    }
    let found = WRITES.iter().find(|(listed, path, _)| listed == method && *path == route);
    found
        .map(|(_, _, kept)| Some(*kept))
        .ok_or_else(|| Failure::internal(format!("{method} {route} changes something and names no limit")))
}

/// Counts a request that is on the account of `org`, or refuses it.
pub async fn charge(app: &App, parts: &Parts, org: OrgId) -> Result<(), Failure> {
    let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    match kept(&parts.method, route)? {
        Some(Kept::By(limit)) => app.limiter.spend(app, org, limit, 1).await,
        Some(Kept::Within(_) | Kept::Otherwise(_)) | None => Ok(()),
    }
}

/// What is remembered by a key, each changed by one at a time.
type Shared<K, T> = Mutex<HashMap<K, Arc<Turns<T>>>>;

/// What one server remembers of the limits of orgs.
#[derive(Debug, Default)]
pub struct Limiter {
    known: Mutex<HashMap<OrgId, (OrgLimits, Instant)>>,
    pools: Shared<(OrgId, OrgLimit), Pool>,
    counts: Shared<(OrgId, OrgLimit), Counted>,
    granting: Shared<OrgId, ()>,
    held_back: Mutex<HashSet<OrgId>>,
}

/// What was taken and is not spent yet.
#[derive(Debug)]
struct Pool {
    left: u64,
    lost_at: Instant,
    /// The state that was seen last.
    seen: UnixMicros,
    failed_at: Option<Instant>,
}

impl Default for Pool {
    fn default() -> Self {
        Self { left: 0, lost_at: Instant::now(), seen: UnixMicros(0), failed_at: None }
    }
}

/// How many there were, and those that this server has added since.
#[derive(Debug)]
struct Counted {
    count: u64,
    /// No further than this was counted.
    most: u64,
    until: Instant,
    failed_at: Option<Instant>,
}

impl Default for Counted {
    fn default() -> Self {
        Self { count: 0, most: 0, until: Instant::now(), failed_at: None }
    }
}

/// How many runs may be granted now, and the turn to do so.
#[derive(Debug, Default)]
pub struct Turn {
    /// How many.
    pub claims: u32,
    /// Until when other servers wait for it.
    until: Option<(OrgId, UnixMicros)>,
    _here: Option<OwnedMutexGuard<()>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is remembered under a key. Where much is, what nobody uses is forgotten first: it is looked up again, and what was
/// taken and not spent is lost.
fn shared<K: Eq + Hash, T: Default>(map: &Shared<K, T>, key: K) -> Arc<Turns<T>> {
    let mut map = locked(map);
    if map.len() >= REMEMBERED_MAX {
        map.retain(|_, value| Arc::strong_count(value) > 1);
    }
    Arc::clone(map.entry(key).or_default())
}

impl Limiter {
    /// The limits of an org; none where the server was told none.
    pub async fn limits_of(&self, app: &App, org: OrgId) -> Result<Option<OrgLimits>, Failure> {
        let Some(defaults) = app.config.org_limits else { return Ok(None) };
        let now = Instant::now();
        if let Some((limits, until)) = locked(&self.known).get(&org)
            && now < *until
        {
            return Ok(Some(*limits));
        }
        let limits = defaults.with(&app.store.org_limits_get(org).await?);
        let mut known = locked(&self.known);
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, (_, until)| now < *until);
        }
        known.insert(org, (limits, now + KNOWN_FOR));
        Ok(Some(limits))
    }

    /// The limits of an org were changed: on this server they count at once, on others within [`KNOWN_FOR`].
    pub fn forget(&self, org: OrgId) {
        locked(&self.known).remove(&org);
    }

    /// Spends units of a rate of an org, or answers `too_many`. Who asks while somebody takes more in vain hears that as well.
    pub async fn spend(&self, app: &App, org: OrgId, limit: OrgLimit, units: u64) -> Result<(), Failure> {
        let Some(limits) = self.limits_of(app, org).await? else { return Ok(()) };
        let largest = if limit == OrgLimit::LogBytes { app.config.limits.log_body_bytes_max as u64 } else { 1 };
        let Some(rate) = limits.rate(limit, largest) else { return Ok(()) };
        let asked_at = Instant::now();
        let pool = shared(&self.pools, (org, limit));
        let mut pool = pool.lock().await;
        if Instant::now() >= pool.lost_at {
            pool.left = 0;
        }
        if pool.left < units {
            if pool.failed_at.is_some_and(|at| at >= asked_at) {
                let problem = "what the org has used up is not known; try again";
                return Err(Failure::unavailable(problem, "somebody else asked the store in vain"));
            }
            let least = units - pool.left;
            let refilled = refill(app, org, (limit, rate), least, &mut pool).await;
            if let Err(wait) = refilled.inspect_err(|_| pool.failed_at = Some(Instant::now()))? {
                return Err(refused(app, limit, limits.of(limit), wait));
            }
        }
        pool.left -= units;
        Ok(())
    }

    /// Refuses one more run where an org has as many in its queue as it may have.
    pub async fn queue(&self, app: &App, org: OrgId) -> Result<(), Failure> {
        let Some(limits) = self.limits_of(app, org).await? else { return Ok(()) };
        let (limit, most) = (OrgLimit::RunsQueued, limits.runs_queued_max);
        let mut counted = self.counted(app, org, limit, most).await?;
        if counted.count < most {
            // That it is queued is known before it is counted anew.
            counted.count += 1;
            return Ok(());
        }
        Err(refused(app, limit, most, QUEUE_RETRY_AFTER))
    }

    /// How many there are, no further than `most`; counted a moment ago, perhaps. Who asks while somebody counts waits for
    /// what comes of that, be it that it fails.
    async fn counted(
        &self,
        app: &App,
        org: OrgId,
        limit: OrgLimit,
        most: u64,
    ) -> Result<OwnedMutexGuard<Counted>, Failure> {
        let asked_at = Instant::now();
        let mut counted = shared(&self.counts, (org, limit)).lock_owned().await;
        let begun = Instant::now();
        if begun < counted.until && counted.most == most {
            return Ok(counted);
        }
        if counted.failed_at.is_some_and(|at| at >= asked_at) {
            return Err(Failure::unavailable(
                "the runs of the org cannot be counted; try again",
                "another count failed",
            ));
        }
        let count = match limit {
            OrgLimit::RunsRunning => app.store.org_leases_count(org, most).await,
            _ => app.store.org_queued_count(org, most).await,
        };
        let count = count.inspect_err(|_| counted.failed_at = Some(Instant::now()))?;
        let until = begun + counts_for(count, most).max(begun.elapsed() * COUNTING_PART);
        *counted = Counted { count, most, until, failed_at: None };
        Ok(counted)
    }

    /// How many runs of an org may be granted, at most `wanted`, until the turn is [ended](Turn::end).
    pub async fn turn(&self, app: &App, org: OrgId, wanted: u32) -> Result<Turn, Failure> {
        let free = Turn { claims: wanted, ..Turn::default() };
        let Some(limits) = self.limits_of(app, org).await? else { return Ok(free) };
        let (limit, most) = (OrgLimit::RunsRunning, limits.runs_running_max);
        if most > NEAR_RUNS && self.counted(app, org, limit, most).await?.count < most - NEAR_RUNS {
            return Ok(free);
        }
        // Before it is counted: a run that ends meanwhile has others look again.
        locked(&self.held_back).insert(org);
        // Where none may be granted, nobody has to wait for his turn to hear it.
        if app.store.org_leases_count(org, most).await? >= most {
            return Ok(held_back(app));
        }
        let here = shared(&self.granting, org).lock_owned().await;
        let Some(until) = begin(app, org).await? else { return Ok(held_back(app)) };
        let turn = Turn { claims: wanted, until, _here: Some(here) };
        let held = app.store.org_leases_count(org, most).await?;
        let claims = u32::try_from(most - held.min(most)).unwrap_or(u32::MAX).min(wanted);
        Ok(Turn { claims, ..turn })
    }

    /// A run of the org has ended: whether others may have waited for that.
    pub fn let_go(&self, org: OrgId) -> bool {
        locked(&self.held_back).remove(&org)
    }
}

impl Turn {
    /// Ends the turn: what was granted in it is stored.
    pub async fn end(self, app: &App) {
        let Some((org, until)) = self.until else { return };
        // Whatever the clocks of others show, it is over.
        match app.store.org_rate_move(org, TURN, Some(until), UnixMicros(0)).await {
            // It was over before, and another server has begun its own.
            Ok(()) | Err(Error::Conflict { .. }) => {}
            Err(error) => tracing::warn!(%org, cause = %error, "a turn of granting ends by itself"),
        }
    }
}

/// For how long a count counts. At the limit it is worth counting again soon.
fn counts_for(count: u64, most: u64) -> Duration {
    let Some(room) = most.checked_sub(count).filter(|room| *room > 0) else { return Duration::ZERO };
    let times = u32::try_from((room / NEAR_RUNS).max(1)).unwrap_or(u32::MAX);
    COUNTED_FOR.saturating_mul(times).min(COUNTED_FOR_MAX)
}

/// No run is granted now: those that wait have to wait for others of their org to end.
fn held_back(app: &App) -> Turn {
    app.metrics.limited(OrgLimit::RunsRunning);
    Turn::default()
}

/// Waits for the turn of this server; nothing if others keep it for too long.
async fn begin(app: &App, org: OrgId) -> Result<Option<Option<(OrgId, UnixMicros)>>, Failure> {
    if !app.store.is_shared() {
        return Ok(Some(None));
    }
    for _ in 0..TURN_ASKED_MAX {
        let (stored, now) = (app.store.org_rate_get(org, TURN).await?, app.now());
        // One that ends later than any that begins now was left by a clock that was wrong.
        let is_over = stored.is_none_or(|until| until <= now || until > now.plus(TURN_MAX * 2));
        if is_over {
            let until = now.plus(TURN_MAX);
            match app.store.org_rate_move(org, TURN, stored, until).await {
                Ok(()) => return Ok(Some(Some((org, until)))),
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokio::time::sleep(TURN_ASKED_EVERY).await;
    }
    Ok(None)
}

/// Takes at least so many units into the pool; or how long to wait.
async fn refill(
    app: &App,
    org: OrgId,
    (limit, rate): (OrgLimit, Rate),
    least: u64,
    pool: &mut Pool,
) -> Result<Result<(), Duration>, Failure> {
    for _ in 0..SWAPS_MAX {
        match rate.take(pool.seen, app.now(), least, least) {
            Taken::Units { .. } => {}
            Taken::Wait(wait) => return Ok(Err(wait)),
            Taken::Never => return Ok(Err(rate.period)),
        }
        let stored = app.store.org_rate_get(org, limit.as_str()).await?;
        pool.seen = stored.unwrap_or(UnixMicros(0));
        let most = least.saturating_add(rate.units_in(AHEAD) - 1);
        let Taken::Units { count, tat } = rate.take(pool.seen, app.now(), least, most) else { continue };
        match app.store.org_rate_move(org, limit.as_str(), stored, tat).await {
            Ok(()) => {
                let lost_at = Instant::now() + UNSPENT_MAX;
                *pool = Pool { left: pool.left + count, lost_at, seen: tat, failed_at: None };
                return Ok(Ok(()));
            }
            Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let cause = format!("{SWAPS_MAX} attempts to take of {} found it changed by other servers", limit.as_str());
    Err(Failure::unavailable("the rate of the org is being used by many servers at once; try again", cause))
}

fn refused(app: &App, limit: OrgLimit, value: u64, wait: Duration) -> Failure {
    app.metrics.limited(limit);
    let name = limit.as_str();
    let detail = match limit {
        OrgLimit::RunsQueued => format!("the org has {value} runs in its queue, as many as it may have ({name})"),
        _ => format!("the org has used up its {name}, which is {value}"),
    };
    let way_out = "try again later, or have an admin of the default org raise it (`holm org limits set`)";
    Failure::new(ErrorCode::TooMany, format!("{detail}; {way_out}")).at(name, value).after(wait)
}

#[cfg(test)]
mod tests;
