//! `POST /v1/orgs`: make an org.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    orgs::{CreateOrg, NewOrg},
    problem::Problem,
    tokens::NewToken,
};
use http::StatusCode;
use secrecy::ExposeSecret as _;

use super::view;
use crate::{
    app::App,
    auth::{Administer, May},
    http::{extract::Json, tokens},
    ops,
    problem::Failure,
};

/// Make an org
///
/// For admins of the default org. The answer is the only one that ever bears the secret of the first token.
#[utoipa::path(
    post, path = "/v1/orgs", tag = "orgs", operation_id = "org_create",
    request_body = CreateOrg,
    responses(
        (status = 201, description = "The org, and its first token with its secret.", body = NewOrg),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: the name is taken.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Json(body): Json<CreateOrg>,
) -> Result<(StatusCode, axum::Json<NewOrg>), Failure> {
    let (org, token, secret) = ops::orgs::org_create(&app, &caller.token, body).await?;
    let admin = NewToken { token: tokens::view(token), secret: secret.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, axum::Json(NewOrg { org: view(org), admin })))
}

#[cfg(test)]
mod tests {
    use holm_api::orgs::OrgList;
    use holm_domain::ErrorCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn admins_of_the_default_org_make_orgs_that_work_at_once() {
        let world = World::new().await;
        let made: NewOrg = world.admin().post("/v1/orgs", &json!({"name": "acme"})).await.json(StatusCode::CREATED);
        let admin = world.with_secret(&made.admin.secret);
        let run = json!({"spec": {"root": {"kind": "host"}, "argv": ["true"]}});
        assert_eq!(admin.post("/v1/runs", &run).await.status, StatusCode::CREATED);
        assert_eq!(
            admin.post("/v1/tokens", &json!({"name": "ci", "role": "member"})).await.status,
            StatusCode::CREATED
        );
        let listed: OrgList = world.admin().get("/v1/orgs").await.json(StatusCode::OK);
        let names: Vec<_> = listed.orgs.iter().map(|org| org.name.as_str()).collect();
        assert!(names.contains(&"acme") && names.is_sorted(), "{names:?}");
        world.admin().post("/v1/orgs", &json!({"name": "acme"})).await.problem(ErrorCode::Conflict);
        for bad in ["", "Acme", "1st", "a b", "a/b", &"a".repeat(64)] {
            world.admin().post("/v1/orgs", &json!({"name": bad})).await.problem(ErrorCode::InvalidField);
        }
        admin.post("/v1/orgs", &json!({"name": "other-one"})).await.problem(ErrorCode::Forbidden);
        admin.get("/v1/orgs").await.problem(ErrorCode::Forbidden);
        let after: OrgList = world.admin().get("/v1/orgs").await.json(StatusCode::OK);
        assert_eq!(after, listed);
    }
}
