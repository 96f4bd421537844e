//! `GET /v1/pools`: all pools.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{orgs::PoolList, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    ops,
    problem::Failure,
};

/// List pools
///
/// For admins of the default org, whose hosts they are.
#[utoipa::path(
    get, path = "/v1/pools", tag = "hosts", operation_id = "pool_list",
    responses(
        (status = 200, description = "All pools that are shared, or have hosts.", body = PoolList),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn list(State(app): State<Arc<App>>, caller: May<Administer>) -> Result<axum::Json<PoolList>, Failure> {
    Ok(axum::Json(PoolList { pools: ops::pools::pool_list(&app, &caller.token).await? }))
}
