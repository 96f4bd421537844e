//! `PUT /agent/v1/runs/{id}/changes`: upload the archive of changes.

use std::sync::Arc;

use axum::extract::{Request, State};
use holm_api::{TAR, agent::Fenced, problem::Problem};
use holm_domain::ErrorCode;
use http::{StatusCode, header::CONTENT_LENGTH};

use crate::{
    app::App,
    auth::speaker::Speaker,
    http::extract::{Params, RunPath, media_type},
    ops,
    problem::Failure,
};

/// Upload the changes
///
/// Stored as a whole or not at all; uploading again under the same lease replaces it.
#[utoipa::path(
    put, path = "/agent/v1/runs/{id}/changes", tag = "agent", operation_id = "changes_put",
    params(("id" = String, Path, description = "The run, as `run_…`."), Fenced),
    request_body(content = [u8], content_type = "application/x-tar"),
    responses(
        (status = 204, description = "It is stored."),
        (status = 409, description = "`stale_fence`, `agent_superseded`; `conflict`: the run keeps no changes.", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn changes(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    RunPath(id): RunPath,
    Params(by): Params<Fenced>,
    request: Request,
) -> Result<StatusCode, Failure> {
    media_type(request.headers(), TAR)?;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let max = app.config.limits.changes_bytes_max;
    if let Some(length) = announced.filter(|length| *length > max) {
        let detail = format!("an archive of changes may have at most {max} bytes");
        return Err(Failure::new(ErrorCode::TooLarge, detail).at("content-length", length));
    }
    ops::changes::changes_put(&app, &speaker, id, by, request.into_body().into_data_stream()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use bytes::Bytes;
    use futures_util::{StreamExt as _, TryStreamExt as _, stream};
    use holm_api::agent::HeldLease;

    use super::*;
    use crate::testing::World;

    fn path(world: &World, held: HeldLease) -> String {
        world.fenced(held, "changes")
    }

    async fn blobs(world: &World, held: HeldLease) -> usize {
        let listed: Vec<_> = world.app().store.blobs().list_of_run(world.org, held.run).try_collect().await.unwrap();
        listed.len()
    }

    #[tokio::test]
    async fn only_the_holder_uploads_and_within_the_limit() {
        let world = World::with_limits(|limits| limits.changes_bytes_max = 100).await;
        let held = world.claim_keeping_run().await;
        let put = |path: String, body: Vec<u8>| {
            let agent = world.agent();
            async move { agent.send("PUT", &path, TAR, body).await }
        };
        put(path(&world, HeldLease { fence: 9, ..held }), vec![0; 10]).await.problem(ErrorCode::StaleFence);
        put(path(&world, held), vec![0; 101]).await.problem(ErrorCode::TooLarge);
        let pieces = stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 10]))));
        let unannounced = world.agent().send_body("PUT", &path(&world, held), TAR, Body::from_stream(pieces)).await;
        unannounced.problem(ErrorCode::TooLarge);
        let foreign = world.other_org_agent().send("PUT", &path(&world, held), TAR, vec![0; 10]).await;
        foreign.problem(ErrorCode::NotFound);
        assert_eq!(blobs(&world, held).await, 0, "nothing of what was refused is left");
        assert_eq!(put(path(&world, held), vec![0; 100]).await.status, StatusCode::NO_CONTENT);
        assert_eq!(blobs(&world, held).await, 1);
    }

    #[tokio::test]
    async fn an_upload_that_breaks_off_or_stalls_leaves_nothing() {
        let world = World::with_limits(|limits| limits.upload_idle_timeout = Duration::from_millis(20)).await;
        let held = world.claim_keeping_run().await;
        let first = || stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"abc")) });
        let broken = first().chain(stream::once(async { Err(std::io::Error::other("cut")) }));
        let answer = world.agent().send_body("PUT", &path(&world, held), TAR, Body::from_stream(broken)).await;
        answer.problem(ErrorCode::InvalidRequest);
        let stalled = first().chain(stream::pending());
        let answer = world.agent().send_body("PUT", &path(&world, held), TAR, Body::from_stream(stalled)).await;
        answer.problem(ErrorCode::DeadlineExceeded);
        assert_eq!(blobs(&world, held).await, 0);
    }

    #[tokio::test]
    async fn an_upload_ends_with_its_token() {
        let world = World::new().await;
        let held = world.claim_keeping_run().await;
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"abc")) });
        let body = Body::from_stream(first.chain(stream::pending()));
        let (agent, path) = (world.agent(), path(&world, held));
        let begun = tokio::time::Instant::now();
        let (answer, ()) = tokio::join!(agent.send_body("PUT", &path, TAR, body), world.revoke_agent_token());
        answer.problem(ErrorCode::Unauthenticated);
        assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
        assert_eq!(blobs(&world, held).await, 0);
    }

    #[tokio::test]
    async fn an_upload_that_ends_after_its_run_takes_nothing_away() {
        let world = World::new().await;
        let held = world.claim_keeping_run().await;
        let (ended, has_ended) = tokio::sync::oneshot::channel::<()>();
        let rest = stream::once(async move {
            has_ended.await.expect("it is said");
            Ok::<_, std::io::Error>(Bytes::from_static(b"def"))
        });
        let late = Body::from_stream(stream::once(async { Ok(Bytes::from_static(b"abc")) }).chain(rest));
        let (agent, path) = (world.agent(), path(&world, held));
        // The agent was started again meanwhile, and has sent the archive of the same attempt to its end.
        let again = async {
            let whole = world.agent().send("PUT", &path, TAR, b"abcdef".to_vec()).await;
            assert_eq!(whole.status, StatusCode::NO_CONTENT);
            world.finish(held, 1).await;
            ended.send(()).expect("it is heard");
        };
        let (answer, ()) = tokio::join!(agent.send_body("PUT", &path, TAR, late), again);
        answer.problem(ErrorCode::StaleFence);
        let shown = world.member().get(&format!("/v1/runs/{}/changes", held.run)).await;
        assert_eq!((shown.status, &shown.body[..]), (StatusCode::OK, &b"abcdef"[..]));
    }

    #[tokio::test]
    async fn a_run_that_keeps_no_changes_takes_none() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let answer = world.agent().send("PUT", &path(&world, held), TAR, vec![0; 10]).await;
        let problem = answer.problem(ErrorCode::Conflict);
        assert_eq!(problem.field.as_deref(), Some("spec.work_dir.keep_changes"), "{problem}");
        assert_eq!(blobs(&world, held).await, 0);
    }
}
