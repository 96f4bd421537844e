//! `GET /v1/tokens`: the tokens of the org.

use std::sync::Arc;

use axum::extract::State;
use holm_api::tokens::TokenList;

use super::view;
use crate::{
    app::App,
    auth::{Administer, May},
    problem::Failure,
};

/// List tokens
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens", operation_id = "token_list",
    responses((status = 200, description = "The tokens: those that work first, newest first.", body = TokenList))
)]
pub async fn list(State(app): State<Arc<App>>, caller: May<Administer>) -> Result<axum::Json<TokenList>, Failure> {
    let tokens = app.store.token_list(caller.org()).await?;
    Ok(axum::Json(TokenList { tokens: tokens.into_iter().map(view).collect() }))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn tokens_are_listed_without_secrets_to_their_org() {
        let world = World::new().await;
        let answer = world.admin().get("/v1/tokens").await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(!text.contains("holm_") && !text.contains("hash"), "{text}");
        let list: TokenList = answer.json(StatusCode::OK);
        let theirs: TokenList = world.other_org().get("/v1/tokens").await.json(StatusCode::OK);
        assert_eq!((list.tokens.len(), theirs.tokens.len()), (3, 2));
        assert!(list.tokens.iter().all(|token| theirs.tokens.iter().all(|other| other.id != token.id)));
    }
}
