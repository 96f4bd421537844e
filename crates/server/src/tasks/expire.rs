//! Deletes the logs of runs that ended as long ago as logs are kept; the runs stay, and say so.
//!
//! What is decided comes from [`Run::delete_log`]; the compare-and-swap lets any number of servers delete at once, and the
//! one that keeps logs for the shortest time is the one that counts. Objects that outlive their rows are swept
//! ([`super::sweep`]).

use std::time::Duration;

use holm_domain::{UnixMicros, run::Run};
use holm_store::{Due, DuePlace, Error};

use crate::{app::App, problem::Failure, told::Told};

/// How many runs are looked at together.
const PAGE: u32 = 256;

/// Deletes every log that is older than `retention` now; returns how many. One whose run cannot be read is told, and
/// stands in nobody's way. A server that is to end leaves the rest to the next round.
pub async fn expire(app: &App, retention: Duration, told: &mut Told<DuePlace>) -> Result<u64, Failure> {
    let now = app.now();
    let mut deleted = 0;
    let mut after: Option<DuePlace> = None;
    loop {
        let page = app.store.logs_kept(now.minus(retention), after.as_ref(), PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        for Due { place, run } in page {
            if app.shutdown.is_cancelled() {
                return Ok(deleted);
            }
            match expire_one(app, retention, now, run).await {
                Ok(is_deleted) => deleted += u64::from(is_deleted),
                Err(error @ Error::Unavailable { .. }) => return Err(error.into()),
                // Somebody else deleted the log, or the run.
                Err(Error::Conflict { .. } | Error::NotFound { .. }) => {}
                Err(error) => told.tell(place.clone(), &error, "the log of a run cannot be deleted; it stays as it is"),
            }
            after = Some(place);
        }
        if is_last {
            return Ok(deleted);
        }
    }
}

async fn expire_one(
    app: &App,
    retention: Duration,
    now: UnixMicros,
    run: holm_store::Result<Run>,
) -> holm_store::Result<bool> {
    let run = run?;
    let Some(without) = run.delete_log(now, retention) else {
        app.store.log_keep(&run).await?;
        return Ok(false);
    };
    app.store.log_delete(run.version, &without, now).await?;
    tracing::info!(run = %run.id, "its log was deleted, as old as logs are kept");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;
    use holm_api::runs::RunView;
    use holm_domain::{ErrorCode, run::OutcomeKind};
    use holm_store::BlobKey;
    use http::StatusCode;

    use super::*;
    use crate::{
        config::LOG_RETENTION_MIN,
        http::follow::Source as _,
        ops::logs::{LogSource, stream::BatchSource},
        tasks::sweep::sweep,
        testing::World,
    };

    const DAY: Duration = Duration::from_secs(24 * 3_600);

    async fn expired(world: &World) -> u64 {
        expire(world.app(), DAY, &mut Told::default()).await.unwrap()
    }

    #[tokio::test]
    async fn a_log_is_deleted_a_time_after_the_end_and_its_run_stays() {
        let world = World::new().await;
        let [ended, live] = [world.claim_keeping_run().await, world.claim_run().await];
        for held in [ended, live] {
            world.append_log(held, 1, &["a\n", "b\n"]).await;
        }
        world.put_changes(ended, b"tar").await;
        world.clock.advance(3 * DAY);
        assert_eq!(expired(&world).await, 0, "neither has ended");
        world.finish(ended, 3).await;
        world.clock.advance(DAY - Duration::from_micros(1));
        assert_eq!(expired(&world).await, 0);
        world.clock.advance(Duration::from_micros(1));
        assert_eq!((expired(&world).await, expired(&world).await), (1, 0), "once");

        let path = format!("/v1/runs/{}", ended.run);
        let run: RunView = world.member().get(&path).await.json(StatusCode::OK);
        assert_eq!(run.logs_deleted_at, Some(world.clock.now()));
        assert_eq!(run.outcome.map(|outcome| outcome.kind), Some(OutcomeKind::Succeeded));
        assert_eq!(world.member().get(&format!("{path}/events")).await.status, StatusCode::OK);
        assert_eq!(world.member().get(&format!("{path}/changes")).await.status, StatusCode::OK, "not its changes");
        let other = format!("/v1/runs/{}/logs", live.run);
        assert_eq!(world.member().get(&other).await.status, StatusCode::OK);
        for query in ["logs", "logs/follow", "logs/batches", "logs/batches?follow=true", "logs/range?tail=1"] {
            let problem = world.member().get(&format!("{path}/{query}")).await.problem(ErrorCode::LogsDeleted);
            let words = [ended.run.to_string(), "2023-11-18T22:13:20Z".to_owned(), "--log-retention".to_owned()];
            assert!(words.iter().all(|word| problem.detail.contains(word)), "{problem}");
        }
        world.member().get(&format!("{path}/logs/search?text=a")).await.problem(ErrorCode::LogsDeleted);
        world.other_org().get(&format!("{path}/logs")).await.problem(ErrorCode::NotFound);
        assert_eq!(world.member().delete(&path).await.status, StatusCode::NO_CONTENT, "it can still be deleted");
    }

    #[tokio::test]
    async fn who_follows_a_log_that_is_deleted_is_not_told_that_it_is_complete() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.append_log(held, 1, &["a\n", "b\n"]).await;
        world.finish(held, 3).await;
        let run = world.app().store.run_get(world.org, held.run).await.unwrap().unwrap();
        let mut events = LogSource::new(world.org, held.run, 1);
        let mut batches = BatchSource::new(world.org, held.run, 0, Some(2));
        world.clock.advance(DAY);
        let without = run.delete_log(world.clock.now(), DAY).unwrap();
        world.app().store.log_delete(run.version, &without, world.clock.now()).await.unwrap();
        assert_eq!(events.step(world.app()).await.unwrap_err().code(), ErrorCode::LogsDeleted);
        assert_eq!(batches.step(world.app()).await.unwrap_err().code(), ErrorCode::LogsDeleted);
        // A reader that looked at the run before it was deleted, and at the log afterwards.
        let read = crate::ops::logs::read_on(world.app(), &run, 0, 1_000).await;
        assert_eq!(read.unwrap_err().code(), ErrorCode::LogsDeleted);
    }

    #[tokio::test]
    async fn what_a_late_writer_left_of_a_log_is_swept_and_the_changes_stay() {
        let world = World::new().await;
        let held = world.claim_keeping_run().await;
        world.put_changes(held, b"tar").await;
        world.finish(held, 1).await;
        world.clock.advance(DAY);
        assert_eq!(expired(&world).await, 1);
        let blobs = world.app().store.blobs();
        let objects = || async { blobs.list_of_run(world.org, held.run).try_collect::<Vec<_>>().await.unwrap() };
        assert_eq!(objects().await.len(), 1);
        let mut told = Told::default();
        assert_eq!(sweep(world.app(), &mut told).await.unwrap(), 0, "nothing was left");
        world.clock.advance(2 * DAY);
        assert_eq!(sweep(world.app(), &mut told).await.unwrap(), 0);
        let changes = BlobKey::run_changes(world.org, held.run, held.fence);
        assert_eq!(objects().await.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [changes]);
    }

    #[tokio::test]
    async fn more_than_a_page_goes_in_one_round() {
        let world = World::new().await;
        for _ in 0..PAGE + 10 {
            let id = world.queue_run().await;
            let cancelled = world.member().post(&format!("/v1/runs/{id}/cancel"), &serde_json::json!({})).await;
            assert_eq!(cancelled.status, StatusCode::OK);
        }
        world.clock.advance(DAY);
        assert_eq!(expired(&world).await, u64::from(PAGE) + 10);
    }

    #[tokio::test]
    async fn a_server_that_is_to_end_leaves_the_rest() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.finish(held, 1).await;
        world.clock.advance(DAY);
        world.app().shutdown.cancel();
        assert_eq!(expired(&world).await, 0);
    }

    #[tokio::test]
    async fn logs_are_not_kept_for_less_than_a_moment() {
        for (retention, is_good) in [(LOG_RETENTION_MIN, true), (LOG_RETENTION_MIN / 2, false), (Duration::ZERO, false)]
        {
            let config = crate::Config { log_retention: Some(retention), ..crate::Config::default() };
            let made = crate::Server::new(config, holm_store::Store::memory()).map(drop);
            assert_eq!(
                made.map_err(|refused| refused.field),
                if is_good { Ok(()) } else { Err("log_retention".to_owned()) }
            );
        }
    }
}
