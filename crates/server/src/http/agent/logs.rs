//! `POST /agent/v1/runs/{id}/logs`: append to the log.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    LOG_BATCH,
    agent::{Appended, Fenced},
    problem::Problem,
};
use http::HeaderMap;

use crate::{
    app::App,
    auth::speaker::Speaker,
    http::extract::{Body, Params, RunPath, media_type},
    ops,
    problem::Failure,
};

/// Append to the log
///
/// The body is one or more batches that follow each other. What was stored before is not stored again, so an append whose
/// answer was lost is simply repeated.
#[utoipa::path(
    post, path = "/agent/v1/runs/{id}/logs", tag = "agent", operation_id = "log_append",
    params(("id" = String, Path, description = "The run, as `run_…`."), Fenced),
    request_body(content = [u8], content_type = "application/vnd.holm.log-batch"),
    responses(
        (status = 200, description = "Everything below `next_seq` is stored.", body = Appended),
        (status = 409, description = "`stale_fence`, `agent_superseded`, `log_gap`", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn logs(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    RunPath(id): RunPath,
    Params(by): Params<Fenced>,
    headers: HeaderMap,
    Body(bytes): Body,
) -> Result<axum::Json<Appended>, Failure> {
    media_type(&headers, LOG_BATCH)?;
    Ok(axum::Json(ops::logs::log_append(&app, &speaker, id, by, bytes).await?))
}

#[cfg(test)]
mod tests {
    use holm_api::{
        agent::{HeldLease, LOG_GAP_FIELD},
        logs::LogPage,
    };
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::{World, batch};

    fn path(world: &World, held: HeldLease) -> String {
        world.fenced(held, "logs")
    }

    #[tokio::test]
    async fn appends_are_stored_exactly_once() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = path(&world, held);
        let send = |body: Vec<u8>| {
            let (path, agent) = (path.clone(), world.agent());
            async move { agent.send("POST", &path, LOG_BATCH, body).await }
        };
        let (one, two) = (batch(1, &["a\n", "b\n"]), batch(3, &["c\n"]));
        let appended: Appended = send(one.clone()).await.json(StatusCode::OK);
        assert_eq!(appended.next_seq, 3);
        assert_eq!(send(one.clone()).await.json::<Appended>(StatusCode::OK).next_seq, 3);
        let overlapping = [one, two].concat();
        assert_eq!(send(overlapping).await.json::<Appended>(StatusCode::OK).next_seq, 4);
        let gap = send(batch(6, &["f\n"])).await.problem(ErrorCode::LogGap);
        assert_eq!((gap.field.as_deref(), gap.value.as_deref()), (Some(LOG_GAP_FIELD), Some("4")), "{gap}");
        let page: LogPage = world.member().get(&format!("/v1/runs/{}/logs", held.run)).await.json(StatusCode::OK);
        let texts: String = page.entries.iter().filter_map(|entry| entry.text.clone()).collect();
        assert_eq!(texts, "a\nb\nc\n");
    }

    #[tokio::test]
    async fn only_the_holder_of_the_lease_appends() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let body = batch(1, &["a\n"]);
        let old = HeldLease { fence: 9, ..held };
        world.agent().send("POST", &path(&world, old), LOG_BATCH, body.clone()).await.problem(ErrorCode::StaleFence);
        let foreign = world.other_org_agent().send("POST", &path(&world, held), LOG_BATCH, body.clone()).await;
        foreign.problem(ErrorCode::NotFound);
        let another = world.another_agent().await;
        let stranger = path(&world, held).replace(&world.agent_id.to_string(), &another.to_string());
        world.agent().send("POST", &stranger, LOG_BATCH, body.clone()).await.problem(ErrorCode::StaleFence);
        world.member().send("POST", &path(&world, held), LOG_BATCH, body.clone()).await.problem(ErrorCode::Forbidden);
        world.finish(held, 1).await;
        world.agent().send("POST", &path(&world, held), LOG_BATCH, body).await.problem(ErrorCode::StaleFence);
    }

    #[tokio::test]
    async fn what_is_no_batch_is_refused() {
        let world = World::with_limits(|limits| limits.log_body_bytes_max = 1_000).await;
        let held = world.claim_run().await;
        let path = path(&world, held);
        let mut broken = batch(1, &["a\n"]);
        *broken.last_mut().unwrap() ^= 1;
        for body in [Vec::new(), b"hello".to_vec(), broken, [batch(1, &["a"]), batch(3, &["b"])].concat()] {
            world.agent().send("POST", &path, LOG_BATCH, body).await.problem(ErrorCode::InvalidRequest);
        }
        let text = world.agent().send("POST", &path, "text/plain", batch(1, &["a"])).await;
        text.problem(ErrorCode::InvalidRequest);
        world.agent().send("POST", &path, LOG_BATCH, vec![0; 1_001]).await.problem(ErrorCode::TooLarge);
        let without = format!("/agent/v1/runs/{}/logs", held.run);
        world.agent().send("POST", &without, LOG_BATCH, batch(1, &["a"])).await.problem(ErrorCode::InvalidField);
    }

    #[tokio::test]
    async fn without_room_nothing_is_taken_but_the_end_is() {
        let floor = |bytes| Some(crate::StorageFloor { dir: std::env::temp_dir(), bytes });
        let roomy = World::with_config(|config| config.storage = floor(1)).await;
        let held = roomy.claim_run().await;
        roomy.append_log(held, 1, &["a\n"]).await;
        let full = World::with_config(|config| config.storage = floor(u64::MAX)).await;
        let spec = serde_json::json!({"spec": {"root": {"kind": "host"}, "argv": ["true"]}});
        let problem = full.member().post("/v1/runs", &spec).await.problem(ErrorCode::StorageFull);
        assert!(problem.detail.contains("bytes are free"), "{problem}");
        // The run was taken by a server of the same store that has room.
        let held = roomy.claim_run().await;
        let app =
            App::new(crate::Config { storage: floor(u64::MAX), ..crate::Config::default() }, roomy.app().store.clone());
        assert_eq!(app.needs_room().unwrap_err().code(), ErrorCode::StorageFull);
        let by = Fenced { agent: roomy.agent_id, instance: roomy.instance, fence: held.fence };
        let token = roomy.agent_token().await;
        let refused = ops::logs::log_append(&app, &Speaker::of(&token), held.run, by, batch(1, &["a\n"]).into()).await;
        assert_eq!(refused.unwrap_err().code(), ErrorCode::StorageFull);
    }
}
