//! `/v1/hosts/joins`: the tokens with which hosts enrol.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    hosts::{CreateJoin, JoinList, NewJoin},
    problem::Problem,
};
use http::StatusCode;
use secrecy::ExposeSecret as _;

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::{Json, TokenPath},
    ops,
    problem::Failure,
};

/// Make a join token
///
/// It enrols one host, once. The answer is the only one that ever bears the secret.
#[utoipa::path(
    post, path = "/v1/hosts/joins", tag = "hosts", operation_id = "join_create",
    request_body = CreateJoin,
    responses(
        (status = 201, description = "The token and its secret.", body = NewJoin),
        (status = 403, description = "`forbidden`: only an admin makes join tokens, and a user's own server (`holm up`) makes none.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` join tokens that nobody has used, or requests of the org.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Json(body): Json<CreateJoin>,
) -> Result<(StatusCode, axum::Json<NewJoin>), Failure> {
    let (join, secret) = ops::enrol::join_create(&app, &caller.token, body).await?;
    Ok((StatusCode::CREATED, axum::Json(NewJoin { join, secret: secret.expose_secret().to_owned() })))
}

/// List join tokens
#[utoipa::path(
    get, path = "/v1/hosts/joins", tag = "hosts", operation_id = "join_list",
    responses((status = 200, description = "The join tokens, newest first.", body = JoinList))
)]
pub async fn list(State(app): State<Arc<App>>, caller: May<Administer>) -> Result<axum::Json<JoinList>, Failure> {
    Ok(axum::Json(JoinList { joins: ops::enrol::join_list(&app, caller.org()).await? }))
}

/// Revoke a join token
///
/// It enrols nobody any more. Revoking again changes nothing; one that has enrolled a host is refused, and changes nothing
/// either.
#[utoipa::path(
    delete, path = "/v1/hosts/joins/{id}", tag = "hosts", operation_id = "join_revoke",
    params(("id" = String, Path, description = "The join token, as `tok_…`.")),
    responses(
        (status = 204, description = "It is revoked."),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it has enrolled a host, which goes on; revoke the key of that.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    TokenPath(id): TokenPath,
) -> Result<StatusCode, Failure> {
    ops::enrol::join_revoke(&app, &caller.token, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
