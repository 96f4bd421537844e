//! `POST /v1/pools/{pool}/hosts/{id}`: put a host into a pool.

use std::sync::Arc;

use axum::extract::{Path, State};
use holm_api::{orgs::PoolView, problem::Problem};
use holm_domain::AgentId;

use crate::{
    app::App,
    auth::{Administer, May},
    ops,
    problem::Failure,
};

/// Put a host into a pool
///
/// For admins of the default org, whose hosts they are: it executes runs of the orgs with which the pool is shared as well. A
/// host is in one pool at most. Doing so again changes nothing.
#[utoipa::path(
    post, path = "/v1/pools/{pool}/hosts/{id}", tag = "hosts", operation_id = "pool_add",
    params(
        ("pool" = String, Path, description = "The pool."),
        ("id" = String, Path, description = "The host, as `agt_…`."),
    ),
    responses(
        (status = 200, description = "The pool as it is now.", body = PoolView),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn add(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Path((pool, id)): Path<(String, AgentId)>,
) -> Result<axum::Json<PoolView>, Failure> {
    Ok(axum::Json(ops::pools::pool_add(&app, &caller.token, &pool, id).await?))
}
