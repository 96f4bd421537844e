//! `POST /v1/keys/{id}/withdraw`: has what a key signed be refused.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{keys::KeyView, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    http::extract::KeyPath,
    ops,
    problem::Failure,
};

/// Withdraw a signing key
///
/// What it signed is refused at once on this server and within a second on others. If it signs, a new one signs in its place.
/// Withdrawing again changes nothing. For admins of the org `default` only.
#[utoipa::path(
    post, path = "/v1/keys/{id}/withdraw", tag = "keys", operation_id = "key_withdraw",
    params(("id" = String, Path, description = "The key, as `key_…`.")),
    responses(
        (status = 200, description = "The key as it is now.", body = KeyView),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn withdraw(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
    KeyPath(id): KeyPath,
) -> Result<axum::Json<KeyView>, Failure> {
    Ok(axum::Json(ops::keys::key_withdraw(&app, &caller.token, id).await?))
}

#[cfg(test)]
mod tests {
    use holm_api::keys::KeyList;
    use holm_domain::{
        ErrorCode,
        keys::{KEYS_TRUSTED_FOR, KeyState},
    };
    use http::StatusCode;

    use super::*;
    use crate::{Server, testing::World};

    async fn keys(world: &World) -> Vec<KeyView> {
        world.admin().get("/v1/keys").await.json::<KeyList>(StatusCode::OK).keys
    }

    #[tokio::test]
    async fn a_withdrawn_key_stops_here_at_once_and_elsewhere_within_a_second() {
        let world = World::new().await;
        let there = Server::new(world.app().config.clone(), world.app().store.clone()).unwrap();
        let token = world.claim_token().await;
        let (here, there) = (world.with_secret(&token), world.with_secret_at(&there, &token));
        for caller in [&here, &there] {
            assert_eq!(caller.get("/v1/run-token").await.status, StatusCode::OK);
        }
        let signs = keys(&world).await[0].id;
        let path = format!("/v1/keys/{signs}/withdraw");
        let withdrawn: KeyView = world.admin().post(&path, &()).await.json(StatusCode::OK);
        assert_eq!((withdrawn.id, withdrawn.state), (signs, KeyState::Withdrawn));
        here.get("/v1/run-token").await.problem(ErrorCode::Unauthenticated);
        tokio::time::sleep(KEYS_TRUSTED_FOR).await;
        there.get("/v1/run-token").await.problem(ErrorCode::Unauthenticated);
        let after = keys(&world).await;
        assert_eq!(after.iter().map(|key| key.state).collect::<Vec<_>>(), [KeyState::Signing, KeyState::Withdrawn]);
        let fresh = world.claim_token().await;
        assert_eq!(world.with_secret(&fresh).get("/v1/run-token").await.status, StatusCode::OK);
        assert_eq!(world.admin().post(&path, &()).await.json::<KeyView>(StatusCode::OK), withdrawn, "again");
        assert_eq!(keys(&world).await, after);
    }

    #[tokio::test]
    async fn a_key_that_does_not_sign_is_withdrawn_by_itself() {
        let world = World::new().await;
        let old = world.claim_token().await;
        let id = keys(&world).await[0].id;
        let new: KeyView = world.admin().post("/v1/keys/rotate", &()).await.json(StatusCode::OK);
        let fresh = world.claim_token().await;
        world.admin().post(&format!("/v1/keys/{id}/withdraw"), &()).await.json::<KeyView>(StatusCode::OK);
        world.with_secret(&old).get("/v1/run-token").await.problem(ErrorCode::Unauthenticated);
        assert_eq!(world.with_secret(&fresh).get("/v1/run-token").await.status, StatusCode::OK);
        assert_eq!((keys(&world).await.len(), keys(&world).await[0].id), (2, new.id));
        let unknown = format!("/v1/keys/{}/withdraw", crate::ids::key());
        world.admin().post(&unknown, &()).await.problem(ErrorCode::NotFound);
        world.admin().post("/v1/keys/tok_x/withdraw", &()).await.problem(ErrorCode::InvalidField);
    }
}
