//! Whether anybody uses the server: what one that was started for a single user ends by.
//!
//! Requests of agents and of monitors do not count: they never cease.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt as _;

/// What users ask and have asked.
#[derive(Debug, Default)]
pub struct Activity {
    requests: AtomicU64,
    open: AtomicUsize,
}

impl Activity {
    /// How many requests there have been.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// How many go on: their answers, streams among them, have not been sent to the end.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// One request that goes on.
struct Open(Arc<Activity>);

impl Open {
    fn new(activity: Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Ordering::SeqCst);
        activity.open.fetch_add(1, Ordering::SeqCst);
        Self(activity)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a request until its answer was sent, or given up.
pub async fn count(State(activity): State<Arc<Activity>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path.starts_with("/agent/") || path == "/metrics" {
        return next.run(request).await;
    }
    let open = Open::new(activity);
    let (head, body) = next.run(request).await.into_parts();
    let body = body.map_frame(move |frame| {
        let _until_the_body_is_dropped = &open;
        frame
    });
    Response::from_parts(head, Body::new(body))
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware, routing::get};
    use bytes::Bytes;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stream_counts_until_it_is_dropped_and_agents_and_monitors_do_not() {
        let activity = Arc::new(Activity::default());
        let endless = || async {
            Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"x"))))
        };
        let router = Router::new()
            .route("/v1/x", get(endless))
            .route("/agent/v1/x", get(endless))
            .route("/metrics", get(endless))
            .layer(middleware::from_fn_with_state(Arc::clone(&activity), count));
        let ask = |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request)
        };
        let mut answer = ask("/v1/x").await.unwrap().into_body();
        answer.frame().await.unwrap().unwrap();
        let _agent = ask("/agent/v1/x").await.unwrap();
        let _monitor = ask("/metrics").await.unwrap();
        assert_eq!((activity.requests(), activity.open()), (1, 1));
        drop(answer);
        assert_eq!((activity.requests(), activity.open()), (1, 0));
    }
}
