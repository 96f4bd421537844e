//! `GET /v1/runs/{id}/logs`: a page of log entries.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{logs::LogPage, problem::Problem, runs::After};

use crate::{
    app::App,
    auth::{May, Read},
    config::{ENTRIES_PAGE_DEFAULT, ENTRIES_PAGE_MAX},
    http::extract::{Params, RunPath, within},
    ops,
    problem::Failure,
};

/// Read the log
///
/// Entries after a sequence, oldest first. A page has fewer than `limit` entries when they are large; go on with `last_seq`
/// until `complete`.
#[utoipa::path(
    get, path = "/v1/runs/{id}/logs", tag = "logs", operation_id = "log_page",
    params(("id" = String, Path, description = "The run, as `run_…`."), After),
    responses(
        (status = 200, description = "A page of the log.", body = LogPage),
        (status = 410, description = "`logs_deleted`.", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` pages, or bytes of answers.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn logs(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    RunPath(id): RunPath,
    Params(query): Params<After>,
) -> Result<axum::Json<LogPage>, Failure> {
    let limit = query.limit.unwrap_or(ENTRIES_PAGE_DEFAULT);
    within("limit", limit.into(), 1, ENTRIES_PAGE_MAX.into())?;
    let _pass = app.pages.enter(caller.org())?;
    let page = ops::logs::log_page(&app, caller.org(), id, query.after.unwrap_or(0), limit).await?;
    Ok(axum::Json(page))
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn pages_go_on_until_the_end() {
        let world = World::new().await;
        let held = world.claim_run().await;
        world.append_log(held, 1, &["a\n", "b\n"]).await;
        world.append_log(held, 3, &["c\n"]).await;
        let path = format!("/v1/runs/{}/logs", held.run);
        let page = |query: &str| {
            let (path, member) = (format!("{path}?{query}"), world.member());
            async move { member.get(&path).await.json::<LogPage>(StatusCode::OK) }
        };
        let texts = |page: &LogPage| page.entries.iter().filter_map(|e| e.text.clone()).collect::<String>();
        let first = page("limit=2").await;
        assert_eq!((texts(&first).as_str(), first.last_seq, first.complete), ("a\nb\n", 2, false));
        let second = page("after=2").await;
        assert_eq!((texts(&second).as_str(), second.last_seq, second.complete), ("c\n", 3, false));
        world.finish(held, 4).await;
        assert!(page("after=3").await.complete);
        assert!(!page("after=0&limit=1").await.complete);
        let beyond = page("after=18446744073709551615").await;
        assert!(beyond.entries.is_empty());
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);
        for query in ["limit=0", "limit=10001", "after=-1", "colour=red"] {
            world.member().get(&format!("{path}?{query}")).await.problem(ErrorCode::InvalidField);
        }
    }

    #[tokio::test]
    async fn an_org_has_a_limited_number_of_pages() {
        let world = World::with_limits(|limits| limits.pages_per_org_max = 1).await;
        let id = world.queue_run().await;
        let pages = [format!("/v1/runs/{id}/logs"), format!("/v1/runs/{id}/events"), "/v1/runs".to_owned()];
        let pass = world.app().pages.enter(world.org).unwrap();
        for path in &pages {
            world.member().get(path).await.problem(ErrorCode::TooMany);
        }
        assert_eq!(world.other_org().get("/v1/runs").await.status, StatusCode::OK);
        drop(pass);
        for path in &pages {
            assert_eq!(world.member().get(path).await.status, StatusCode::OK);
        }
    }
}
