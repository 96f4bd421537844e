//! `GET /v1/secrets`: the secrets of the org and of its projects.

use std::sync::Arc;

use axum::extract::State;
use holm_api::secrets::SecretList;

use crate::{
    app::App,
    auth::{May, Read},
    ops,
    problem::Failure,
};

/// List secrets
#[utoipa::path(
    get, path = "/v1/secrets", tag = "secrets", operation_id = "secrets_list",
    responses((status = 200, description = "The secrets by name, without their values.", body = SecretList))
)]
pub async fn list(State(app): State<Arc<App>>, caller: May<Read>) -> Result<axum::Json<SecretList>, Failure> {
    Ok(axum::Json(SecretList { secrets: ops::secrets::secrets_list(&app, caller.org()).await? }))
}
