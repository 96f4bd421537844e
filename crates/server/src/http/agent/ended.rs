//! `POST /agent/v1/runs/{id}/ended`: the sandbox of a run has ended.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{agent::SandboxEnded, problem::Problem};
use http::StatusCode;

use crate::{
    app::App,
    auth::speaker::Speaker,
    config::LEASES_BODY_BYTES_MAX,
    http::extract::{RunPath, Short},
    ops,
    problem::Failure,
};

/// Report the end of a sandbox
///
/// Told before the rest of the output and the changes are stored. From then on the run is `finishing`: it has a deadline of
/// its own, and is never executed again. If its lease expires, it ends as was told here, and never as a success. Reporting
/// it again changes nothing.
#[utoipa::path(
    post, path = "/agent/v1/runs/{id}/ended", tag = "agent", operation_id = "run_sandbox_ended",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    request_body = SandboxEnded,
    responses(
        (status = 204, description = "It is recorded."),
        (status = 409, description = "`stale_fence`, `agent_superseded`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn ended(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    RunPath(id): RunPath,
    Short(body): Short<LEASES_BODY_BYTES_MAX, SandboxEnded>,
) -> Result<StatusCode, Failure> {
    ops::leases::run_sandbox_ended(&app, &speaker, id, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_api::{
        agent::{HeldLease, Renew, Renewed},
        runs::RunView,
    };
    use holm_domain::{
        ErrorCode,
        run::{ExitStatus, Outcome, OutcomeKind, Reason, RunState},
    };

    use super::*;
    use crate::{tasks::reap::reap, testing::World};

    fn body(world: &World, held: HeldLease, code: u8) -> SandboxEnded {
        let outcome = Outcome::exited(ExitStatus::Code(code));
        SandboxEnded { agent: world.agent_id, instance: world.instance, fence: held.fence, outcome }
    }

    async fn renewed(world: &World, held: HeldLease) -> bool {
        let body = Renew { agent: world.agent_id, instance: world.instance, leases: vec![held.into()] };
        let answer: Renewed = world.agent().post("/agent/v1/renew", &body).await.json(StatusCode::OK);
        answer.leases[0].ttl_ms.is_some()
    }

    async fn view(world: &World, held: HeldLease) -> RunView {
        world.member().get(&format!("/v1/runs/{}", held.run)).await.json(StatusCode::OK)
    }

    #[tokio::test]
    async fn an_upload_may_outlast_the_time_limit_and_is_not_executed_again() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/agent/v1/runs/{}/ended", held.run);
        for code in [0, 9] {
            assert_eq!(world.agent().post(&path, &body(&world, held, code)).await.status, StatusCode::NO_CONTENT);
        }
        assert_eq!(view(&world, held).await.state, RunState::Finishing);
        // The time limit of an hour and the overhead of a quarter are over long before the two hours of the upload.
        for _ in 0..8 * 60 {
            world.clock.advance(Duration::from_secs(14));
            assert!(renewed(&world, held).await);
            reap(world.app()).await.unwrap();
        }
        world.append_log(held, 1, &["the tail\n"]).await;
        world.clock.advance(Duration::from_secs(481));
        assert!(!renewed(&world, held).await, "not for ever");
        reap(world.app()).await.unwrap();
        let run = view(&world, held).await;
        let outcome = run.outcome.unwrap();
        assert_eq!((run.state, run.attempt), (RunState::Ended, 1), "never queued again");
        assert_eq!((outcome.kind, outcome.reason), (OutcomeKind::Lost, Some(Reason::ReportLost)));
        assert_eq!(outcome.exit, Some(ExitStatus::Code(0)), "what was told first is kept");
    }

    #[tokio::test]
    async fn what_cannot_be_an_end_is_refused() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/agent/v1/runs/{}/ended", held.run);
        let old = HeldLease { fence: 9, ..held };
        world.agent().post(&path, &body(&world, old, 0)).await.problem(ErrorCode::StaleFence);
        let lost = SandboxEnded { outcome: Outcome::lost("me"), ..body(&world, held, 0) };
        world.agent().post(&path, &lost).await.problem(ErrorCode::InvalidField);
        let mut liar = body(&world, held, 1);
        liar.outcome.kind = OutcomeKind::Succeeded;
        world.agent().post(&path, &liar).await.problem(ErrorCode::InvalidField);
        assert_eq!(view(&world, held).await.state, RunState::Claimed);
        world.finish(held, 1).await;
        assert_eq!(world.agent().post(&path, &body(&world, held, 0)).await.status, StatusCode::NO_CONTENT, "too late");
        assert_eq!(view(&world, held).await.outcome.unwrap().kind, OutcomeKind::Succeeded);
    }
}
