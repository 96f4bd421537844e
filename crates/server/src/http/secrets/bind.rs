//! `PUT /v1/secrets/{name}/for`: say to where a secret may be brought.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    problem::Problem,
    secrets::{BindSecret, SecretView},
};

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::{Json, SecretPath},
    ops,
    problem::Failure,
};

/// Say to where a secret may be brought
///
/// It takes the place of what was said before, and holds for runs that were not given the secret yet as well.
#[utoipa::path(
    put, path = "/v1/secrets/{name}/for", tag = "secrets", operation_id = "secret_bind",
    params(("name" = String, Path, description = "The name of the secret.")),
    request_body = BindSecret,
    responses(
        (status = 200, description = "The secret, bound so.", body = SecretView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn bind(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    SecretPath(name): SecretPath,
    Json(body): Json<BindSecret>,
) -> Result<axum::Json<SecretView>, Failure> {
    Ok(axum::Json(ops::secrets::secret_bind(&app, &caller.token, &name, body).await?))
}
