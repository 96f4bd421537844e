//! The HTTP client of the API: for the command line, the agent and the end-to-end tests.
//!
//! What always holds: every request has a deadline and every answer a limit of size; an error answer becomes the
//! [`Problem`](crate::problem::Problem) that the server sent; no redirect is followed, so the token goes to the configured
//! server alone; no error and no `Debug` text bears the token. TLS is set up only for `https` URLs: a Unix socket costs no
//! certificates.
//!
//! A request whose connection is lost before an answer comes is sent again, a few times at once, where that is harmless: one
//! that changes nothing, or bears an idempotency key. Who [waits](Client::waiting) sends again what the server says that it
//! has not taken, and [`follow`], which resumes by sequence, reconnects by itself.
//!
//! Deliberately left out: all other retries. Whoever calls knows whether a repetition is harmless.

mod agent;
mod audit;
mod error;
pub mod follow;
mod hosts;
mod keys;
mod orgs;
mod runs;
mod secrets;
pub mod sse;
mod tokens;
mod transport;

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use error::ClientError;
use holm_domain::trace::TraceContext;
pub use secrecy::SecretString;

/// How long a request may take from its start to the end of its answer, unless it is one that waits.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to connect.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The largest JSON answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An `http://` or `https://` URL, with or without a path under which the API lies.
    Tcp(String),
    /// The path of a Unix socket, of any length.
    Unix(PathBuf),
}

impl Endpoint {
    /// Reads `http://…`, `https://…` or `unix:PATH`.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///run/x` and `unix:/run/x` are both in use elsewhere.
            let path = if path.starts_with("///") { &path[2..] } else { path };
            if path.starts_with('/') {
                return Ok(Self::Unix(PathBuf::from(path)));
            }
        } else if text.starts_with("http://") || text.starts_with("https://") {
            let url = reqwest::Url::parse(text).ok().filter(|url| url.has_host());
            // A name or password in a URL would end up in logs, and a query cannot be a prefix of anything.
            if url.is_some_and(|url| url.username().is_empty() && url.password().is_none() && url.query().is_none()) {
                return Ok(Self::Tcp(text.trim_end_matches('/').to_owned()));
            }
        }
        Err(ClientError::Endpoint(text.to_owned()))
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(url) => f.write_str(url),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A client of one server with one token, or with none. Clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<transport::Transport>,
    trace: Option<TraceContext>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", self.endpoint()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that has not connected yet. Fails if the endpoint cannot be one, or the token cannot be sent.
    pub fn new(endpoint: Endpoint, token: SecretString) -> Result<Self, ClientError> {
        Self::anonymous(endpoint)?.with_token(&token)
    }

    /// A client without a token.
    pub fn anonymous(endpoint: Endpoint) -> Result<Self, ClientError> {
        Ok(Self { inner: Arc::new(transport::Transport::new(endpoint)?), trace: None })
    }

    /// A client of the same server with that token; both share connections. Fails if the token cannot be sent.
    pub fn with_token(&self, token: &SecretString) -> Result<Self, ClientError> {
        Ok(Self { inner: Arc::new(self.inner.with_token(token)?), trace: self.trace })
    }

    /// The same client; its requests wait and are sent again where a rate of the org is used up: nothing was done then. It waits for
    /// at most `patience`, and `tell` hears of each wait before it begins. Streams and uploads do not wait.
    pub fn waiting(self, patience: Duration, tell: impl Fn(&ClientError) + Send + Sync + 'static) -> Self {
        self.inner.wait(patience, tell);
        self
    }

    /// The same client; runs that it submits are recorded under that span, if under one.
    #[must_use]
    pub fn traced(self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self }
    }

    /// The server that this client speaks to.
    pub fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    /// Whether the server is up and has what it stands on: `GET /readyz`.
    pub async fn ready(&self, deadline: Duration) -> Result<(), ClientError> {
        self.inner.get("/readyz").deadline(deadline).no_content().await
    }

    /// The time by which the server decides, as HTTP has it (RFC 9110 §5.6.7), if it says so.
    pub async fn date(&self, deadline: Duration) -> Result<Option<String>, ClientError> {
        let answer = self.inner.get("/healthz").deadline(deadline).stream().await?;
        Ok(answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read() {
        assert_eq!(Endpoint::parse("unix:/run/x").unwrap(), Endpoint::Unix("/run/x".into()));
        assert_eq!(Endpoint::parse("unix:///run/x").unwrap(), Endpoint::Unix("/run/x".into()));
        assert_eq!(Endpoint::parse("https://h:1/p/").unwrap(), Endpoint::Tcp("https://h:1/p".into()));
        for bad in ["", "unix:", "unix:x", "http://", "ftp://h", "h:80", "http://u:p@h", "http://h/?a=b"] {
            assert!(matches!(Endpoint::parse(bad), Err(ClientError::Endpoint(text)) if text == bad), "{bad}");
        }
    }

    #[test]
    fn the_token_is_never_shown() {
        let client = Client::new(Endpoint::Tcp("http://h".into()), "holm_geheim".into()).unwrap();
        assert!(!format!("{client:?}").contains("geheim"));
        let error = Client::new(Endpoint::Tcp("http://h".into()), "holm_ge\nheim".into()).unwrap_err();
        assert!(matches!(error, ClientError::Token));
    }
}
