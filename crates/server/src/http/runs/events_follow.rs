//! `GET /v1/runs/{id}/events/follow`: events as they come.

use std::sync::Arc;

use axum::{
    extract::{Extension, State},
    response::Response,
};
use holm_api::problem::Problem;
use http::HeaderMap;

use crate::{
    account::Account,
    app::App,
    auth::{May, Read},
    http::{
        extract::{Params, RunPath},
        follow::{self, From},
    },
    ops::events::EventSource,
    problem::Failure,
};

/// Follow the events
///
/// Server-sent events: `event` with an event as its data and its number as its id. The stream ends after the event `ended`;
/// one that ends before is to be resumed with `Last-Event-ID`.
#[utoipa::path(
    get, path = "/v1/runs/{id}/events/follow", tag = "events", operation_id = "event_follow",
    params(
        ("id" = String, Path, description = "The run, as `run_…`."),
        From,
        ("last-event-id" = Option<u64>, Header, description = "The id of the last event that was received."),
    ),
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
        (status = 429, description = "`too_many` streams.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn events_follow(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    Extension(account): Extension<Arc<Account>>,
    RunPath(id): RunPath,
    Params(from): Params<From>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let after = follow::position(&headers, &from)?;
    let pass = app.streams.enter(caller.org())?;
    follow::respond(app, &caller.token, id, EventSource::new(caller.org(), id, after), pass, &account).await
}

#[cfg(test)]
mod tests {
    use holm_api::LAST_EVENT_ID;
    use holm_domain::ErrorCode;

    use crate::testing::World;

    #[tokio::test]
    async fn events_come_live_and_the_stream_ends_after_the_last() {
        let world = World::new().await;
        let id = world.queue_run().await;
        let path = format!("/v1/runs/{id}/events/follow");
        let mut stream = world.member().follow(&path).await;
        assert_eq!(stream.events(1).await, ["1 event queued"]);
        let held = world.claim().await;
        assert_eq!(stream.events(1).await, ["2 event claimed"]);
        world.finish(held, 1).await;
        assert_eq!(stream.rest().await, ["3 event ended"]);
        let resumed = world.member().header(LAST_EVENT_ID, "1").follow(&path).await;
        assert_eq!(resumed.rest().await, ["2 event claimed", "3 event ended"]);
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);
    }
}
