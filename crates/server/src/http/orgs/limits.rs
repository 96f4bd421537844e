//! `GET /v1/orgs/{org}/limits`: what an org may have and do at most.

use std::sync::Arc;

use axum::extract::{Path, State};
use holm_api::{orgs::OrgLimitsView, problem::Problem};

use crate::{
    app::App,
    auth::{May, Read},
    ops,
    problem::Failure,
};

/// Show the limits of an org
///
/// Of one's own org; an admin of the default org sees those of all.
#[utoipa::path(
    get, path = "/v1/orgs/{org}/limits", tag = "orgs", operation_id = "org_limits",
    params(("org" = String, Path, description = "The org: its name, or its id as `org_…`.")),
    responses(
        (status = 200, description = "The limits.", body = OrgLimitsView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn limits(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    Path(org): Path<String>,
) -> Result<axum::Json<OrgLimitsView>, Failure> {
    Ok(axum::Json(ops::orgs::org_limits(&app, &caller.token, &org).await?))
}
