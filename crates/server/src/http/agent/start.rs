//! `POST /agent/v1/runs/{id}/start`: the command of a run was started.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{agent::StartRun, problem::Problem};
use http::StatusCode;

use crate::{
    app::App,
    auth::speaker::Speaker,
    config::LEASES_BODY_BYTES_MAX,
    http::extract::{RunPath, Short},
    ops,
    problem::Failure,
};

/// Report a start
///
/// Reporting it again under the same lease changes nothing.
#[utoipa::path(
    post, path = "/agent/v1/runs/{id}/start", tag = "agent", operation_id = "run_start",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    request_body = StartRun,
    responses(
        (status = 204, description = "It is recorded."),
        (status = 409, description = "`stale_fence`, `agent_superseded`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn start(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    RunPath(id): RunPath,
    Short(body): Short<LEASES_BODY_BYTES_MAX, StartRun>,
) -> Result<StatusCode, Failure> {
    ops::leases::run_start(&app, &speaker, id, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use holm_api::runs::RunView;
    use holm_domain::{
        ErrorCode,
        run::{RunState, SandboxInfo},
    };

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_start_is_recorded_once_and_only_under_the_lease() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/agent/v1/runs/{}/start", held.run);
        let sandbox = SandboxInfo {
            agent: world.agent_id,
            runtime: "process".into(),
            image_digest: None,
            unenforced: vec!["limits.memory: no cgroup".into()],
        };
        let body = StartRun { instance: world.instance, fence: held.fence, sandbox };
        world.agent().post(&path, &StartRun { fence: 9, ..body.clone() }).await.problem(ErrorCode::StaleFence);
        let stranger = SandboxInfo { agent: world.another_agent().await, ..body.sandbox.clone() };
        world.agent().post(&path, &StartRun { sandbox: stranger, ..body.clone() }).await.problem(ErrorCode::StaleFence);
        world.other_org_agent().post(&path, &body).await.problem(ErrorCode::NotFound);
        let before: RunView = world.member().get(&format!("/v1/runs/{}", held.run)).await.json(StatusCode::OK);
        assert_eq!(before.state, RunState::Claimed, "what is refused changes nothing");
        for _ in 0..2 {
            assert_eq!(world.agent().post(&path, &body).await.status, StatusCode::NO_CONTENT);
        }
        let run: RunView = world.member().get(&format!("/v1/runs/{}", held.run)).await.json(StatusCode::OK);
        assert_eq!((run.state, run.sandbox), (RunState::Running, Some(body.sandbox)));
        let events: holm_api::runs::EventPage =
            world.member().get(&format!("/v1/runs/{}/events", held.run)).await.json(StatusCode::OK);
        assert_eq!(events.events.len(), 3, "queued, claimed, started");
    }
}
