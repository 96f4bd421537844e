//! `DELETE /v1/pools/{pool}/hosts/{id}`: take a host out of a pool.

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

/// Take a host out of a pool
///
/// For admins of the default org. It takes nothing new of other orgs; what it executes goes on. Where it is not in that pool,
/// nothing changes.
#[utoipa::path(
    delete, path = "/v1/pools/{pool}/hosts/{id}", tag = "hosts", operation_id = "pool_remove",
    params(
        ("pool" = String, Path, description = "The pool."),
        ("id" = String, Path, description = "The host, as `agt_…`."),
    ),
    responses(
        (status = 200, description = "The pool as it is now.", body = PoolView),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Path((pool, id)): Path<(String, AgentId)>,
) -> Result<axum::Json<PoolView>, Failure> {
    Ok(axum::Json(ops::pools::pool_remove(&app, &caller.token, &pool, id).await?))
}
