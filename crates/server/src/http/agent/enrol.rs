//! `POST /agent/v1/enrol`: a host shows a join token, and the public half of the key with which it speaks from then on.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    identity::{Enrol, Enrolled},
    problem::Problem,
};

use crate::{
    app::App, auth::speaker::JoinBearer, config::HELD_FREE_BYTES, http::extract::Short, ops, problem::Failure,
};

/// Enrol a host
///
/// The bearer token is a join token. Repeating it with the same agent and key is answered alike, also after the token has
/// expired: the first answer may have been lost.
#[utoipa::path(
    post, path = "/agent/v1/enrol", tag = "agent", operation_id = "host_enrol",
    request_body = Enrol,
    responses(
        (status = 200, description = "The key is stored.", body = Enrolled),
        (status = 401, description = "`unauthenticated`: the join token is unknown, revoked or expired.", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`host_revoked`: this very key was revoked.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`join_token_used`: it enrolled another agent or key; `conflict`: somebody can speak for the agent, or its id cannot be used.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`: the proof does not hold.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many`: the join token was used, and was answered a moment ago; or requests of the org.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn enrol(
    State(app): State<Arc<App>>,
    JoinBearer(join): JoinBearer,
    Short(body): Short<HELD_FREE_BYTES, Enrol>,
) -> Result<axum::Json<Enrolled>, Failure> {
    Ok(axum::Json(ops::enrol::host_enrol(&app, join, body).await?))
}

#[cfg(test)]
mod tests;
