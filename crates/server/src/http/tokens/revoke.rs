//! `DELETE /v1/tokens/{id}`: revoke a token.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::TokenPath,
    ops,
    problem::Failure,
};

/// Revoke a token
///
/// It stops working at once on this server and within a second on others, and stays in the list; what goes on under it
/// ends a second later at most. Revoking again changes nothing.
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens", operation_id = "token_revoke",
    params(("id" = String, Path, description = "The token, as `tok_…`.")),
    responses((status = 204, description = "It is revoked."))
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    TokenPath(id): TokenPath,
) -> Result<StatusCode, Failure> {
    ops::tokens::token_revoke(&app, &caller.token, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use holm_api::tokens::NewToken;
    use holm_domain::ErrorCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_revoked_token_is_refused_at_once() {
        let world = World::new().await;
        let body = json!({"name": "ci", "role": "admin"});
        let made: NewToken = world.admin().post("/v1/tokens", &body).await.json(StatusCode::CREATED);
        let caller = world.with_secret(&made.secret);
        assert_eq!(caller.get("/v1/tokens").await.status, StatusCode::OK);
        let path = format!("/v1/tokens/{}", made.token.id);
        world.other_org().delete(&path).await.problem(ErrorCode::NotFound);
        assert_eq!(caller.get("/v1/tokens").await.status, StatusCode::OK);
        assert_eq!(world.admin().delete(&path).await.status, StatusCode::NO_CONTENT);
        assert_eq!(world.admin().delete(&path).await.status, StatusCode::NO_CONTENT);
        caller.get("/v1/tokens").await.problem(ErrorCode::Unauthenticated);
        world.admin().delete("/v1/tokens/tok_x").await.problem(ErrorCode::InvalidField);
    }
}
