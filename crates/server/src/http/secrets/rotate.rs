//! `PUT /v1/secrets/{name}`: give a secret its next value.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    problem::Problem,
    secrets::{RotateSecret, SecretView},
};

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::{SecretJson, SecretPath},
    ops,
    problem::Failure,
};

/// Give a secret its next value
///
/// What is kept of the value of before is removed.
#[utoipa::path(
    put, path = "/v1/secrets/{name}", tag = "secrets", operation_id = "secret_rotate",
    params(("name" = String, Path, description = "The name of the secret.")),
    request_body = RotateSecret,
    responses(
        (status = 200, description = "The secret with its new version.", body = SecretView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn rotate(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    SecretPath(name): SecretPath,
    SecretJson(body): SecretJson<RotateSecret>,
) -> Result<axum::Json<SecretView>, Failure> {
    Ok(axum::Json(ops::secrets::secret_rotate(&app, &caller.token, &name, body).await?))
}
