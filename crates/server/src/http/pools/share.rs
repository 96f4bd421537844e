//! `POST /v1/pools/{pool}/orgs/{org}`: share a pool with an org.

use std::sync::Arc;

use axum::extract::{Path, State};
use holm_api::{orgs::PoolView, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    ops,
    problem::Failure,
};

/// Share a pool with an org
///
/// For admins of the default org. Its hosts execute runs of that org as well, within about two seconds. Doing so again changes nothing.
#[utoipa::path(
    post, path = "/v1/pools/{pool}/orgs/{org}", tag = "hosts", operation_id = "pool_share",
    params(
        ("pool" = String, Path, description = "The pool."),
        ("org" = String, Path, description = "The org: its name, or its id as `org_…`."),
    ),
    responses(
        (status = 200, description = "The pool as it is now.", body = PoolView),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn share(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Path((pool, org)): Path<(String, String)>,
) -> Result<axum::Json<PoolView>, Failure> {
    Ok(axum::Json(ops::pools::pool_share(&app, &caller.token, &pool, &org).await?))
}
