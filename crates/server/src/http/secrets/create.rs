//! `POST /v1/secrets`: keep a secret.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    problem::Problem,
    secrets::{CreateSecret, SecretView},
};
use http::StatusCode;

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::SecretJson,
    ops,
    problem::Failure,
};

/// Keep a secret
///
/// No answer ever bears its value. A project's own secret comes before one of the org that has the same name.
#[utoipa::path(
    post, path = "/v1/secrets", tag = "secrets", operation_id = "secret_create",
    request_body = CreateSecret,
    responses(
        (status = 201, description = "It is kept, sealed.", body = SecretView),
        (status = 409, description = "`conflict`: there is one already; give that another value.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` secrets of the org, or requests.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    SecretJson(body): SecretJson<CreateSecret>,
) -> Result<(StatusCode, axum::Json<SecretView>), Failure> {
    Ok((StatusCode::CREATED, axum::Json(ops::secrets::secret_create(&app, &caller.token, body).await?)))
}
