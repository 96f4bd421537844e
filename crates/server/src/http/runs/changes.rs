//! `GET /v1/runs/{id}/changes`: the archive of what the run changed in its working directory.

use std::sync::Arc;

use axum::{body::Body, extract::State, response::Response};
use holm_api::{TAR, problem::Problem};
use http::{
    HeaderValue,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};

use crate::{
    app::App,
    auth::{May, Read},
    http::extract::RunPath,
    ops,
    problem::Failure,
};

/// Download the changes
///
/// The archive (tar) of what a run changed in its working directory, if it was asked to keep that and succeeded. It comes
/// from the sandbox: do not unpack it unchecked. A character device 0:0 stands for a deletion; a directory with the pax
/// record `SCHILY.xattr.user.overlay.opaque=y` hides what was in it before; the type flag `Q` is a socket.
#[utoipa::path(
    get, path = "/v1/runs/{id}/changes", tag = "runs", operation_id = "changes_get",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    responses(
        (status = 200, description = "The archive.", body = [u8], content_type = "application/x-tar"),
        (status = 404, description = "`not_found`: it left none.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it has not ended.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn changes(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    RunPath(id): RunPath,
) -> Result<Response, Failure> {
    let blob = ops::changes::changes_get(&app, &caller.token, id).await?;
    let mut response = Response::new(Body::from_stream(blob.pieces));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TAR));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn the_archive_of_the_last_lease_is_given_to_the_org() {
        let world = World::new().await;
        let held = world.claim_keeping_run().await;
        let path = format!("/v1/runs/{}/changes", held.run);
        world.put_changes(held, b"old").await;
        world.put_changes(held, b"the archive").await;
        world.member().get(&path).await.problem(ErrorCode::Conflict);
        world.finish(held, 1).await;
        let answer = world.member().get(&path).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"the archive"[..]));
        assert_eq!(answer.headers[CONTENT_TYPE], TAR);
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);

        let without = world.claim_run().await;
        world.finish(without, 1).await;
        world.member().get(&format!("/v1/runs/{}/changes", without.run)).await.problem(ErrorCode::NotFound);
    }
}
