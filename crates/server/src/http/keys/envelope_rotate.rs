//! `POST /v1/keys/envelope/rotate`: seals anew what is secret at rest.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{keys::EnvelopeRotated, problem::Problem};

use crate::{
    app::App,
    auth::{Administer, May},
    ops,
    problem::Failure,
};

/// Rotate the data key
///
/// A new data key seals from now on, and what others had sealed is sealed anew; they are deleted then. What is left of a
/// rotation that was cut off can be opened as before, and the next one finishes it. For admins of the org `default` only.
#[utoipa::path(
    post, path = "/v1/keys/envelope/rotate", tag = "keys", operation_id = "envelope_rotate",
    responses(
        (status = 200, description = "The new data key.", body = EnvelopeRotated),
        (status = 403, description = "`forbidden`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn envelope_rotate(
    State(app): State<Arc<App>>,
    caller: May<Administer>,
) -> Result<axum::Json<EnvelopeRotated>, Failure> {
    Ok(axum::Json(ops::keys::envelope_rotate(&app, &caller.token).await?))
}

#[cfg(test)]
mod tests {
    use holm_api::keys::KeyView;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn what_was_sealed_is_opened_by_the_new_data_key_alone() {
        let mut world = World::new().await;
        let store = world.app().store.clone();
        let (envelope, keys) = (store.envelope_current().await.unwrap().unwrap(), store.signing_keys().await.unwrap());
        for _ in 0..2 {
            let rotated: EnvelopeRotated =
                world.admin().post("/v1/keys/envelope/rotate", &()).await.json(StatusCode::OK);
            assert_eq!(rotated.resealed, 1);
            assert_eq!(store.envelope_current().await.unwrap().unwrap().id, rotated.id);
        }
        let after = store.signing_keys().await.unwrap();
        assert_ne!(store.envelope_current().await.unwrap().unwrap().sealed, envelope.sealed);
        assert_eq!((after[0].times.id, after[0].public), (keys[0].times.id, keys[0].public));
        assert_ne!(after[0].private, keys[0].private);
        // A server that has opened nothing yet signs with it, and another key is sealed by it.
        world.restart();
        world.app().keys.keys(&store).await.unwrap();
        world.admin().post("/v1/keys/rotate", &()).await.json::<KeyView>(StatusCode::OK);
    }
}
