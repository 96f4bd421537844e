//! `GET /v1/runs/{id}/logs/range`: which part of a log a time or a number of lines means.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    logs::{LogRange, LogRangeOf},
    problem::Problem,
};

use crate::{
    app::App,
    auth::{May, Read},
    config::TAIL_LINES_MAX,
    http::extract::{Params, RunPath, within},
    ops,
    problem::Failure,
};

/// Find a part of the log
///
/// The sequences between which the lines lie that were written in a time, or the last lines: to be read as a page, as
/// batches, or followed from there. A line that was written in pieces, with other lines between them, counts where it ends.
#[utoipa::path(
    get, path = "/v1/runs/{id}/logs/range", tag = "logs", operation_id = "log_range",
    params(("id" = String, Path, description = "The run, as `run_…`."), LogRangeOf),
    responses(
        (status = 200, description = "The part of the log.", body = LogRange),
        (status = 410, description = "`logs_deleted`.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn logs_range(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    RunPath(id): RunPath,
    Params(query): Params<LogRangeOf>,
) -> Result<axum::Json<LogRange>, Failure> {
    within("tail", query.tail.unwrap_or(0).into(), 0, TAIL_LINES_MAX.into())?;
    Ok(axum::Json(ops::logs::range::log_range(&app, caller.org(), id, &query).await?))
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn times_and_lines_become_sequences() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/v1/runs/{}/logs/range", held.run);
        let range = |query: &str| {
            let (path, member) = (format!("{path}?{query}"), world.member());
            async move {
                let LogRange { after, last_seq, open } = member.get(&path).await.json::<LogRange>(StatusCode::OK);
                (after, last_seq, open)
            }
        };
        assert_eq!(range("tail=5&since=0").await, (0, 0, true), "an empty log");
        for (first, at) in [(1, 100), (3, 200), (5, 150), (7, 300)] {
            world.append_log_at(held, first, at, &["a\n", "b\n"]).await;
        }
        assert_eq!(range("").await, (0, 8, true));
        assert_eq!(range("tail=3").await, (5, 8, true));
        assert_eq!(range("tail=0").await, (8, 8, true));
        assert_eq!(range("tail=100000").await, (0, 8, true));
        assert_eq!(range("since=200").await, (2, 8, true), "from there on, though the clock went back");
        assert_eq!(range("since=201").await, (6, 8, true));
        assert_eq!(range("since=301").await, (8, 8, true));
        assert_eq!(range("until=100").await, (0, 2, false));
        assert_eq!(range("until=299").await, (0, 6, false));
        assert_eq!(range("until=300").await, (0, 8, true));
        assert_eq!(range("since=200&until=299&tail=1").await, (5, 6, false));
        assert_eq!(range("since=300&until=100").await, (2, 2, false), "nothing lies between");
        world.finish(held, 9).await;
        assert_eq!(range("tail=1").await, (7, 8, false));
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);
        for query in ["tail=100001", "tail=-1", "since=yesterday", "from=1"] {
            world.member().get(&format!("{path}?{query}")).await.problem(ErrorCode::InvalidField);
        }
    }
}
