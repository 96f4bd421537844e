//! `POST /v1/runs`: take a run into the queue.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use holm_api::{
    IDEMPOTENCY_KEY,
    problem::Problem,
    runs::{CreateRun, RunView},
};
use holm_domain::{
    error::InvalidField,
    trace::{TRACEPARENT, TraceContext},
};
use http::{HeaderMap, HeaderValue, StatusCode, header::LOCATION};

use crate::{
    app::App,
    auth::{May, Run},
    http::extract::Json,
    ops,
    problem::Failure,
};

/// Submit a run
///
/// Takes a run into the queue. With the header `Idempotency-Key` the request may be repeated without harm: the same request
/// under the same key answers with the run that the first one made. A run that no host could execute now waits for one.
/// With the header `traceparent` of W3C Trace Context what becomes of the run is recorded under that span, where the server
/// records anything; one that is not as it should be is as if it were not there.
#[utoipa::path(
    post, path = "/v1/runs", tag = "runs", operation_id = "run_create",
    params(
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 printable ASCII characters."),
        ("traceparent" = Option<String>, Header, description = "The span in which the run is submitted."),
    ),
    request_body = CreateRun,
    responses(
        (status = 201, description = "The run is in the queue.", body = RunView),
        (status = 200, description = "An earlier request with the same key made this run.", body = RunView),
        (status = 409, description = "`idempotency_mismatch`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`", body = Problem, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: May<Run>,
    headers: HeaderMap,
    Json(body): Json<CreateRun>,
) -> Result<Response, Failure> {
    let key = idempotency_key(&headers)?;
    let created = ops::runs::run_create(&app, &caller.token, body, key, traceparent(&headers)).await?;
    let status = if created.new { StatusCode::CREATED } else { StatusCode::OK };
    let location = HeaderValue::from_str(&format!("/v1/runs/{}", created.run.id)).map_err(Failure::internal)?;
    let mut response = (status, axum::Json(RunView::from(created.run))).into_response();
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// The trace that the client names. As its specification has it, what is not exactly one good header is none.
fn traceparent(headers: &HeaderMap) -> Option<TraceContext> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let only = given.next().filter(|_| given.next().is_none())?;
    only.to_str().ok()?.parse().ok()
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, InvalidField> {
    let Some(given) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let refused = |_| InvalidField::new(IDEMPOTENCY_KEY, format!("{given:?}"), "give printable ASCII characters");
    given.to_str().map(|key| Some(key.to_owned())).map_err(refused)
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_run_is_queued_in_the_callers_org() {
        let world = World::new().await;
        let answer =
            world.member().post("/v1/runs", &json!({"spec": {"root": {"kind": "host"}, "argv": ["true"]}})).await;
        let location = answer.headers[LOCATION].to_str().unwrap().to_owned();
        let run: RunView = answer.json(StatusCode::CREATED);
        assert_eq!((run.org, run.state.as_str()), (world.org, "queued"));
        assert_eq!(location, format!("/v1/runs/{}", run.id));
    }

    #[tokio::test]
    async fn a_key_makes_repetition_harmless() {
        let world = World::new().await;
        let member = world.member().header(IDEMPOTENCY_KEY, "k-1");
        let body = json!({"spec": {"root": {"kind": "host"}, "argv": ["true"]}});
        let spelt_otherwise =
            json!({"project": null, "spec": {"argv": ["true"], "root": {"kind": "host"}, "mounts": []}});
        let first: RunView = member.post("/v1/runs", &body).await.json(StatusCode::CREATED);
        let again: RunView = member.post("/v1/runs", &spelt_otherwise).await.json(StatusCode::OK);
        assert_eq!(first.id, again.id);
        let other = json!({"spec": {"root": {"kind": "host"}, "argv": ["false"]}});
        member.post("/v1/runs", &other).await.problem(ErrorCode::IdempotencyMismatch);
        let elsewhere = world.other_org().header(IDEMPOTENCY_KEY, "k-1");
        let theirs: RunView = elsewhere.post("/v1/runs", &other).await.json(StatusCode::CREATED);
        assert_ne!(theirs.id, first.id, "a key of one org says nothing in another");
        let bad = world.member().header(IDEMPOTENCY_KEY, "");
        assert_eq!(bad.post("/v1/runs", &body).await.problem(ErrorCode::InvalidField).field.unwrap(), IDEMPOTENCY_KEY);
    }

    #[tokio::test]
    async fn what_cannot_be_is_named() {
        let world = World::new().await;
        let cases = [
            (json!({"spec": {"root": {"kind": "host"}, "argv": []}}), "spec.argv"),
            (json!({"spec": {"root": {"kind": "host"}, "argv": ["a"], "limits": {"pids": 0}}}), "spec.limits.pids"),
            (json!({"project": "nope", "spec": {"root": {"kind": "host"}, "argv": ["a"]}}), "project"),
            (json!({"project": "a\u{0}b", "spec": {"root": {"kind": "host"}, "argv": ["a"]}}), "project"),
            (json!({"spec": {"root": {"kind": "host"}, "argv": ["a"]}, "org": "x"}), "org"),
        ];
        for (body, field) in cases {
            let problem = world.member().post("/v1/runs", &body).await.problem(ErrorCode::InvalidField);
            assert_eq!(problem.field.as_deref(), Some(field), "{body}");
            assert!(problem.value.is_some() && problem.request_id.is_some());
        }
    }

    #[tokio::test]
    async fn bodies_that_are_large_or_no_json_are_refused() {
        let world = World::with_limits(|limits| limits.body_bytes_max = 1_000).await;
        let member = world.member();
        member.send("POST", "/v1/runs", "application/json", vec![b' '; 2_000]).await.problem(ErrorCode::TooLarge);
        member.send("POST", "/v1/runs", "application/json", b"{".to_vec()).await.problem(ErrorCode::InvalidRequest);
        let text = member.send("POST", "/v1/runs", "text/plain", b"{}".to_vec()).await;
        assert_eq!(text.problem(ErrorCode::InvalidRequest).field.as_deref(), Some("content-type"));
    }
}
