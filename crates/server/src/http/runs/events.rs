//! `GET /v1/runs/{id}/events`: a page of events.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    problem::Problem,
    runs::{After, EventPage},
};

use crate::{
    app::App,
    auth::{May, Read},
    config::{ENTRIES_PAGE_DEFAULT, ENTRIES_PAGE_MAX},
    http::extract::{Params, RunPath, within},
    ops,
    problem::Failure,
};

/// Read the events
///
/// Events after a number, oldest first.
#[utoipa::path(
    get, path = "/v1/runs/{id}/events", tag = "events", operation_id = "event_page",
    params(("id" = String, Path, description = "The run, as `run_…`."), After),
    responses(
        (status = 200, description = "A page of events.", body = EventPage),
        (status = 429, description = "`too_many` pages, or bytes of answers.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn events(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    RunPath(id): RunPath,
    Params(query): Params<After>,
) -> Result<axum::Json<EventPage>, Failure> {
    let limit = query.limit.unwrap_or(ENTRIES_PAGE_DEFAULT);
    within("limit", limit.into(), 1, ENTRIES_PAGE_MAX.into())?;
    let _pass = app.pages.enter(caller.org())?;
    let page = ops::events::event_page(&app, caller.org(), id, query.after.unwrap_or(0), limit).await?;
    Ok(axum::Json(page))
}

#[cfg(test)]
mod tests {
    use holm_domain::{ErrorCode, run::EventKind};
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn events_tell_the_way_of_a_run_to_its_org() {
        let world = World::new().await;
        let held = world.claim_run().await;
        let path = format!("/v1/runs/{}/events", held.run);
        let page: EventPage = world.member().get(&path).await.json(StatusCode::OK);
        let kinds: Vec<_> = page.events.iter().map(|event| (event.seq, &event.kind)).collect();
        assert!(matches!(kinds[..], [(1, EventKind::Queued), (2, EventKind::Claimed { fence: 1, .. })]), "{kinds:?}");
        let rest: EventPage = world.member().get(&format!("{path}?after=1&limit=1")).await.json(StatusCode::OK);
        assert_eq!((rest.events.len(), rest.last_seq), (1, 2));
        world.other_org().get(&path).await.problem(ErrorCode::NotFound);
        world.member().get(&format!("{path}?limit=0")).await.problem(ErrorCode::InvalidField);
    }
}
