//! Moves log entries from many small rows into a few large blobs: when a log has grown, and when its run has ended. What
//! the store would not put into a blob at once ([`LOG_INLINE_BYTES`]) is not worth one later either: a short log stays in
//! its rows.
//!
//! Which logs are worth it is a hint in memory. A hint that is lost, because a server was killed, costs space and nothing
//! else: the log stays readable from its rows, and the next append that crosses the size hints again.

use holm_store::{LOG_INLINE_BYTES, LOG_SEGMENT_BYTES};

use crate::{app::App, problem::Failure, wakers::SealFrom};

/// Seals every log that is worth it now.
pub async fn seal(app: &App) -> Result<(), Failure> {
    while let Some(((org, run), from)) = app.wakers.take_sealable() {
        let bytes_min = match from {
            SealFrom::Full => LOG_SEGMENT_BYTES,
            SealFrom::Ended => LOG_INLINE_BYTES,
        };
        match app.store.log_seal(org, run, bytes_min).await {
            Ok(sealed) => tracing::debug!(%run, sealed.blobs, sealed.bytes, "sealed"),
            // The run was deleted in the meantime.
            Err(holm_store::Error::NotFound { .. }) => {}
            Err(error @ holm_store::Error::Unavailable { .. }) => {
                app.wakers.want_sealed(org, run, from);
                return Err(error.into());
            }
            // Trying again would not help, and must not keep other logs waiting.
            Err(error) => tracing::error!(%run, %error, "the log cannot be sealed; it stays as it is"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_log_is_wanted_when_its_run_ends_and_the_task_takes_it() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let wakers = &world.app().wakers;
        wakers.want_sealed(world.org, held.run, SealFrom::Full);
        world.finish(held, 1).await;
        assert_eq!(wakers.take_sealable(), Some(((world.org, held.run), SealFrom::Ended)));
        wakers.want_sealed(world.org, held.run, SealFrom::Ended);
        seal(world.app()).await.unwrap();
        assert_eq!(wakers.take_sealable(), None);
    }
}
