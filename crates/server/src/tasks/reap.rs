//! Ends what is overdue: leases that expired, runs whose time in the queue is over, pauses after a lease, and of hosts that
//! could not make a sandbox (SPEC L4).
//!
//! Every run that has not ended has a deadline, and this task is the one that looks after it. Decisions come from
//! [`holm_domain::lease::grant::expire`], [`Run::give_up`], [`Run::end_pause`] and [`Run::reconsider`]; the compare-and-swap
//! lets any number of servers reap at once.
//!
//! What the time of day did before the server started is not known. So it takes nothing away before every lease has run out
//! that somebody may hold ([`App::takes_away_from`]), and begins with what an earlier time of day left too far ahead.

use holm_domain::{
    UnixMicros,
    lease::grant,
    run::{Decision, Run},
};
use holm_store::{Due, DuePlace, Error};

use crate::{app::App, ops, problem::Failure, told::Told, traces};

/// How many runs are looked at together.
const PAGE: u32 = 256;

/// Looks after every run that is overdue now; returns how many it changed.
#[cfg(test)]
pub async fn reap(app: &App) -> Result<usize, Failure> {
    reap_telling(app, &mut Told::default()).await
}

/// Looks after every run that is overdue now; returns how many it changed. One that cannot be read or saved is told, and
/// stands in nobody's way.
pub async fn reap_telling(app: &App, told: &mut Told<DuePlace>) -> Result<usize, Failure> {
    let (now, config) = (app.now(), &app.config.lease);
    let decide = |run: &Run, now| {
        // To ask a host again that failed takes nothing from anybody.
        if now < app.takes_away_from {
            return run.reconsider(now);
        }
        let overdue = grant::expire(run, now, config).or_else(|| run.give_up(now));
        overdue.or_else(|| run.end_pause(now)).or_else(|| run.reconsider(now))
    };
    look_after(app, now, told, decide).await
}

/// Brings nearer every deadline that was written by a clock that has been set back since; returns how many there were.
pub async fn bring_nearer(app: &App, told: &mut Told<DuePlace>) -> Result<usize, Failure> {
    let config = &app.config.lease;
    look_after(app, UnixMicros(i64::MAX), told, |run, now| grant::bring_nearer(run, now, config)).await
}

/// Decides on every run whose deadline is at `until` or before.
async fn look_after(
    app: &App,
    until: UnixMicros,
    told: &mut Told<DuePlace>,
    decide: impl Fn(&Run, UnixMicros) -> Option<Decision>,
) -> Result<usize, Failure> {
    let mut changed = 0;
    let mut after: Option<DuePlace> = None;
    loop {
        let page = app.store.runs_due(until, after.as_ref(), PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        for Due { place, run } in page {
            match look_after_one(app, run, &decide).await {
                Ok(is_changed) => changed += usize::from(is_changed),
                Err(error @ Error::Unavailable { .. }) => return Err(error.into()),
                Err(Error::NotFound { .. }) => {}
                Err(error) => told.tell(
                    place.clone(),
                    &error,
                    "an overdue run cannot be looked after; it stays as it is until its row is repaired",
                ),
            }
            after = Some(place);
        }
        if is_last {
            return Ok(changed);
        }
    }
}

async fn look_after_one(
    app: &App,
    run: holm_store::Result<Run>,
    decide: impl Fn(&Run, UnixMicros) -> Option<Decision>,
) -> holm_store::Result<bool> {
    let run = run?;
    let Some(decision) = decide(&run, app.now()) else { return Ok(false) };
    let is_changed = ops::try_save(app, run.version, &decision).await?.is_some();
    if is_changed {
        traces::saved(app, &run, &decision, None);
        let (fence, state, trace_id) = (run.fence, decision.run.state.as_str(), traces::logged(&decision.run));
        tracing::info!(run = %run.id, fence, state, trace_id, "overdue");
    }
    Ok(is_changed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_api::agent::Polled;
    use holm_domain::run::{OutcomeKind, Reason, RunState};
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    async fn run(world: &World, id: holm_domain::RunId) -> Run {
        world.app().store.run_get(world.org, id).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_lease_is_taken_away_after_its_margin_and_not_before() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.clock.advance(Duration::from_millis(34_999));
        assert_eq!(reap(world.app()).await.unwrap(), 0);
        world.clock.advance(Duration::from_millis(1));
        assert_eq!(reap(world.app()).await.unwrap(), 1);
        assert_eq!(run(&world, held.run).await.state, RunState::Queued);
        let again = world.claim().await;
        assert_eq!((again.run, again.fence), (held.run, 2), "the fence grows with every claim");
        assert_eq!(reap(world.app()).await.unwrap(), 0, "it comes to rest");
    }

    #[tokio::test]
    async fn what_comes_back_pauses_longer_each_time() {
        let world = World::with_config(|config| config.lease.retry_pause = Duration::from_secs(10)).await;
        let id = world.queue_run().await;
        let nothing = async || {
            let polled: Polled = world.agent().post("/agent/v1/poll", &world.poll()).await.json(StatusCode::OK);
            polled.claimed.is_empty()
        };
        for pause in [10, 20] {
            assert_eq!(world.claim().await.run, id);
            world.clock.advance(Duration::from_secs(35));
            assert_eq!(reap(world.app()).await.unwrap(), 1);
            assert_eq!(run(&world, id).await.retry_at, Some(world.clock.now().plus(Duration::from_secs(pause))));
            world.clock.advance(Duration::from_secs(pause) - Duration::from_millis(1));
            assert_eq!(reap(world.app()).await.unwrap(), 0);
            assert!(nothing().await, "it pauses for {pause} s");
            world.clock.advance(Duration::from_millis(1));
            assert_eq!(reap(world.app()).await.unwrap(), 1);
        }
        assert_eq!(world.claim().await.run, id);
    }

    #[tokio::test]
    async fn a_wait_that_is_shorter_than_the_pause_begins_after_it() {
        let world = World::with_config(|config| config.lease.retry_pause = Duration::from_secs(10)).await;
        let spec = json!({ "root": { "kind": "host" }, "argv": ["true"], "queue_timeout_ms": 1_000 });
        let id = world.queue(spec).await;
        assert_eq!(world.claim().await.run, id);
        for pause in [35, 10] {
            world.clock.advance(Duration::from_secs(pause));
            assert_eq!(reap(world.app()).await.unwrap(), 1);
        }
        assert_eq!(world.claim().await.run, id);
    }

    #[tokio::test]
    async fn what_expires_too_often_is_lost_and_what_waits_too_long_is_given_up() {
        let world = World::new().await;
        let id = world.queue_run().await;
        for _ in 0..3 {
            assert_eq!(world.claim().await.run, id);
            world.clock.advance(Duration::from_secs(35));
            assert_eq!(reap(world.app()).await.unwrap(), 1);
        }
        assert_eq!(run(&world, id).await.outcome.unwrap().kind, OutcomeKind::Lost);
        let waiting = world.queue_run().await;
        world.clock.advance(Duration::from_secs(24 * 3_600));
        assert_eq!(reap(world.app()).await.unwrap(), 1);
        assert_eq!(run(&world, waiting).await.outcome.unwrap().reason, Some(Reason::QueueDeadline));
    }

    #[tokio::test]
    async fn more_than_a_page_is_reaped_in_one_round() {
        let world = World::new().await;
        for _ in 0..PAGE + 10 {
            world.queue_run().await;
        }
        world.clock.advance(Duration::from_secs(25 * 3_600));
        assert_eq!(reap(world.app()).await.unwrap(), PAGE as usize + 10);
    }

    #[tokio::test]
    async fn a_cancelled_run_whose_agent_vanished_ends_as_cancelled() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.member().post(&format!("/v1/runs/{}/cancel", held.run), &json!({})).await;
        world.clock.advance(Duration::from_secs(35));
        assert_eq!(reap(world.app()).await.unwrap(), 1);
        assert_eq!(run(&world, held.run).await.outcome.unwrap().kind, OutcomeKind::Cancelled);
    }
}
