//! `POST /v1/orgs/{org}/limits`: set limits of an org.

use std::sync::Arc;

use axum::extract::{Path, State};
use holm_api::{
    orgs::{OrgLimitsView, SetOrgLimits},
    problem::Problem,
};

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::Json,
    ops,
    problem::Failure,
};

/// Set limits of an org
///
/// For admins of the default org. What is set counts at once on the server that is asked, and within a second on all others.
#[utoipa::path(
    post, path = "/v1/orgs/{org}/limits", tag = "orgs", operation_id = "org_limits_set",
    params(("org" = String, Path, description = "The org: its name, or its id as `org_…`.")),
    request_body = SetOrgLimits,
    responses(
        (status = 200, description = "All limits as they are now.", body = OrgLimitsView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn limits_set(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Path(org): Path<String>,
    Json(body): Json<SetOrgLimits>,
) -> Result<axum::Json<OrgLimitsView>, Failure> {
    Ok(axum::Json(ops::orgs::org_limits_set(&app, &caller.token, &org, &body).await?))
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn admins_of_the_default_org_set_and_everybody_sees_his_own() {
        let world = World::new().await;
        let path = "/v1/orgs/other/limits";
        let body = json!({ "limits": { "submits_per_minute": 7 } });
        let set: OrgLimitsView = world.admin().post(path, &body).await.json(StatusCode::OK);
        let of = |view: &OrgLimitsView, name: &str| (view.limits[name].value, view.limits[name].is_own);
        assert_eq!((of(&set, "submits_per_minute"), of(&set, "runs_running_max")), ((7, true), (10_000, false)));
        let own: OrgLimitsView = world.other_org().get(path).await.json(StatusCode::OK);
        assert_eq!((own.org_name.as_str(), own.org), ("other", set.org));
        let by_id = format!("/v1/orgs/{}/limits", set.org);
        assert_eq!(world.other_org().get(&by_id).await.json::<OrgLimitsView>(StatusCode::OK), own);
        let back: OrgLimitsView =
            world.admin().post(path, &json!({ "limits": { "submits_per_minute": null } })).await.json(StatusCode::OK);
        assert_eq!(of(&back, "submits_per_minute"), (1 << 40, false));

        world.other_org().post(path, &body).await.problem(ErrorCode::Forbidden);
        world.member().post(path, &body).await.problem(ErrorCode::Forbidden);
        world.member().get(path).await.problem(ErrorCode::NotFound);
        world.other_org().get("/v1/orgs/default/limits").await.problem(ErrorCode::NotFound);
        world.admin().get("/v1/orgs/nobody/limits").await.problem(ErrorCode::NotFound);
        for (name, value) in [("submits_per_minute", 0), ("sandwiches_per_minute", 1), ("log_bytes_per_second", 1)] {
            let wrong = json!({ "limits": { name: value } });
            let problem = world.admin().post(path, &wrong).await.problem(ErrorCode::InvalidField);
            assert_eq!(problem.field, Some(format!("limits.{name}")));
        }
    }
}
