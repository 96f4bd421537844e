//! One request to a collector and its answer.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use reqwest::Url;

use crate::Settings;

/// How long it may take to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection is kept that is not used.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// The most of an answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why spans were not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Untaken {
    /// For people; nothing of the request or of what the collector wrote is in it.
    pub(crate) problem: String,
    /// Whether the same may be tried again.
    pub(crate) is_transient: bool,
    /// How long the collector asks to be left alone before.
    pub(crate) retry_after: Option<Duration>,
}

impl Untaken {
    /// What would not be taken a second time either.
    pub(crate) fn for_good(problem: String) -> Self {
        Self { problem, is_transient: false, retry_after: None }
    }
}

/// A connection to a collector.
#[derive(Debug)]
pub(crate) struct Exporter {
    client: reqwest::Client,
    endpoint: Url,
    headers: HeaderMap,
}

impl Exporter {
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        // An error means that somebody else installed a provider before, which is as good.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(1)
            .http1_only()
            .user_agent(concat!("holm/", env!("CARGO_PKG_VERSION")));
        if !settings.is_encrypted() {
            // Neither certificates of the system are read, nor are spans and headers shown to a proxy.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let client = builder.build().map_err(|error| problem_of(&error))?;
        let mut headers = settings.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        Ok(Self { client, endpoint: settings.endpoint.clone(), headers })
    }

    /// Sends one request; returns how many of its spans the collector refused.
    pub(crate) async fn send(&self, request: Bytes) -> Result<u64, Untaken> {
        let request = self.client.post(self.endpoint.clone()).headers(self.headers.clone()).body(request);
        let sent = request.send().await;
        let mut answer =
            sent.map_err(|error| Untaken { is_transient: true, ..Untaken::for_good(problem_of(&error)) })?;
        let status = answer.status();
        if !status.is_success() {
            let problem = format!("the collector answers {status}");
            let (is_transient, retry_after) = (is_transient(status), retry_after(answer.headers()));
            return Err(Untaken { problem, is_transient, retry_after });
        }
        let mut body = Vec::new();
        // The spans are taken, whatever becomes of the rest of the answer.
        while let Ok(Some(chunk)) = answer.chunk().await {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Ok(0);
            }
            body.extend_from_slice(&chunk);
        }
        let answer = ExportTraceServiceResponse::decode(&body[..]).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partly| partly.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}

/// As OTLP has it (OTLP/HTTP, retryable response codes).
fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// The seconds of `Retry-After`; a date, which is as good by its specification, is not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// An error with its causes, without the URL.
fn problem_of(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "it took too long".to_owned() } else { String::new() };
    let mut cause = error.source();
    while let Some(inner) = cause {
        let part = inner.to_string();
        if !text.contains(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        cause = inner.source();
    }
    if text.is_empty() { "the request cannot be sent".to_owned() } else { text }
}
