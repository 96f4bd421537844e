//! `POST /v1/tokens`: make a token.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    problem::Problem,
    tokens::{CreateToken, NewToken},
};
use http::StatusCode;
use secrecy::ExposeSecret as _;

use super::view;
use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::Json,
    ops,
    problem::Failure,
};

/// Make a token
///
/// The answer is the only one that ever bears the secret.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", operation_id = "token_create",
    request_body = CreateToken,
    responses(
        (status = 201, description = "The token and its secret.", body = NewToken),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    Json(body): Json<CreateToken>,
) -> Result<(StatusCode, axum::Json<NewToken>), Failure> {
    let (token, secret) = ops::tokens::token_create(&app, &caller.token, body).await?;
    let made = NewToken { token: view(token), secret: secret.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, axum::Json(made)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_domain::ErrorCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_token_works_with_its_role_until_it_expires() {
        let world = World::new().await;
        let body = json!({"name": "ci", "role": "member", "expires_in_s": 60});
        let made: NewToken = world.admin().post("/v1/tokens", &body).await.json(StatusCode::CREATED);
        let caller = world.with_secret(&made.secret);
        assert_eq!(caller.get("/v1/runs").await.status, StatusCode::OK);
        caller.get("/v1/tokens").await.problem(ErrorCode::Forbidden);
        world.clock.advance(Duration::from_secs(60));
        caller.get("/v1/runs").await.problem(ErrorCode::Unauthenticated);
    }

    #[tokio::test]
    async fn absurd_tokens_are_refused() {
        let world = World::new().await;
        for (body, field) in [
            (json!({"name": "", "role": "member"}), "name"),
            (json!({"name": "a\nb", "role": "member"}), "name"),
            (json!({"name": "x".repeat(129), "role": "member"}), "name"),
            (json!({"name": "x", "role": "root"}), "role"),
            (json!({"name": "x", "role": "member", "expires_in_s": 59}), "expires_in_s"),
            (json!({"name": "x", "role": "member", "expires_in_s": u64::MAX}), "expires_in_s"),
        ] {
            let problem = world.admin().post("/v1/tokens", &body).await.problem(ErrorCode::InvalidField);
            assert_eq!(problem.field.as_deref(), Some(field));
        }
    }

    #[tokio::test]
    async fn a_private_server_makes_none() {
        let world = World::with_config(|config| config.private = true).await;
        for role in ["admin", "member", "agent", "monitor"] {
            let body = json!({"name": "other", "role": role});
            let problem = world.admin().post("/v1/tokens", &body).await.problem(ErrorCode::Forbidden);
            assert!(problem.detail.contains("private server"), "{problem}");
        }
    }
}
