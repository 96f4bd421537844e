//! `GET /v1/runs/{id}/logs/search`: lines of a log that contain something.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    logs::{LogMatches, SearchLogs},
    problem::Problem,
};

use crate::{
    app::App,
    auth::{May, Read},
    http::extract::{Params, RunPath},
    ops,
    problem::Failure,
};

/// Search the log
///
/// Lines that contain a text or match a regular expression, oldest first. An answer comes after two seconds at most, with
/// what was found until then, perhaps nothing; go on with `last_seq` until `complete`. Of a line beyond 64 KiB, that much
/// is matched at a time.
#[utoipa::path(
    get, path = "/v1/runs/{id}/logs/search", tag = "logs", operation_id = "log_search",
    params(("id" = String, Path, description = "The run, as `run_…`."), SearchLogs),
    responses(
        (status = 200, description = "What was found.", body = LogMatches),
        (status = 410, description = "`logs_deleted`.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` searches.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn logs_search(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    RunPath(id): RunPath,
    Params(query): Params<SearchLogs>,
) -> Result<axum::Json<LogMatches>, Failure> {
    Ok(axum::Json(ops::logs::search::log_search(&app, caller.org(), id, &query).await?))
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_search_goes_on_where_it_was() {
        let world = World::new().await;
        let held = world.claim_run().await;
        for n in 0..40u64 {
            let lines = [format!("line {n}\n"), format!("\x1b[31mred {n}\x1b[0m\n")];
            world.append_log(held, n * 2 + 1, &lines.each_ref().map(String::as_str)).await;
        }
        let path = format!("/v1/runs/{}/logs/search", held.run);
        let search = |query: String| {
            let (path, member) = (format!("{path}?{query}"), world.member());
            async move { member.get(&path).await.json::<LogMatches>(StatusCode::OK) }
        };
        let seqs = |page: &LogMatches| page.matches.iter().map(|found| found.line.seq).collect::<Vec<_>>();
        let (mut after, mut found) = (0, Vec::new());
        loop {
            let page = search(format!("regex=red%20%5Cd*5&limit=1&after={after}")).await;
            found.extend(seqs(&page));
            after = page.last_seq;
            if page.complete {
                break;
            }
        }
        assert_eq!(found, [12, 32, 52, 72]);
        let bounded = search("text=line%201&after=4&upto=25".to_owned()).await;
        assert_eq!((seqs(&bounded), bounded.last_seq, bounded.complete), (vec![21, 23, 25], 25, true));
        let nothing = search("text=blue".to_owned()).await;
        assert_eq!((nothing.matches.len(), nothing.last_seq, nothing.complete), (0, 80, true));
        world.other_org().get(&format!("{path}?text=a")).await.problem(ErrorCode::NotFound);
        for query in ["", "text=a&regex=b", "regex=(", "text=a&limit=0", "text=a&limit=10001", "word=a"] {
            world.member().get(&format!("{path}?{query}")).await.problem(ErrorCode::InvalidField);
        }
    }

    #[tokio::test]
    async fn a_line_between_two_answers_is_found_once() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.append_log(held, 1, &["a nee", "dle in ", "pieces\n", "needle\n", "a needle"]).await;
        let path = format!("/v1/runs/{}/logs/search?text=needle", held.run);
        for after in 0..=4 {
            let page: LogMatches = world.member().get(&format!("{path}&after={after}")).await.json(StatusCode::OK);
            let found: Vec<u64> = page.matches.iter().map(|found| found.line.seq).collect();
            let expected: Vec<u64> = [3, 4, 5].into_iter().filter(|seq| *seq > after).collect();
            assert_eq!(found, expected, "after {after}");
            assert!(after > 2 || page.matches[0].line.text.as_deref() == Some("a needle in pieces\n"));
        }
    }

    #[tokio::test]
    async fn an_org_has_a_limited_number_of_searches() {
        let world = World::with_limits(|limits| limits.searches_per_org_max = 1).await;
        let id = world.queue_run().await;
        let _other = world.app().searches.enter(world.org).unwrap();
        world.member().get(&format!("/v1/runs/{id}/logs/search?text=a")).await.problem(ErrorCode::TooMany);
    }
}
