//! `POST /agent/v1/runs/{id}/finish`: the end of a run.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{agent::FinishRun, problem::Problem};
use http::StatusCode;

use crate::{
    app::App,
    auth::{May, Serve},
    config::LEASES_BODY_BYTES_MAX,
    http::extract::{RunPath, Short},
    ops,
    problem::Failure,
};

/// Finish a run
///
/// The last act under a lease, refused while entries of the log are missing. Repeating it under the fence that ended the
/// run changes nothing.
#[utoipa::path(
    post, path = "/agent/v1/runs/{id}/finish", tag = "agent", operation_id = "run_finish",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    request_body = FinishRun,
    responses(
        (status = 204, description = "The run has ended."),
        (status = 409, description = "`stale_fence`, `agent_superseded`, `log_gap`", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "`too_large`: the result.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn finish(
    State(app): State<Arc<App>>,
    caller: May<Serve>,
    RunPath(id): RunPath,
    Short(body): Short<LEASES_BODY_BYTES_MAX, FinishRun>,
) -> Result<StatusCode, Failure> {
    ops::leases::run_finish(&app, &caller.token, id, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use holm_api::{
        agent::{HeldLease, LOG_GAP_FIELD},
        runs::RunView,
    };
    use holm_domain::{
        ErrorCode,
        run::{ExitStatus, Outcome, OutcomeKind, RunState, Usage},
    };
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    fn body(world: &World, held: HeldLease, next_log_seq: u64) -> FinishRun {
        let outcome = Outcome::exited(ExitStatus::Code(0));
        let (agent, instance) = (world.agent_id, world.instance);
        FinishRun { agent, instance, fence: held.fence, outcome, usage: None, result: None, next_log_seq }
    }

    #[tokio::test]
    async fn a_run_ends_once_its_log_is_complete() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/agent/v1/runs/{}/finish", held.run);
        world.append_log(held, 1, &["a\n"]).await;
        for missing in [1, 3] {
            let gap = world.agent().post(&path, &body(&world, held, missing)).await.problem(ErrorCode::LogGap);
            assert_eq!((gap.field.as_deref(), gap.value.as_deref()), (Some(LOG_GAP_FIELD), Some("2")));
        }
        let usage = Usage { cpu_user_us: Some(7), log_bytes: Some(0), ..Usage::default() };
        let result = Some(json!({"answer": 42}));
        let done = FinishRun { usage: Some(usage), result, ..body(&world, held, 2) };
        for _ in 0..2 {
            assert_eq!(world.agent().post(&path, &done).await.status, StatusCode::NO_CONTENT);
        }
        let shown = world.member().get(&format!("/v1/runs/{}", held.run)).await;
        let run: RunView = shown.json(StatusCode::OK);
        assert_eq!(run.usage, Some(usage));
        assert_eq!((run.state, run.result), (RunState::Ended, Some(json!({"answer": 42}))));
        assert_eq!(run.outcome.unwrap().kind, OutcomeKind::Succeeded);
        let other = FinishRun { outcome: Outcome::exited(ExitStatus::Code(1)), ..body(&world, held, 2) };
        world.agent().post(&path, &other).await.problem(ErrorCode::StaleFence);
    }

    #[tokio::test]
    async fn what_cannot_be_an_end_is_refused_and_changes_nothing() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/agent/v1/runs/{}/finish", held.run);
        let old = FinishRun { fence: 9, ..body(&world, held, 1) };
        world.agent().post(&path, &old).await.problem(ErrorCode::StaleFence);
        world.other_org_agent().post(&path, &body(&world, held, 1)).await.problem(ErrorCode::NotFound);
        let large = FinishRun { result: Some(json!("x".repeat(64 * 1024))), ..body(&world, held, 1) };
        world.agent().post(&path, &large).await.problem(ErrorCode::TooLarge);
        let signal = Outcome { exit: Some(ExitStatus::Signal(0)), ..Outcome::exited(ExitStatus::Code(1)) };
        for outcome in [signal, Outcome::lost("me"), Outcome { exit: None, ..Outcome::exited(ExitStatus::Code(0)) }] {
            let absurd = FinishRun { outcome, ..body(&world, held, 1) };
            world.agent().post(&path, &absurd).await.problem(ErrorCode::InvalidField);
        }
        let run: RunView = world.member().get(&format!("/v1/runs/{}", held.run)).await.json(StatusCode::OK);
        assert_eq!(run.state, RunState::Claimed);
    }
}
