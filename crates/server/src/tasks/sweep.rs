//! Removes the objects of runs that were deleted, and of logs that were.
//!
//! The store notes with each deletion that the objects are doomed, and keeps the note until nobody can be writing one any
//! more. This task works through the notes; whatever broke off, wherever, is done by the next round.

use std::time::Duration;

use holm_domain::{RunId, UnixMicros};
use holm_store::{DoomedPart, Error};

use crate::{app::App, problem::Failure, told::Told};

/// How many of them are looked at together.
const PAGE: u32 = 256;
/// What is waited beyond the longest upload before the last sweep of a run.
const GRACE_BEYOND_UPLOADS: Duration = Duration::from_secs(3_600);

/// Removes every doomed object that is due now; returns how many there were.
pub async fn sweep(app: &App, told: &mut Told<RunId>) -> Result<u64, Failure> {
    let (now, mut removed) = (app.now(), 0);
    for part in DoomedPart::ALL {
        removed += sweep_part(app, part, now, told).await?;
    }
    Ok(removed)
}

async fn sweep_part(app: &App, part: DoomedPart, now: UnixMicros, told: &mut Told<RunId>) -> Result<u64, Failure> {
    let grace = app.config.limits.upload_timeout + GRACE_BEYOND_UPLOADS;
    let (mut removed, mut after) = (0, None);
    loop {
        let page = app.store.doomed_due(part, now, after.as_ref(), PAGE).await?;
        for doomed in &page {
            match app.store.doomed_sweep(doomed, now, grace).await {
                Ok(count) => removed += count,
                Err(error @ Error::Unavailable { .. }) => return Err(error.into()),
                Err(error) => told.tell(doomed.run, &error, "objects of a deleted run or log cannot be removed"),
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after = Some(*last),
            _ => return Ok(removed),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use holm_store::BlobKey;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn what_a_deletion_or_a_late_writer_left_is_removed_until_nobody_can_be_writing() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.finish(held, 1).await;
        let deleted = world.member().delete(&format!("/v1/runs/{}", held.run)).await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT);
        let late = |fence| {
            let (blobs, key) = (world.app().store.blobs(), BlobKey::run_changes(world.org, held.run, fence));
            async move { blobs.put(&key, Bytes::from_static(b"late")).await.unwrap() }
        };
        let mut told = Told::default();
        late(1).await;
        assert_eq!(sweep(world.app(), &mut told).await.unwrap(), 1);
        late(2).await;
        assert_eq!(sweep(world.app(), &mut told).await.unwrap(), 0, "not at every round");
        world.clock.advance(Duration::from_secs(2 * 3_600));
        assert_eq!(sweep(world.app(), &mut told).await.unwrap(), 1);
        let left = world.app().store.doomed_due(DoomedPart::Run, world.clock.now(), None, 10).await.unwrap();
        assert_eq!(left, []);
    }
}
