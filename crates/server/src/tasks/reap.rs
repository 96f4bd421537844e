//! Ends what is overdue: leases that expired, runs whose time in the queue is over (SPEC L4).
//!
//! Every run that has not ended has a deadline, and this task is the one that looks after it. Decisions come from
//! [`holm_domain::lease::grant::expire`] and [`Run::give_up`]; the compare-and-swap lets any number of servers reap at once.

use holm_domain::run::{Decision, Run};

use crate::{app::App, ops, problem::Failure};

/// How many overdue runs are looked at together.
const PAGE: u32 = 256;

/// Looks after every run that is overdue now; returns how many it changed.
pub async fn reap(app: &App) -> Result<usize, Failure> {
    let mut reaped = 0;
    loop {
        let due = app.store.runs_due(app.now(), PAGE).await?;
        let mut changed = 0;
        for run in &due {
            let Some(decision) = decide(app, run) else { continue };
            if ops::save(app, run.version, &decision).await?.is_some() {
                tracing::info!(run = %run.id, state = decision.run.state.as_str(), "overdue");
                changed += 1;
            }
        }
        reaped += changed;
        // A full page of which something was changed: there may be more behind it.
        if due.len() < PAGE as usize || changed == 0 {
            return Ok(reaped);
        }
    }
}

fn decide(app: &App, run: &Run) -> Option<Decision> {
    let (now, config) = (app.now(), &app.config.lease);
    holm_domain::lease::grant::expire(run, now, config).or_else(|| run.give_up(now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_domain::run::{OutcomeKind, Reason, RunState};
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
