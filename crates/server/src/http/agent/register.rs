//! `POST /agent/v1/register`: an agent says who it is and what its host can do.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    agent::{Register, Registered},
    problem::Problem,
};

use crate::{
    app::App,
    auth::{May, Serve},
    http::extract::Json,
    ops,
    problem::Failure,
};

/// Register an agent
///
/// Repeating it brings the record of the host up to date. The answer says by which times leases work here.
#[utoipa::path(
    post, path = "/agent/v1/register", tag = "agent", operation_id = "agent_register",
    request_body = Register,
    responses(
        (status = 200, description = "The times of leases.", body = Registered),
        (status = 409, description = "`conflict`: the id cannot be used.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn register(
    State(app): State<Arc<App>>,
    caller: May<Serve>,
    Json(body): Json<Register>,
) -> Result<axum::Json<Registered>, Failure> {
    Ok(axum::Json(ops::hosts::agent_register(&app, caller.org(), body).await?))
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn an_agent_registers_again_and_never_in_two_orgs() {
        let world = World::new().await;
        let body = world.registration();
        let times: Registered = world.agent().post("/agent/v1/register", &body).await.json(StatusCode::OK);
        assert_eq!((times.lease_ttl_ms, times.renew_every_ms), (30_000, 10_000));
        let other = world.other_org_agent().post("/agent/v1/register", &body).await;
        other.problem(ErrorCode::Conflict);
        world.member().post("/agent/v1/register", &body).await.problem(ErrorCode::Forbidden);
        let nameless = Register { name: String::new(), ..body };
        let problem = world.agent().post("/agent/v1/register", &nameless).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some("name"));
    }
}
