//! `GET /readyz`: whether the server can serve.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use holm_api::problem::Problem;
use holm_domain::ErrorCode;

use crate::{app::App, problem::Failure};

/// How long the store may take to answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the server can serve
///
/// Asks the store. A server that is to end says that it is not ready.
#[utoipa::path(
    get, path = "/readyz", tag = "service", operation_id = "readyz", security(()),
    responses(
        (status = 200, description = "It can serve.", body = String, content_type = "text/plain"),
        (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Failure> {
    if app.shutdown.is_cancelled() {
        return Err(Failure::new(ErrorCode::Unavailable, "the server is going down"));
    }
    let answered = tokio::time::timeout(STORE_TIMEOUT, app.store.ping()).await;
    answered.map_err(|_| Failure::new(ErrorCode::Unavailable, "the store does not answer in time"))??;
    Ok("ready\n")
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn health_needs_no_token_and_readiness_ends_with_the_server() {
        let world = World::new().await;
        for path in ["/healthz", "/readyz"] {
            assert_eq!(world.nobody().get(path).await.status, StatusCode::OK);
        }
        world.app().shutdown.cancel();
        assert_eq!(world.nobody().get("/healthz").await.status, StatusCode::OK);
        world.nobody().get("/readyz").await.problem(ErrorCode::Unavailable);
    }
}
