//! The outermost layer: numbers each request, turns failures and panics into problem documents, says the server's time, and
//! counts and logs each request once.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use holm_api::{PROBLEM_JSON, REQUEST_ID, problem::Problem};
use holm_domain::ErrorCode;
use http::{
    HeaderValue, Method, StatusCode, Uri,
    header::{CONTENT_TYPE, DATE},
};
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::{account::Account, app::App, ids, problem::Failure};

/// Frames every request; see the module.
pub async fn frame(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = ids::request();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let account = Arc::new(Account::on(request.extensions().get()));
    request.extensions_mut().insert(Arc::clone(&account));
    let started = Instant::now();
    let span = tracing::info_span!("request", %id, %method, path = uri.path());
    async move {
        let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = answered.unwrap_or_else(|panic| {
            let cause = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let cause = cause.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Failure::internal(format!("panic: {cause}")).into_response()
        });
        let mut response = account.give(&app, &method, response).await;
        let cause = document(&app, &mut response, &id, &method, &uri);
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        if let Some(date) = date(&app) {
            response.headers_mut().insert(DATE, date);
        }
        let took = started.elapsed();
        app.metrics.answered(&method, route.as_ref(), response.status(), took);
        log(response.status(), took, cause);
        response
    }
    .instrument(span)
    .await
}

/// The time by which the server decides (RFC 9110 §6.6.1); the machine's own may have been set since it started.
fn date(app: &App) -> Option<HeaderValue> {
    let now = jiff::Timestamp::from_microsecond(app.now().0).ok()?;
    HeaderValue::from_maybe_shared(DateTimePrinter::new().timestamp_to_rfc9110_string(&now).ok()?).ok()
}

/// Makes a problem document of an answer that is an error; returns what is for the log alone.
fn document(app: &App, response: &mut Response, id: &str, method: &Method, uri: &Uri) -> Option<String> {
    let failure = match response.extensions_mut().remove::<Failure>() {
        Some(failure) => failure,
        None if response.status().is_client_error() || response.status().is_server_error() => {
            by_status(response.status(), method, uri)
        }
        None => return None,
    };
    app.metrics.refused(failure.code());
    let cause = failure.for_log();
    let mut problem = failure.into_problem();
    problem.request_id = Some(id.to_owned());
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.status_mut() = status;
    response.headers_mut().remove(http::header::CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    *response.body_mut() = Body::from(encode(&problem));
    Some(cause)
}

fn encode(problem: &Problem) -> Vec<u8> {
    // A problem has only texts and numbers, which always become JSON.
    serde_json::to_vec(problem).unwrap_or_default()
}

/// The failure behind an error status that the router set by itself.
fn by_status(status: StatusCode, method: &Method, uri: &Uri) -> Failure {
    match status {
        StatusCode::NOT_FOUND => Failure::not_found("resource", uri.path()),
        StatusCode::METHOD_NOT_ALLOWED => {
            let detail = format!("`{}` has no method {method}; the header `allow` says which it has", uri.path());
            Failure::new(ErrorCode::MethodNotAllowed, detail)
        }
        StatusCode::PAYLOAD_TOO_LARGE => Failure::new(ErrorCode::TooLarge, "the body is too large"),
        status if status.is_client_error() => Failure::new(ErrorCode::InvalidRequest, format!("refused: {status}")),
        status => Failure::internal(format!("an answer without a problem: {status}")),
    }
}

fn log(status: StatusCode, took: Duration, cause: Option<String>) {
    let (status, took_us) = (status.as_u16(), u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    match cause {
        Some(cause) if status >= 500 => tracing::error!(status, took_us, cause, "failed"),
        Some(cause) => tracing::info!(status, took_us, cause, "refused"),
        None => tracing::debug!(status, took_us, "answered"),
    }
}

/// How long the requests of a group of routes may take until their answers begin.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Duration);

/// Ends a request whose answer does not begin in time.
pub async fn deadline(State(Deadline(limit)): State<Deadline>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("no answer within {} ms", limit.as_millis());
            Failure::new(ErrorCode::DeadlineExceeded, detail).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware, routing::get};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str) -> (StatusCode, Problem, String) {
        let app = Arc::new(App::new(crate::Config::default(), holm_store::Store::memory()));
        let panics = || async { panic!("secret detail") as &'static str };
        let slow = get(std::future::pending::<&'static str>)
            .layer(middleware::from_fn_with_state(Deadline(Duration::from_millis(5)), deadline));
        let router = Router::new()
            .route("/panic", get(panics))
            .route("/slow", slow)
            .route("/bare", get(|| async { StatusCode::BAD_GATEWAY }))
            .layer(middleware::from_fn_with_state(app, frame));
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
        let header = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap(), header)
    }

    #[tokio::test]
    async fn panics_timeouts_and_bare_statuses_are_documents() {
        for (path, code) in [
            ("/panic", ErrorCode::Internal),
            ("/slow", ErrorCode::DeadlineExceeded),
            ("/bare", ErrorCode::Internal),
            ("/none", ErrorCode::NotFound),
        ] {
            let (status, problem, id) = ask(path).await;
            assert_eq!((problem.code, problem.status), (code, code.status()), "{path}");
            assert_eq!(status.as_u16(), problem.status);
            assert_eq!(problem.request_id, Some(id));
            assert!(!problem.detail.contains("secret detail"));
        }
    }
}
