//! `DELETE /v1/secrets/{name}`: remove a secret.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{problem::Problem, secrets::DeleteSecret};
use http::StatusCode;

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::{Params, SecretPath},
    ops,
    problem::Failure,
};

/// Remove a secret
#[utoipa::path(
    delete, path = "/v1/secrets/{name}", tag = "secrets", operation_id = "secret_delete",
    params(("name" = String, Path, description = "The name of the secret."), DeleteSecret),
    responses(
        (status = 204, description = "It is removed."),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    SecretPath(name): SecretPath,
    Params(of): Params<DeleteSecret>,
) -> Result<StatusCode, Failure> {
    ops::secrets::secret_delete(&app, &caller.token, &name, of).await?;
    Ok(StatusCode::NO_CONTENT)
}
