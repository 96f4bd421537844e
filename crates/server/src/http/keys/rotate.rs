//! `POST /v1/keys/rotate`: has a new key sign.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{keys::KeyView, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    ops,
    problem::Failure,
};

/// Rotate the signing key
///
/// A new key signs from now on, on other servers within a second. What the one of before signed is good until it expires. For
/// admins of the org `default` only.
#[utoipa::path(
    post, path = "/v1/keys/rotate", tag = "keys", operation_id = "key_rotate",
    responses(
        (status = 200, description = "The new key.", body = KeyView),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` keys", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn rotate(State(app): State<Arc<App>>, caller: May<Administer>) -> Result<axum::Json<KeyView>, Failure> {
    Ok(axum::Json(ops::keys::key_rotate(&app, &caller.token).await?))
}

#[cfg(test)]
mod tests {
    use holm_api::keys::{KeyList, KeySet};
    use holm_domain::keys::{KeyState, SIGNED_LIFE_MAX};
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    async fn states(world: &World) -> Vec<KeyState> {
        let list: KeyList = world.admin().get("/v1/keys").await.json(StatusCode::OK);
        list.keys.into_iter().map(|key| key.state).collect()
    }

    #[tokio::test]
    async fn a_key_verifies_after_a_rotation_until_the_last_token_has_expired() {
        let world = World::new().await;
        let new: KeyView = world.admin().post("/v1/keys/rotate", &()).await.json(StatusCode::OK);
        assert_eq!(new.state, KeyState::Signing);
        assert_eq!(states(&world).await, [KeyState::Signing, KeyState::Verifying]);
        let shown = async || world.nobody().get("/.well-known/jwks.json").await.json::<KeySet>(StatusCode::OK).keys;
        assert_eq!(shown().await.len(), 2);
        world.clock.advance(SIGNED_LIFE_MAX);
        assert_eq!(shown().await.len(), 2, "another server may have signed with it a moment later");
        world.clock.advance(std::time::Duration::from_secs(6));
        assert_eq!(states(&world).await, [KeyState::Signing, KeyState::Retired]);
        let left = shown().await;
        assert_eq!((left.len(), left[0].kid), (1, new.id));
    }

    #[tokio::test]
    async fn rotations_at_once_all_succeed_and_one_key_signs() {
        let world = World::new().await;
        let admins = (0..4).map(|_| world.admin());
        let asked = admins.map(|admin| async move { admin.post("/v1/keys/rotate", &()).await });
        for answer in futures_util::future::join_all(asked).await {
            answer.json::<KeyView>(StatusCode::OK);
        }
        let states = states(&world).await;
        assert_eq!(states.iter().filter(|state| **state == KeyState::Signing).count(), 1, "{states:?}");
        assert_eq!(states.len(), 5);
    }
}
