//! `POST /agent/v1/runs/{id}/finish`: the end of a run.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{agent::FinishRun, problem::Problem};
use http::StatusCode;

use crate::{
    app::App,
    auth::speaker::Speaker,
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
    speaker: Speaker,
    RunPath(id): RunPath,
    Short(body): Short<LEASES_BODY_BYTES_MAX, FinishRun>,
) -> Result<StatusCode, Failure> {
    ops::leases::run_finish(&app, &speaker, id, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use holm_api::{
        agent::{HeldLease, LOG_GAP_FIELD, Poll, Polled, StartRun},
        runs::RunView,
    };
    use holm_domain::{
        AgentId, ErrorCode,
        limits::{HOST_FAILURES_MAX, RETRY_PAUSE_MAX},
        run::{ExitStatus, Outcome, OutcomeKind, Reason, RunState, SandboxInfo, Usage},
    };
    use serde_json::json;
    use std::time::Duration;

    use super::*;
    use crate::testing::World;

    fn body(world: &World, held: HeldLease, next_log_seq: u64) -> FinishRun {
        let outcome = Outcome::exited(ExitStatus::Code(0));
        let (agent, instance) = (world.agent_id, world.instance);
        FinishRun { agent, instance, fence: held.fence, outcome, usage: None, result: None, next_log_seq }
    }

    async fn host_fails(world: &World, agent: AgentId, held: HeldLease) {
        let outcome = Outcome::failed(Reason::HostFailed, "no room");
        let body = FinishRun { agent, outcome, ..body(world, held, 1) };
        let path = format!("/agent/v1/runs/{}/finish", held.run);
        assert_eq!(world.agent().post(&path, &body).await.status, StatusCode::NO_CONTENT);
    }

    /// What is granted to `agent` when it asks.
    async fn granted(world: &World, agent: AgentId) -> Option<HeldLease> {
        let polled = world.agent().post("/agent/v1/poll", &Poll { agent, ..world.poll() }).await;
        let polled: Polled = polled.json(StatusCode::OK);
        polled.claimed.first().map(|claimed| HeldLease { run: claimed.run, fence: claimed.fence, cancel: None })
    }

    #[tokio::test]
    async fn what_a_host_cannot_make_goes_to_another_at_once_and_back_to_it_after_a_pause() {
        let world = World::with_config(|config| config.lease.retry_pause = Duration::from_secs(1)).await;
        let (first, second) = (world.agent_id, world.another_agent().await);
        let held = world.claim_run().await;
        host_fails(&world, first, held).await;
        let shown = world.member().get(&format!("/v1/runs/{}", held.run)).await;
        let view: RunView = shown.json(StatusCode::OK);
        assert_eq!((view.state, view.agent, view.passed_over[0].agent), (RunState::Queued, None, first));
        assert!(granted(&world, first).await.is_none(), "it would fail again at once");
        let again = granted(&world, second).await.unwrap();
        assert_eq!((again.run, again.fence), (held.run, held.fence + 1));
        host_fails(&world, second, again).await;
        assert!(granted(&world, second).await.is_none());
        world.clock.advance(Duration::from_secs(1));
        crate::tasks::reap::reap(world.app()).await.unwrap();
        assert!(granted(&world, second).await.is_none(), "its pause is longer: the run has failed twice");
        let mut attempt = 2;
        let view = loop {
            let next = granted(&world, first).await.unwrap();
            attempt += 1;
            host_fails(&world, first, next).await;
            world.clock.advance(RETRY_PAUSE_MAX);
            crate::tasks::reap::reap(world.app()).await.unwrap();
            let view: RunView = world.member().get(&format!("/v1/runs/{}", held.run)).await.json(StatusCode::OK);
            assert_eq!(view.attempt, attempt);
            if view.state == RunState::Ended {
                break view;
            }
        };
        assert_eq!((attempt, view.passed_over), (HOST_FAILURES_MAX + 1, Vec::new()));
        assert_eq!(view.outcome.unwrap().reason, Some(Reason::HostFailed), "it was tried as often as is allowed");
    }

    #[tokio::test]
    async fn what_was_started_or_is_to_end_is_not_tried_again() {
        let world = World::new().await;
        let started = world.claim_run().await;
        let sandbox = SandboxInfo {
            agent: world.agent_id,
            runtime: "process".into(),
            image_digest: None,
            unenforced: Vec::new(),
        };
        let start = StartRun { instance: world.instance, fence: started.fence, sandbox };
        let path = format!("/agent/v1/runs/{}/start", started.run);
        assert_eq!(world.agent().post(&path, &start).await.status, StatusCode::NO_CONTENT);
        let cancelled = world.claim_run().await;
        let cancel = json!({ "kill": true });
        let asked = world.member().post(&format!("/v1/runs/{}/cancel", cancelled.run), &cancel).await;
        assert!(asked.status.is_success(), "{asked:?}");
        for (held, reason) in [(started, Reason::HostFailed), (cancelled, Reason::Cancelled)] {
            host_fails(&world, world.agent_id, held).await;
            let view: RunView = world.member().get(&format!("/v1/runs/{}", held.run)).await.json(StatusCode::OK);
            assert_eq!((view.state, view.outcome.unwrap().reason), (RunState::Ended, Some(reason)));
        }
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
