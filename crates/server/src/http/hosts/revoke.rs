//! `POST /v1/hosts/{id}/revoke`: has the key of a host be refused.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    hosts::{HostKeyView, RevokeHost},
    problem::Problem,
};

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::{HostPath, Params},
    ops,
    problem::Failure,
};

/// Revoke the key of a host
///
/// Nothing that its agent says is heard any more, on any server; its runs go back to the queue when their leases end.
/// Revoking again changes nothing, where the key is named also after the host has enrolled anew.
#[utoipa::path(
    post, path = "/v1/hosts/{id}/revoke", tag = "hosts", operation_id = "host_revoke",
    params(("id" = String, Path, description = "The host, by the identity of its agent, as `agt_…`."), RevokeHost),
    responses(
        (status = 200, description = "The key that is revoked.", body = HostKeyView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: the agent speaks with a token and has no key, or not the one that is named.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    HostPath(id): HostPath,
    Params(RevokeHost { key }): Params<RevokeHost>,
) -> Result<axum::Json<HostKeyView>, Failure> {
    Ok(axum::Json(ops::enrol::host_revoke(&app, &caller.token, id, key).await?))
}
