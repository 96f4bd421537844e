//! `GET /v1/runs`: runs of the org, newest first, page by page.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use axum::extract::State;
use holm_api::{
    problem::Problem,
    runs::{ListRuns, RunPage, RunView},
};
use holm_domain::{OrgId, error::InvalidField, run::RunState};
use holm_store::{FILTER_LABELS_MAX, RunFilter};

use crate::{
    app::App,
    auth::{May, Read},
    config::{RUNS_PAGE_DEFAULT, RUNS_PAGE_MAX},
    http::{
        cursor,
        extract::{Params, within},
    },
    ops::{self, runs::Listed},
    problem::Failure,
};

/// List runs
///
/// Newest first. Going on with `next_cursor` shows each run that was there at the first page once, whatever is added
/// meanwhile. A page has fewer than `limit` runs when they are large. One that cannot be read hides no other: it is named in
/// `unreadable`.
#[utoipa::path(
    get, path = "/v1/runs", tag = "runs", operation_id = "run_list",
    params(ListRuns),
    responses(
        (status = 200, description = "A page of runs.", body = RunPage),
        (status = 400, description = "`invalid_cursor`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "`too_many` pages, or bytes of answers.", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: May<Read>,
    Params(query): Params<ListRuns>,
) -> Result<axum::Json<RunPage>, Failure> {
    let org = caller.org();
    let limit = query.limit.unwrap_or(RUNS_PAGE_DEFAULT);
    within("limit", limit.into(), 1, RUNS_PAGE_MAX.into())?;
    let filter = filter(&app, org, &query).await?;
    let described = describe(&filter);
    let before = query.cursor.map(|given| cursor::decode(org, &described, &given)).transpose()?;
    let _pass = app.pages.enter(org)?;
    let Listed { runs, unreadable, before } = ops::runs::run_list(&app, org, &filter, before, limit).await?;
    let next_cursor = before.map(|last| cursor::encode(org, &described, last));
    let runs = runs.into_iter().map(RunView::from).collect();
    Ok(axum::Json(RunPage { runs, unreadable, next_cursor }))
}

async fn filter(app: &App, org: OrgId, query: &ListRuns) -> Result<RunFilter, Failure> {
    let states = query.state.as_deref().map(states).transpose()?.unwrap_or_default();
    let labels = query.label.as_deref().map(labels).transpose()?.unwrap_or_default();
    let Some(name) = &query.project else { return Ok(RunFilter { project: None, states, labels }) };
    let project = ops::project_named(app, org, name).await?;
    Ok(RunFilter { project: Some(project.id), states, labels })
}

fn states(text: &str) -> Result<Vec<RunState>, InvalidField> {
    let known = RunState::ALL.map(RunState::as_str).join(", ");
    let mut states = Vec::new();
    for word in text.split(',') {
        let state = RunState::parse(word);
        let state = state.ok_or_else(|| InvalidField::new("state", word, format!("give some of {known}")))?;
        if !states.contains(&state) {
            states.push(state);
        }
    }
    states.sort_by_key(|state| state.as_str());
    Ok(states)
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, InvalidField> {
    let mut labels = BTreeMap::new();
    for pair in text.split(',') {
        let refused = || InvalidField::new("label", pair, "give `key=value`, separated by commas");
        let (key, value) = pair.split_once('=').ok_or_else(refused)?;
        if key.is_empty() || pair.contains('\0') || labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(refused());
        }
    }
    if labels.len() > FILTER_LABELS_MAX {
        return Err(InvalidField::new("label", labels.len(), format!("give at most {FILTER_LABELS_MAX} labels")));
    }
    Ok(labels)
}

/// The filter as a text that is the same for the same filter; cursors are bound to it.
fn describe(filter: &RunFilter) -> String {
    let mut text = String::new();
    if let Some(project) = filter.project {
        let _ = write!(text, "project={project};");
    }
    for state in &filter.states {
        let _ = write!(text, "state={};", state.as_str());
    }
    for (key, value) in &filter.labels {
        let _ = write!(text, "label={}:{key}={}:{value};", key.len(), value.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use holm_domain::{ErrorCode, RunId};
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::{config::RUNS_PAGE_BYTES_MAX, testing::World};

    async fn page(world: &World, query: &str) -> RunPage {
        world.member().get(&format!("/v1/runs?{query}")).await.json(StatusCode::OK)
    }

    #[tokio::test]
    async fn pages_show_each_run_once_newest_first() {
        let world = World::new().await;
        let mut queued = Vec::new();
        for _ in 0..5 {
            queued.push(world.queue_run().await);
        }
        let mut shown: Vec<RunId> = Vec::new();
        let mut query = "limit=2".to_owned();
        loop {
            let page = page(&world, &query).await;
            shown.extend(page.runs.iter().map(|run| run.id));
            let Some(cursor) = page.next_cursor else { break };
            world.queue_run().await;
            query = format!("limit=2&cursor={cursor}");
        }
        queued.reverse();
        assert_eq!(shown, queued);
        let theirs: RunPage = world.other_org().get("/v1/runs").await.json(StatusCode::OK);
        assert!(theirs.runs.is_empty());
    }

    #[tokio::test]
    async fn a_page_of_large_runs_is_shorter_and_none_is_missing() {
        let world = World::new().await;
        let (large, count) = ("a".repeat(RUNS_PAGE_BYTES_MAX / 10), 25);
        let mut queued = Vec::new();
        for _ in 0..count {
            let spec = json!({"root": {"kind": "host"}, "argv": [large]});
            let made = world.member().post("/v1/runs", &json!({"spec": spec})).await;
            queued.push(made.json::<RunView>(StatusCode::CREATED).id);
        }
        let (mut shown, mut pages, mut query) = (Vec::new(), Vec::new(), "limit=24".to_owned());
        loop {
            let page = page(&world, &query).await;
            shown.extend(page.runs.iter().map(|run| run.id));
            pages.push(page.runs.len());
            let Some(cursor) = page.next_cursor else { break };
            query = format!("limit=24&cursor={cursor}");
        }
        queued.reverse();
        assert_eq!((shown, pages), (queued, vec![10, 10, 5]));
    }

    #[tokio::test]
    async fn filters_select_and_bind_the_cursor() {
        let world = World::new().await;
        for colour in ["red", "blue", "red", "red"] {
            let spec = json!({"root": {"kind": "host"}, "argv": ["true"], "labels": {"colour": colour}});
            let made = world.member().post("/v1/runs", &json!({"spec": spec})).await;
            assert_eq!(made.status, StatusCode::CREATED);
        }
        let red = page(&world, "label=colour%3Dred&state=queued,running&project=default&limit=2").await;
        assert_eq!(red.runs.len(), 2);
        let cursor = red.next_cursor.unwrap();
        let rest =
            page(&world, &format!("label=colour%3Dred&state=running,queued&project=default&cursor={cursor}")).await;
        assert_eq!((rest.runs.len(), rest.next_cursor), (1, None));
        assert!(page(&world, "state=ended").await.runs.is_empty());
        let carried_over = format!("/v1/runs?label=colour%3Dblue&cursor={cursor}");
        world.member().get(&carried_over).await.problem(ErrorCode::InvalidCursor);
        world.other_org().get(&format!("/v1/runs?cursor={cursor}")).await.problem(ErrorCode::InvalidCursor);
    }

    #[tokio::test]
    async fn absurd_queries_are_refused_with_the_field() {
        let world = World::new().await;
        for (query, field, value) in [
            ("limit=0", "limit", "0"),
            ("limit=201", "limit", "201"),
            ("limit=x", "limit", "x"),
            ("limit=1&limit=2", "limit", "1"),
            ("state=queued,asleep", "state", "asleep"),
            ("label=colour", "label", "colour"),
            ("project=nope", "project", "nope"),
            ("org=org_x", "org", "org_x"),
        ] {
            let problem = world.member().get(&format!("/v1/runs?{query}")).await.problem(ErrorCode::InvalidField);
            assert_eq!((problem.field.as_deref(), problem.value.as_deref()), (Some(field), Some(value)), "{query}");
        }
    }
}
