//! `POST /agent/v1/session`: a host that has enrolled is given what it speaks with for a while.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{identity::Session, problem::Problem};

use crate::{
    app::App,
    auth::speaker::{HostBearer, session_open},
    problem::Failure,
};

/// Begin a session
///
/// The bearer token is a JSON web token that the host signed a moment ago with its key, for this deployment. The answer opens
/// the agent protocol to this agent, for a quarter of an hour.
#[utoipa::path(
    post, path = "/agent/v1/session", tag = "agent", operation_id = "session_open",
    responses(
        (status = 200, description = "The session.", body = Session),
        (status = 401, description = "`unauthenticated`: the key is not enrolled, or the clocks of host and server are more than half a minute apart.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`host_revoked`: the key of the host was revoked.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many`: the host was given a session a moment ago.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn session(State(app): State<Arc<App>>, host: HostBearer) -> Result<axum::Json<Session>, Failure> {
    Ok(axum::Json(session_open(&app, host).await?))
}

#[cfg(test)]
mod tests;
