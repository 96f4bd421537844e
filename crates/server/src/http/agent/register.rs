//! `POST /agent/v1/register`: an agent says who it is and what its host can do.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    agent::{Register, Registered},
    problem::Problem,
};

use crate::{app::App, auth::speaker::Speaker, config::HELD_FREE_BYTES, http::extract::Short, ops, problem::Failure};

/// Register an agent
///
/// Repeating it brings the record of the host up to date. The newest process that registers is heard from then on, and
/// none before it. The answer says by which times leases work here.
#[utoipa::path(
    post, path = "/agent/v1/register", tag = "agent", operation_id = "agent_register",
    request_body = Register,
    responses(
        (status = 200, description = "The times of leases.", body = Registered),
        (status = 403, description = "`forbidden`: the agent speaks with another token or key; `host_revoked`: the key with which it speaks was revoked.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: the id cannot be used; `agent_superseded`: a newer process has registered.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn register(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    Short(body): Short<HELD_FREE_BYTES, Register>,
) -> Result<axum::Json<Registered>, Failure> {
    Ok(axum::Json(ops::hosts::agent_register(&app, &speaker, body).await?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_api::agent::{Poll, Renew};
    use holm_domain::{ErrorCode, InstanceId, lease::Claimant};
    use http::StatusCode;
    use uuid::Uuid;

    use super::*;
    use crate::testing::World;

    fn process(number: u128) -> InstanceId {
        InstanceId::from_uuid(Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn a_process_that_was_superseded_can_do_nothing_and_its_successor_takes_over() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let newer = Register { instance: process(2), after: Some(world.instance), ..world.registration() };
        world.agent().post("/agent/v1/register", &newer).await.json::<Registered>(StatusCode::OK);
        let by = Claimant { agent: world.agent_id, instance: world.instance };
        world.every_operation(&world.agent(), by, held, ErrorCode::AgentSuperseded).await;
        let late = world.agent().post("/agent/v1/register", &world.registration()).await;
        let problem = late.problem(ErrorCode::AgentSuperseded);
        assert_eq!(problem.value, Some(world.instance.to_string()));
        let renew = Renew { agent: world.agent_id, instance: process(2), leases: vec![held.into()] };
        let renewed: holm_api::agent::Renewed =
            world.agent().post("/agent/v1/renew", &renew).await.json(StatusCode::OK);
        assert_eq!(renewed.leases[0].ttl_ms, Some(30_000), "it found the fence in the folder");
    }

    #[tokio::test]
    async fn the_first_token_speaks_for_an_agent_and_another_only_after_its_end() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let stranger = world.second_agent().await;
        let by = Claimant { agent: world.agent_id, instance: world.instance };
        world.every_operation(&stranger, by, held, ErrorCode::Forbidden).await;
        let body = Register { instance: process(2), ..world.registration() };
        let problem = stranger.post("/agent/v1/register", &body).await.problem(ErrorCode::Forbidden);
        assert_eq!(problem.field.as_deref(), Some("agent"));
        assert!(problem.detail.contains("tok_") && problem.detail.contains("revoke"), "{problem}");
        world.revoke_agent_token().await;
        stranger.post("/agent/v1/register", &body).await.json::<Registered>(StatusCode::OK);
    }

    #[tokio::test]
    async fn a_claim_whose_answer_was_lost_goes_to_nobody_but_the_process_that_asked() {
        let world = World::new().await;
        let lost = world.claim_run().await;
        let newer = Register { instance: process(2), ..world.registration() };
        world.agent().post("/agent/v1/register", &newer).await.json::<Registered>(StatusCode::OK);
        let poll = Poll { instance: process(2), ..world.poll() };
        for _ in 0..10 {
            world.clock.advance(Duration::from_secs(1));
            let polled: holm_api::agent::Polled =
                world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
            assert!(polled.is_empty(), "two processes would hold one fence: {polled:?}");
        }
        world.clock.advance(Duration::from_secs(30));
        crate::tasks::reap::reap(world.app()).await.unwrap();
        let polled: holm_api::agent::Polled = world.agent().post("/agent/v1/poll", &poll).await.json(StatusCode::OK);
        assert_eq!((polled.claimed[0].run, polled.claimed[0].fence), (lost.run, lost.fence + 1));
    }

    #[tokio::test]
    async fn a_waiting_poll_hears_at_once_that_it_is_superseded() {
        let world = World::new().await;
        let poll = Poll { wait_ms: 60_000, ..world.poll() };
        let newer = Register { instance: process(2), ..world.registration() };
        let agent = world.agent();
        let (waited, _) = tokio::join!(agent.post("/agent/v1/poll", &poll), agent.post("/agent/v1/register", &newer));
        waited.problem(ErrorCode::AgentSuperseded);
    }

    #[tokio::test]
    async fn an_agent_registers_again_and_never_in_two_orgs() {
        let world = World::new().await;
        let body = world.registration();
        let times: Registered = world.agent().post("/agent/v1/register", &body).await.json(StatusCode::OK);
        assert_eq!((times.lease_ttl_ms, times.renew_every_ms), (30_000, 10_000));
        let other = world.other_org_agent().post("/agent/v1/register", &body).await;
        other.problem(ErrorCode::Conflict);
        world.member().post("/agent/v1/register", &body).await.problem(ErrorCode::Forbidden);
        world.second_agent().await.post("/agent/v1/register", &body).await.problem(ErrorCode::Forbidden);
        let nameless = Register { name: String::new(), ..body };
        let problem = world.agent().post("/agent/v1/register", &nameless).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some("name"));
    }
}
