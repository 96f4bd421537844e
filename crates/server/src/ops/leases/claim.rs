//! What a poll grants: once more what was granted before it and whose answer was lost, then runs of the queue.
//!
//! What always holds: what is told of a run is counted before the run is granted, and what was granted is told, whatever
//! becomes of the others. A run that cannot be granted for what is stored of it, its row or what is beside it, is told and
//! holds no other up.

use std::time::Duration;

use holm_api::agent::{ClaimedRun, HeldLease, Poll};
use holm_domain::{
    OrgId, UnixMicros,
    host::{Capacity, Host},
    lease::{Claimant, grant},
    limits::LeaseConfig,
    run::{Decision, Run, RunSpec},
    schedule,
};
use holm_store::Error;
use tokio::time::Instant;

use super::{Received, queue::Queue};
use crate::{
    account::Account,
    app::App,
    config::CLAIMS_BYTES_MAX,
    limited::Turn,
    ops::{runs::spec_bytes, try_save},
    problem::Failure,
    traces,
};

/// How long a look goes on to grant: the answer must be there before the agent gives it up.
const GRANTING_MAX: Duration = Duration::from_secs(2);

/// By which decision a run is granted.
type Decide = fn(&Run, Claimant, UnixMicros, &LeaseConfig) -> Option<Decision>;

/// What came of trying to grant a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Granted,
    /// It does not fit, and the host keeps room for it from now on.
    Kept,
    /// It is not as it was seen.
    Lost,
    /// This poll is granted no more.
    Refused,
    /// It cannot be granted for what is stored of it.
    Damaged,
}

/// What one poll grants, and what room is left in its answer for more.
#[derive(Debug)]
pub(super) struct Room<'a> {
    app: &'a App,
    host: &'a Host,
    received: Received,
    account: &'a Account,
    claims: usize,
    free: Capacity,
    bytes: usize,
    /// What was granted.
    pub(super) claimed: Vec<ClaimedRun>,
    /// Why no more is granted.
    pub(super) refused: Option<Failure>,
    /// Of which orgs none are, and why.
    pub(super) trouble: Vec<(OrgId, Failure)>,
}

impl<'a> Room<'a> {
    /// Room for what `poll` asks for, and for `claims_max` runs.
    pub(super) fn new(
        (app, host): (&'a App, &'a Host),
        poll: &Poll,
        claims_max: u32,
        received: Received,
        account: &'a Account,
    ) -> Self {
        let (claims, free, bytes) = (claims_max as usize, poll.free, CLAIMS_BYTES_MAX);
        Self {
            app,
            host,
            received,
            account,
            claims,
            free,
            bytes,
            claimed: Vec::new(),
            refused: None,
            trouble: Vec::new(),
        }
    }

    /// The turn to grant runs of `org`; nothing if there is none to be had.
    async fn turn(&mut self, org: OrgId) -> Option<Turn> {
        let wanted = u32::try_from(self.claims).unwrap_or(u32::MAX);
        let turn = self.app.limiter.turn(self.app, org, wanted).await;
        turn.map_err(|trouble| self.trouble.push((org, trouble))).ok()
    }

    pub(super) fn is_left(&self) -> bool {
        self.claims > 0 && self.bytes > 0 && self.refused.is_none()
    }

    /// As [`schedule::matches`] has it: processors are shared.
    fn has(&self, demand: &Capacity) -> bool {
        self.is_left() && demand.runs <= self.free.runs && demand.memory_bytes <= self.free.memory_bytes
    }

    /// Counts what would be told of `run`, before it is granted: its bytes, unless they may not be held.
    fn hold(&mut self, run: &Run) -> Option<usize> {
        let held = spec_bytes(run).and_then(|bytes| self.account.take(self.app, bytes).map(|()| bytes));
        held.map_err(|refused| self.refused = Some(refused)).ok()
    }

    /// Grants `run` as `decide` has it. What cannot be granted for what is stored of it is told.
    async fn grant(&mut self, run: &Run, decide: Decide) -> Tried {
        let config = &self.app.config.lease;
        let Some(runtime) = schedule::runtime_for(&run.spec, self.host) else { return Tried::Lost };
        let ttl_ms = self.received.ttl_ms(config.ttl);
        let by = Claimant { agent: self.host.id, instance: self.host.instance };
        let Some(decision) = decide(run, by, self.app.now(), config) else { return Tried::Lost };
        let Some(bytes) = self.hold(run) else { return Tried::Refused };
        let begun = self.app.now();
        let saved = try_save(self.app, run.version, &decision).await;
        if let Ok(Some(next_log_seq)) = saved {
            self.take(run, &decision.run, bytes, begun);
            self.claimed.push(told(decision.run, runtime, ttl_ms, next_log_seq));
            return Tried::Granted;
        }
        // What was held for it is left to what is granted next.
        self.account.spare(bytes);
        self.not_saved(run, saved)
    }

    /// Has the host keep room for `run`.
    async fn keep_for(&mut self, run: &Run) -> Tried {
        let Some(decision) = grant::keep_room(run, self.host.id, self.app.now()) else { return Tried::Lost };
        let saved = try_save(self.app, run.version, &decision).await;
        if !matches!(saved, Ok(Some(_))) {
            return self.not_saved(run, saved);
        }
        tracing::debug!(run = %run.id, agent = %self.host.id, "room is kept for it");
        Tried::Kept
    }

    /// What it means that a decision on `run` was not saved. What is damaged is told.
    fn not_saved(&mut self, run: &Run, saved: holm_store::Result<Option<u64>>) -> Tried {
        match saved {
            Ok(_) | Err(Error::NotFound { .. }) => return Tried::Lost,
            Err(error @ Error::Unavailable { .. }) => {
                self.refused = Some(error.into());
                return Tried::Refused;
            }
            Err(error) if error.is_damage() => self.app.unreadable.tell(run.id, &error),
            Err(error) => tracing::error!(run = %run.id, cause = %error, "a run cannot be granted"),
        }
        Tried::Damaged
    }

    /// `run` was granted as `granted`.
    fn take(&mut self, run: &Run, granted: &Run, bytes: usize, begun: UnixMicros) {
        self.claims = self.claims.saturating_sub(1);
        self.free = self.free.less(&schedule::demand(&run.spec));
        self.bytes = self.bytes.saturating_sub(bytes);
        let (agent, host, fence) = (self.host.id, &self.host.name, granted.fence);
        let trace_id = traces::logged(granted);
        if fence == run.fence {
            tracing::info!(run = %run.id, %agent, host, fence, trace_id, "claimed; told once more");
        } else {
            tracing::info!(run = %run.id, %agent, host, fence, trace_id, "claimed");
            traces::claimed(self.app, granted, begun);
            self.app.metrics.claimed(granted.claimed_at.map(|at| at.since(run.queued_at)).unwrap_or_default());
        }
    }
}

fn told(granted: Run, runtime: &str, ttl_ms: u64, next_log_seq: u64) -> ClaimedRun {
    // How a run waits is over, and an agent of an earlier version would refuse the whole answer for it.
    let spec = RunSpec { priority: 0, queue_timeout_ms: None, ..granted.spec };
    ClaimedRun {
        run: granted.id,
        org: granted.org,
        project: granted.project,
        fence: granted.fence,
        ttl_ms,
        runtime: runtime.to_owned(),
        spec,
        next_log_seq,
        run_token: None,
        trace: granted.trace.map(|trace| trace.context),
    }
}

/// Grants once more, under the same fence, what was granted before this poll was there and what the agent does not list
/// among `held`: the answer that told it was lost. An agent that knows the lease after all ignores it.
pub(super) async fn lease_claim_again(room: &mut Room<'_>, held: &[HeldLease], stored: &[Run]) {
    let before = room.received.time;
    for run in stored.iter().filter(|run| run.claimed_at.is_some_and(|at| at <= before)) {
        if room.has(&schedule::demand(&run.spec)) && !held.iter().any(|held| held.run == run.id) {
            room.grant(run, grant::claim_again).await;
        }
    }
}

/// One org's part in what a poll grants.
#[derive(Debug)]
struct Way {
    queue: Queue,
    /// Its turn to grant, where it has one: servers grant by turns where it comes to the limit of an org.
    turn: Option<Turn>,
    /// How many more that allows.
    claims: usize,
}

/// Whether another run of an org may be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowed {
    Yes,
    /// Others of it have to end before.
    No,
    /// That cannot be said.
    Unknown,
}

impl Way {
    fn new(queue: Queue) -> Self {
        Self { queue, turn: None, claims: 0 }
    }

    /// Gives the turn back.
    async fn pause(&mut self, app: &App) {
        if let Some(turn) = self.turn.take() {
            turn.end(app).await;
        }
    }

    /// Whether another may be granted, or have room kept. A turn is asked for only once there is a run for that.
    async fn may_grant(&mut self, room: &mut Room<'_>) -> Allowed {
        if self.turn.is_none() {
            let Some(turn) = room.turn(self.queue.org()).await else { return Allowed::Unknown };
            self.claims = turn.claims as usize;
            self.turn = Some(turn);
        }
        if self.claims > 0 { Allowed::Yes } else { Allowed::No }
    }
}

/// Which orgs a poll does not wait for after a look, for a while.
#[derive(Debug)]
pub(super) struct Passed {
    /// For whose run the host keeps room: of what others have, only that is for it whose turn is before that.
    kept_for: Option<OrgId>,
    /// Of those it is not known what may be granted.
    troubled: Vec<OrgId>,
    /// Whether the look ended before it had come to all that it wanted to.
    is_cut_short: bool,
}

impl Passed {
    /// Whether all were looked at, and are waited for.
    pub(super) fn is_none(&self) -> bool {
        self.kept_for.is_none() && self.troubled.is_empty() && !self.is_cut_short
    }

    /// Whether that org is not.
    pub(super) fn is(&self, app: &App, host: &Host, org: OrgId) -> bool {
        let is_behind = |kept| kept != org && !app.pools.is_before(host, org, kept);
        self.troubled.contains(&org) || self.kept_for.is_some_and(is_behind)
    }
}

/// What came of an org's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Granted,
    /// The host keeps room for one of its runs, which comes first.
    RoomKept,
    /// It has nothing for the host.
    Nothing,
}

/// Grants runs of the queues, of each in its order, as far as there is room and the limits of the orgs allow. Each run is
/// granted to the org whose turn it is then. Where the host keeps room for a run, nothing is granted beyond that.
pub(super) async fn lease_claim(room: &mut Room<'_>, queues: Vec<Queue>) -> Passed {
    let (app, host) = (room.app, room.host);
    let mut ways: Vec<Way> = queues.into_iter().map(Way::new).collect();
    let mut orgs: Vec<OrgId> = ways.iter().map(|way| way.queue.org()).collect();
    let (mut last, mut kept_for) = (None, None);
    let (begun, mut is_cut_short) = (Instant::now(), false);
    while room.is_left()
        && kept_for.is_none()
        && let Some(next) = app.pools.next(host, &orgs)
    {
        is_cut_short = begun.elapsed() >= GRANTING_MAX;
        if is_cut_short {
            break;
        }
        if let Some(before) = last.replace(next).filter(|before| *before != next) {
            ways[before].pause(app).await;
        }
        match claim_one(room, &mut ways[next]).await {
            Step::Granted => app.pools.granted(host, orgs[next]),
            Step::RoomKept => kept_for = Some(orgs[next]),
            Step::Nothing => {
                ways.remove(next).pause(app).await;
                orgs.remove(next);
                last = None;
            }
        }
    }
    for mut way in ways {
        way.pause(app).await;
    }
    Passed { kept_for, troubled: room.trouble.iter().map(|(org, _)| *org).collect(), is_cut_short }
}

/// Grants the next run of an org that is to be had.
async fn claim_one(room: &mut Room<'_>, way: &mut Way) -> Step {
    loop {
        while room.is_left()
            && let Some(offer) = way.queue.next(room.host, &room.free, room.app.now())
        {
            match way.may_grant(room).await {
                Allowed::Yes => {}
                Allowed::No => {
                    offer.leave();
                    return Step::Nothing;
                }
                // It is there for others.
                Allowed::Unknown => return Step::Nothing,
            }
            let tried = match offer.wants_room {
                true => room.keep_for(&offer.run).await,
                false => room.grant(&offer.run, grant::claim).await,
            };
            match tried {
                Tried::Granted => {
                    offer.settle();
                    way.claims -= 1;
                    return Step::Granted;
                }
                Tried::Kept => {
                    offer.settle();
                    return Step::RoomKept;
                }
                Tried::Lost => offer.lose(),
                Tried::Refused => {}
                Tried::Damaged => {
                    way.queue.pass_over(offer.run.id);
                    offer.settle();
                }
            }
        }
        if way.queue.keeps_room {
            // Nobody has to wait for a run that would not be granted.
            return if way.may_grant(room).await == Allowed::Yes { Step::RoomKept } else { Step::Nothing };
        }
        if !room.is_left() {
            return Step::Nothing;
        }
        match way.queue.go_on(room.app).await {
            Ok(true) => {}
            Ok(false) => return Step::Nothing,
            // What is granted to others, or was before, is told all the same.
            Err(error) => {
                room.trouble.push((way.queue.org(), error.into()));
                return Step::Nothing;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holm_api::{agent::Polled, runs::RunView};
    use holm_domain::{
        AgentId, RunId,
        limits::{ROOM_KEPT_AFTER, ROOM_KEPT_FOR},
    };
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    const GIB: u64 = 1 << 30;

    async fn queued(world: &World, memory_bytes: u64, priority: i32) -> RunId {
        let limits = json!({ "memory_bytes": memory_bytes });
        let spec = json!({ "root": { "kind": "host" }, "argv": ["true"], "limits": limits, "priority": priority });
        world.queue(spec).await
    }

    /// What `agent` is given that has so much memory left.
    async fn given(world: &World, agent: AgentId, memory_bytes: u64) -> Vec<RunId> {
        let free = Capacity { memory_bytes, ..world.poll().free };
        let poll = Poll { agent, free, ..world.poll() };
        let polled: Polled = world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
        polled.claimed.into_iter().map(|claimed| claimed.run).collect()
    }

    #[tokio::test]
    async fn a_large_run_is_not_put_off_by_small_ones_for_ever_and_costs_one_host() {
        let world = World::new().await;
        let (one, other) = (world.agent_id, world.another_agent().await);
        let large = queued(&world, 4 * GIB, 0).await;
        let small = [queued(&world, GIB, 0).await, queued(&world, GIB, 0).await, queued(&world, GIB, 0).await];
        assert_eq!(given(&world, one, GIB).await, small[..1], "it has not waited for long");
        world.clock.advance(ROOM_KEPT_AFTER);
        assert_eq!(given(&world, one, GIB).await, [], "the room is kept");
        let view: RunView = world.member().get(&format!("/v1/runs/{large}")).await.json(StatusCode::OK);
        assert_eq!(view.room_kept.map(|kept| kept.agent), Some(one));
        assert_eq!(given(&world, one, 2 * GIB).await, []);
        assert_eq!(given(&world, other, GIB).await, small[1..2], "others go on");
        let ahead = queued(&world, GIB, 10).await;
        assert_eq!(given(&world, one, 2 * GIB).await, [ahead], "what stands before it is granted");
        world.clock.advance(ROOM_KEPT_FOR);
        assert_eq!(given(&world, other, GIB).await, [], "nothing was heard of the host that kept it room");
        assert_eq!(given(&world, one, 5 * GIB).await, [large, small[2]]);
    }

    #[tokio::test]
    async fn a_priority_is_worth_as_many_minutes() {
        let world = World::new().await;
        let low = queued(&world, GIB, -5).await;
        world.clock.advance(std::time::Duration::from_secs(240));
        let plain = queued(&world, GIB, 0).await;
        let high = queued(&world, GIB, 10).await;
        world.clock.advance(std::time::Duration::from_secs(120));
        let late = queued(&world, GIB, 0).await;
        // Submitted at minutes 0, 4, 4, 6; they count as of 5, 4, -6, 6.
        assert_eq!(given(&world, world.agent_id, 64 * GIB).await, [high, plain, low, late]);
    }
}
