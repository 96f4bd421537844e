//! Live streams: server-sent events (WHATWG HTML, section "Server-sent events"), and logs as batches.
//!
//! The id of each event is its sequence within the run, so a client that lost its connection says with `Last-Event-ID`
//! where it was and gets each later entry once and in order, from any server (SPEC S2). A stream that is complete says so
//! with a last event and ends; one that ends without it (shutdown, a connection that makes room, an error, the longest life
//! of a stream) is to be resumed. Its token is looked at every second: a revocation ends the stream. What a step costs
//! depends on what is new, not on what is stored.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::stream;
use holm_api::LAST_EVENT_ID;
use holm_domain::{RunId, access::Token, error::InvalidField};
use http::{
    HeaderMap, HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    account::Account, app::App, auth::Lasting, config::KEEP_ALIVE_EVERY, gate::Pass, problem::Failure, wakers::Listener,
};

/// The media type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream";
/// What a stream of events says when it has nothing to say.
pub const ALIVE_COMMENT: &[u8] = b": alive\n\n";
/// How long a stream lives at most. The client resumes.
const LIFE_MAX: Duration = Duration::from_secs(3_600);

/// Where a stream is to begin, in the query.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct From {
    /// Only what has a larger sequence; the header `Last-Event-ID` goes before this.
    #[serde(default)]
    pub after: Option<u64>,
}

/// The sequence after which a stream begins: `Last-Event-ID`, else `after`, else 0.
pub fn position(headers: &HeaderMap, from: &From) -> Result<u64, Failure> {
    let Some(given) = headers.get(LAST_EVENT_ID) else { return Ok(from.after.unwrap_or(0)) };
    let text = given.to_str().unwrap_or("");
    text.parse().map_err(|_| InvalidField::new(LAST_EVENT_ID, text, "give the id of an event, a number").into())
}

/// What one look at a source found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Something new, encoded.
    New(Bytes),
    /// Nothing yet.
    Quiet,
    /// Nothing more will come; what is said last.
    End(Bytes),
}

/// What a stream reads from. It keeps its own position.
pub trait Source: Send + 'static {
    /// What the stream is made of.
    const MEDIA_TYPE: &'static str;
    /// What is sent when there was nothing to send for long.
    const ALIVE: &'static [u8];

    /// Looks once for what is new.
    fn step(&mut self, app: &App) -> impl Future<Output = Result<Step, Failure>> + Send;
}

/// Writes one event.
pub fn write_event<T: Serialize>(out: &mut Vec<u8>, name: &str, id: Option<u64>, data: &T) -> Result<(), Failure> {
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    out.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
    // JSON has no line feeds of its own, so the data is always one line.
    serde_json::to_writer(&mut *out, data).map_err(Failure::internal)?;
    out.extend_from_slice(b"\n\n");
    Ok(())
}

struct Follow<S> {
    app: Arc<App>,
    listener: Listener,
    source: S,
    token: Lasting,
    /// What the first look found, before the answer began.
    ahead: Option<Step>,
    ended: bool,
    spoke_at: Instant,
    ends_at: Instant,
    /// Cancelled when the connection is to leave.
    leave: CancellationToken,
    // Given back when the stream is dropped.
    _pass: Pass,
}

impl<S: Source> Follow<S> {
    fn is_called_off(&self) -> bool {
        self.app.shutdown.is_cancelled() || self.leave.is_cancelled()
    }

    /// The next bytes of the stream; nothing at its end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended && !self.is_called_off() && Instant::now() < self.ends_at {
            let heard = self.listener.heard();
            if let Err(failure) = self.token.check(&self.app).await {
                tracing::info!(%failure, "a stream ends with its token");
                return None;
            }
            let step = match self.ahead.take() {
                Some(step) => Ok(step),
                None => self.source.step(&self.app).await,
            };
            match step {
                Ok(Step::New(bytes)) => return Some(spoken(&mut self.spoke_at, bytes)),
                Ok(Step::End(bytes)) => {
                    self.ended = true;
                    return Some(bytes);
                }
                Ok(Step::Quiet) => {}
                Err(failure) => {
                    tracing::warn!(%failure, "a stream ends early; its client resumes");
                    return None;
                }
            }
            if self.spoke_at.elapsed() >= KEEP_ALIVE_EVERY {
                return Some(spoken(&mut self.spoke_at, Bytes::from_static(S::ALIVE)));
            }
            tokio::select! {
                () = heard => {}
                () = tokio::time::sleep(self.app.config.limits.reread_every) => {}
                () = self.app.shutdown.cancelled() => {}
                () = self.leave.cancelled() => {}
            }
        }
        None
    }
}

fn spoken(at: &mut Instant, bytes: Bytes) -> Bytes {
    *at = Instant::now();
    bytes
}

/// Answers with a live stream of `source`, which is about `run`, for as long as `token` works. What cannot be read from the
/// beginning on is a refusal, not a stream that ends early: nobody would resume it with more success.
pub async fn respond<S: Source>(
    app: Arc<App>,
    token: &Token,
    run: RunId,
    mut source: S,
    pass: Pass,
    account: &Account,
) -> Result<Response, Failure> {
    // What comes between a look that found nothing and the first wait would wake nobody: that look is made again.
    let ahead = Some(source.step(&app).await?).filter(|step| *step != Step::Quiet);
    let now = Instant::now();
    let listener = app.wakers.listen_run(run);
    let (token, ends_at, leave) = (Lasting::new(&app, token), now + LIFE_MAX, account.wait());
    let follow =
        Follow { app, listener, source, token, ahead, ended: false, spoke_at: now, ends_at, leave, _pass: pass };
    let body = stream::unfold(follow, |mut follow| async move {
        let bytes = follow.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), follow))
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(S::MEDIA_TYPE));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_data() {
        let mut out = Vec::new();
        write_event(&mut out, "log", Some(7), &"a\r\nb\u{2028}").unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "id: 7\nevent: log\ndata: \"a\\r\\nb\u{2028}\"\n\n");
    }

    #[test]
    fn the_header_goes_before_the_query() {
        let mut headers = HeaderMap::new();
        let from = From { after: Some(3) };
        assert_eq!(position(&headers, &From::default()).unwrap(), 0);
        assert_eq!(position(&headers, &from).unwrap(), 3);
        headers.insert(LAST_EVENT_ID, "9".parse().unwrap());
        assert_eq!(position(&headers, &from).unwrap(), 9);
        headers.insert(LAST_EVENT_ID, "-1".parse().unwrap());
        assert!(position(&headers, &from).is_err());
    }
}
