//! `GET /v1/keys`: the signing keys.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{keys::KeyList, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    ops,
    problem::Failure,
};

/// List signing keys
///
/// For admins of the org `default` only: keys belong to the deployment.
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", operation_id = "key_list",
    responses(
        (status = 200, description = "The keys, newest first.", body = KeyList),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn list(State(app): State<Arc<App>>, caller: May<Administer>) -> Result<axum::Json<KeyList>, Failure> {
    Ok(axum::Json(KeyList { keys: ops::keys::key_list(&app, &caller.token).await? }))
}

#[cfg(test)]
mod tests {
    use holm_domain::{ErrorCode, keys::KeyState};
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn keys_are_shown_without_what_is_secret_to_admins_of_the_deployment() {
        let world = World::new().await;
        let answer = world.admin().get("/v1/keys").await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(!text.contains("sealed") && !text.contains("private"), "{text}");
        let list: KeyList = answer.json(StatusCode::OK);
        assert_eq!((list.keys.len(), list.keys[0].state), (1, KeyState::Signing));
        let id = list.keys[0].id;
        for (method, path) in [
            ("GET", "/v1/keys".to_owned()),
            ("POST", "/v1/keys/rotate".to_owned()),
            ("POST", "/v1/keys/envelope/rotate".to_owned()),
            ("POST", format!("/v1/keys/{id}/withdraw")),
        ] {
            let refused = world.other_org().send(method, &path, "", Vec::new()).await.problem(ErrorCode::Forbidden);
            assert!(refused.detail.contains("admin of its org `default`"), "{refused}");
        }
        assert_eq!(world.admin().get("/v1/keys").await.json::<KeyList>(StatusCode::OK), list, "nothing was changed");
    }
}
