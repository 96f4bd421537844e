//! `GET /v1/orgs`: all orgs.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{orgs::OrgList, problem::Problem};

use super::view;
use crate::{
    app::App,
    auth::{Administer, May},
    ops,
    problem::Failure,
};

/// List orgs
///
/// For admins of the default org.
#[utoipa::path(
    get, path = "/v1/orgs", tag = "orgs", operation_id = "org_list",
    responses(
        (status = 200, description = "All orgs, by name.", body = OrgList),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn list(State(app): State<Arc<App>>, caller: May<Administer>) -> Result<axum::Json<OrgList>, Failure> {
    let orgs = ops::orgs::org_list(&app, &caller.token).await?.into_iter().map(view).collect();
    Ok(axum::Json(OrgList { orgs }))
}
