//! Takes what is found in a restored copy of a database: no lease of before counts any more.
//!
//! What always holds: it is done before the server serves, for every run that has not ended, so no agent's word under an old
//! fence is taken in between; done twice it harms nothing. Decisions come from [`grant::restored`]. A run that cannot be read
//! is told; nobody can claim it either.

use holm_domain::{OrgId, RunId, UnixMicros, lease::grant};
use holm_store::{Due, DuePlace};

use crate::{app::App, ops, problem::Failure, traces};

/// How many runs are looked for together.
const PAGE: u32 = 256;
/// How often a run is decided on that another server changes meanwhile.
const ATTEMPTS: u32 = 8;

/// Takes every run that has not ended as one of a restored copy; returns how many there are. What was signed before is good no
/// more.
pub async fn restored(app: &App) -> Result<usize, Failure> {
    ops::keys::keys_withdraw_all(app).await?;
    let runs = live(app).await?;
    for (org, id) in &runs {
        take(app, *org, *id).await?;
    }
    Ok(runs.len())
}

/// The runs that have not ended. All of them first: each that is taken has another place.
async fn live(app: &App) -> Result<Vec<(OrgId, RunId)>, Failure> {
    let mut found = Vec::new();
    let mut after: Option<DuePlace> = None;
    loop {
        let page = app.store.runs_due(UnixMicros(i64::MAX), after.as_ref(), PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        for Due { place, run } in page {
            match run {
                Ok(run) => found.push((run.org, run.id)),
                Err(error) => tracing::error!(cause = %error, "a run of the restored database cannot be read"),
            }
            after = Some(place);
        }
        if is_last {
            return Ok(found);
        }
    }
}

async fn take(app: &App, org: OrgId, id: RunId) -> Result<(), Failure> {
    for _ in 0..ATTEMPTS {
        let Some(run) = app.store.run_get(org, id).await? else { return Ok(()) };
        let Some(decision) = grant::restored(&run, app.now(), &app.config.lease) else { return Ok(()) };
        if ops::try_save(app, run.version, &decision).await?.is_some() {
            traces::saved(app, &run, &decision, None);
            return Ok(());
        }
    }
    let detail = format!("{id} is changed all the while: end the other servers on this database first");
    Err(Failure::new(holm_domain::ErrorCode::Unavailable, detail))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_domain::{
        ErrorCode,
        run::{OutcomeKind, RunState},
    };

    use super::*;
    use crate::{
        tasks::reap::reap,
        testing::{World, batch},
    };

    #[tokio::test]
    async fn what_was_signed_before_is_good_no_more() {
        let world = World::new().await;
        world.admin().post("/v1/keys/rotate", &serde_json::json!({})).await;
        let before = world.app().store.signing_keys().await.unwrap();
        assert!(before.len() == 2, "{before:?}");
        restored(world.app()).await.unwrap();
        let now = world.app().now();
        let after = world.app().store.signing_keys().await.unwrap();
        let verifying: Vec<_> = after.iter().filter(|key| key.times.verifies(now)).map(|key| key.times.id).collect();
        assert!(verifying.len() == 1 && before.iter().all(|key| !verifying.contains(&key.times.id)), "{after:?}");
    }

    #[tokio::test]
    async fn no_lease_of_before_counts_and_nothing_is_granted_until_all_have_run_out() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let waiting = world.queue_run().await;
        assert_eq!(restored(world.app()).await.unwrap(), 2);
        let store = &world.app().store;
        for fence in [held.fence, held.fence + 1] {
            let old = holm_api::agent::HeldLease { fence, ..held };
            let path = world.fenced(old, "logs");
            let answer = world.agent().send("POST", &path, holm_api::LOG_BATCH, batch(1, &["late"])).await;
            answer.problem(ErrorCode::StaleFence);
        }
        let pause = Duration::from_secs(35);
        for id in [held.run, waiting] {
            let run = store.run_get(world.org, id).await.unwrap().unwrap();
            assert_eq!((run.state, run.retry_at), (RunState::Queued, Some(world.clock.now().plus(pause))));
        }
        for id in [held.run, waiting] {
            let run = store.run_get(world.org, id).await.unwrap().unwrap();
            assert!(run.queue_deadline_at > world.clock.now().plus(pause), "its time in the queue begins then");
        }
        world.clock.advance(pause - Duration::from_millis(1));
        assert_eq!(reap(world.app()).await.unwrap(), 0);
        world.clock.advance(Duration::from_millis(1));
        assert_eq!(reap(world.app()).await.unwrap(), 2);
        let again = world.claim().await;
        assert_eq!(again.run, held.run);
        let restored_at = (world.clock.now().0 - 35_000_000) / 1_000_000;
        for fence in [again.fence, world.claim().await.fence] {
            assert_eq!(i64::try_from(fence).unwrap(), restored_at + 1, "a second restore is later");
        }
    }

    #[tokio::test]
    async fn what_was_asked_to_end_ends_and_what_has_ended_stays() {
        let world = World::new().await;
        let (ended, cancelled) = (world.claim_run().await, world.claim_run().await);
        world.finish(ended, 1).await;
        world.member().post(&format!("/v1/runs/{}/cancel", cancelled.run), &serde_json::json!({})).await;
        let run = async |id| world.app().store.run_get(world.org, id).await.unwrap().unwrap();
        let before = run(ended.run).await;
        assert_eq!(restored(world.app()).await.unwrap(), 1);
        assert_eq!(run(ended.run).await, before);
        assert_eq!(run(cancelled.run).await.outcome.unwrap().kind, OutcomeKind::Cancelled);
    }
}
