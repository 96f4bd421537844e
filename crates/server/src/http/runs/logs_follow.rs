//! `GET /v1/runs/{id}/logs/follow`: the log as it comes.

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
    ops::{self, logs::LogSource},
    problem::Failure,
};

/// Follow the log
///
/// Server-sent events: `log` with a log entry as its data and the sequence as its id; `note` with `{"seq": …}` where an entry is
/// none of the output (a record of what the run reached), so that nothing seems to be missing; at the end of a complete log `end`
/// with `{"last_seq": …}`. A stream that ends without it is to be resumed with `Last-Event-ID`.
#[utoipa::path(
    get, path = "/v1/runs/{id}/logs/follow", tag = "logs", operation_id = "log_follow",
    params(
        ("id" = String, Path, description = "The run, as `run_…`."),
        From,
        ("last-event-id" = Option<u64>, Header, description = "The id of the last event that was received."),
    ),
    responses(
        (status = 200, description = "The events.", body = String, content_type = "text/event-stream"),
        (status = 410, description = "`logs_deleted`.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` streams.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn logs_follow(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    Extension(account): Extension<Arc<Account>>,
    RunPath(id): RunPath,
    Params(from): Params<From>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let after = follow::position(&headers, &from)?;
    ops::logs::readable(&app, caller.org(), id).await?;
    let pass = app.streams.enter(caller.org())?;
    follow::respond(app, &caller.token, id, LogSource::new(caller.org(), id, after), pass, &account).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holm_api::LAST_EVENT_ID;
    use holm_domain::ErrorCode;

    use crate::testing::World;

    #[tokio::test]
    async fn entries_come_live_once_and_the_end_is_told() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.append_log(held, 1, &["a\n", "b\n"]).await;
        let path = format!("/v1/runs/{}/logs/follow", held.run);
        let mut stream = world.member().follow(&path).await;
        assert_eq!(stream.events(2).await, ["1 log a\n", "2 log b\n"]);
        world.append_log(held, 3, &["c\n"]).await;
        assert_eq!(stream.events(1).await, ["3 log c\n"]);
        world.finish(held, 4).await;
        assert_eq!(stream.rest().await, ["- end {\"last_seq\":3}"]);

        let resumed = world.member().header(LAST_EVENT_ID, "2").follow(&format!("{path}?after=0")).await;
        assert_eq!(resumed.rest().await, ["3 log c\n", "- end {\"last_seq\":3}"]);
        let at_end = world.member().follow(&format!("{path}?after=3")).await;
        assert_eq!(at_end.rest().await, ["- end {\"last_seq\":3}"]);
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);
        let wrong = world.member().header(LAST_EVENT_ID, "x").get(&path).await.problem(ErrorCode::InvalidField);
        assert_eq!(wrong.field.as_deref(), Some(LAST_EVENT_ID));
    }

    #[tokio::test]
    async fn an_org_has_a_limited_number_of_streams() {
        let world = World::with_limits(|limits| limits.streams_per_org_max = 1).await;
        let id = world.queue_run().await;
        let path = format!("/v1/runs/{id}/logs/follow");
        let first = world.member().follow(&path).await;
        let refused = world.member().get(&path).await;
        assert_eq!(refused.headers[http::header::RETRY_AFTER], "1");
        refused.problem(ErrorCode::TooMany);
        drop(first);
        let _second = world.member().follow(&path).await;
    }

    #[tokio::test]
    async fn a_server_that_ends_lets_its_streams_go_without_an_end() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.append_log(held, 1, &["a\n"]).await;
        let mut stream = world.member().follow(&format!("/v1/runs/{}/logs/follow", held.run)).await;
        assert_eq!(stream.events(1).await.len(), 1);
        world.app().shutdown.cancel();
        assert!(stream.rest().await.is_empty());
    }

    #[tokio::test]
    async fn a_revoked_token_loses_its_streams_within_two_seconds() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let mut quiet = world.member().follow(&format!("/v1/runs/{}/logs/follow", held.run)).await;
        world.append_log(held, 1, &["a\n"]).await;
        assert_eq!(quiet.events(1).await.len(), 1);
        let mut events = world.member().follow(&format!("/v1/runs/{}/events/follow", held.run)).await;
        assert_eq!(events.events(2).await.len(), 2);
        let other = world.admin().follow(&format!("/v1/runs/{}/logs/follow", held.run)).await;
        let begun = tokio::time::Instant::now();
        // As another server would: this one is told nothing.
        world.revoke_member_token().await;
        assert!(quiet.rest().await.is_empty(), "no `end`: the client asks again and is refused");
        assert!(events.rest().await.is_empty());
        assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
        world.finish(held, 2).await;
        assert_eq!(other.rest().await.len(), 2, "the streams of others go on");
    }

    #[tokio::test]
    async fn a_stream_of_a_run_that_is_deleted_ends() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let stream = world.member().follow(&format!("/v1/runs/{}/logs/follow", held.run)).await;
        world.finish(held, 1).await;
        assert_eq!(stream.rest().await, ["- end {\"last_seq\":0}"]);
    }
}
