//! One request and its answer over TCP, TLS or a Unix socket.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Body, Method, Request, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};

use super::{ANSWER_BYTES_MAX, CONNECT_DEADLINE, ClientError, Endpoint, REQUEST_DEADLINE};
use crate::{IDEMPOTENCY_KEY, PROBLEM_JSON, problem::Problem};

/// The largest error answer that is read, in bytes.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;
/// The longest path that fits into a `sockaddr_un` with its NUL byte (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// How often a request is sent at most whose connection was lost before an answer came, where it may be repeated.
const SENT_MAX: u32 = 4;
/// The pause before it is sent again.
const SEND_PAUSE: Duration = Duration::from_millis(50);

/// Connections to one server, and the token for it.
pub(super) struct Transport {
    endpoint: Endpoint,
    base: String,
    http: reqwest::Client,
    authorization: Option<HeaderValue>,
    waiting: OnceLock<Waiting>,
    /// Keeps `/proc/self/fd/N` valid for as long as connections may be made through it.
    _socket_dir: Option<Arc<OwnedFd>>,
}

/// How long a request waits where a rate of the org is used up, and who is told.
struct Waiting {
    patience: Duration,
    tell: Box<dyn Fn(&ClientError) + Send + Sync>,
}

impl Transport {
    /// From now on a request that a rate of the org refuses waits and is sent again, for at most that long. What was said
    /// first counts.
    pub(super) fn wait(&self, patience: Duration, tell: impl Fn(&ClientError) + Send + Sync + 'static) {
        self.waiting.get_or_init(|| Waiting { patience, tell: Box::new(tell) });
    }

    /// The same connections with a token, and without patience where a rate is used up.
    pub(super) fn with_token(&self, token: &SecretString) -> Result<Self, ClientError> {
        Ok(Self {
            endpoint: self.endpoint.clone(),
            base: self.base.clone(),
            http: self.http.clone(),
            authorization: Some(bearer(token)?),
            waiting: OnceLock::new(),
            _socket_dir: self._socket_dir.clone(),
        })
    }

    pub(super) fn new(endpoint: Endpoint) -> Result<Self, ClientError> {
        let setup = |problem: String| ClientError::Setup { endpoint: endpoint.to_string(), problem };
        // An error means that another client installed a provider before, which is as good.
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(Duration::from_secs(60))
            .http1_only()
            .user_agent(concat!("holm/", env!("CARGO_PKG_VERSION")));
        let mut socket_dir = None;
        let base = match &endpoint {
            Endpoint::Tcp(url) => url.clone(),
            Endpoint::Unix(path) => {
                let (path, dir) = short_socket_path(path).map_err(|error| setup(error.to_string()))?;
                socket_dir = dir.map(Arc::new);
                builder = builder.unix_socket(path);
                "http://holm".to_owned()
            }
        };
        if !base.starts_with("https://") {
            // Reading the system's certificates takes longer than a whole run does.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| setup(chain(&error)))?;
        Ok(Self { endpoint, base, http, authorization: None, waiting: OnceLock::new(), _socket_dir: socket_dir })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn get(&self, path: impl AsRef<str>) -> Call<'_> {
        self.call(Method::GET, path.as_ref())
    }

    pub(super) fn post(&self, path: impl AsRef<str>) -> Call<'_> {
        self.call(Method::POST, path.as_ref())
    }

    pub(super) fn put(&self, path: impl AsRef<str>) -> Call<'_> {
        self.call(Method::PUT, path.as_ref())
    }

    pub(super) fn delete(&self, path: impl AsRef<str>) -> Call<'_> {
        self.call(Method::DELETE, path.as_ref())
    }

    /// `path` is made of constants, ids and names of secrets only, so nothing in it needs to be escaped.
    fn call(&self, method: Method, path: &str) -> Call<'_> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        Call { transport: self, request: Ok(request), deadline: REQUEST_DEADLINE }
    }

    fn error(&self, error: &reqwest::Error) -> ClientError {
        ClientError::Transport { endpoint: self.endpoint.to_string(), problem: chain(error) }
    }

    pub(super) fn decode_error(&self, problem: impl ToString) -> ClientError {
        ClientError::Decode { endpoint: self.endpoint.to_string(), problem: problem.to_string() }
    }

    async fn read(&self, response: &mut Response, limit: usize) -> Result<Bytes, ClientError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.error(&error))? {
            if body.len() + chunk.len() > limit {
                return Err(ClientError::TooLarge { endpoint: self.endpoint.to_string(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    async fn refusal(&self, mut response: Response) -> ClientError {
        let status = response.status().as_u16();
        let is_problem = media_type(&response) == Some(PROBLEM_JSON);
        let body = match self.read(&mut response, PROBLEM_BYTES_MAX).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        if let (true, Ok(problem)) = (is_problem, serde_json::from_slice::<Problem>(&body)) {
            return ClientError::Problem(Box::new(problem));
        }
        let excerpt = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect();
        ClientError::Status { endpoint: self.endpoint.to_string(), status, excerpt }
    }
}

fn bearer(token: &SecretString) -> Result<HeaderValue, ClientError> {
    let mut authorization =
        HeaderValue::try_from(format!("Bearer {}", token.expose_secret())).map_err(|_| ClientError::Token)?;
    authorization.set_sensitive(true);
    Ok(authorization)
}

/// A request that is being put together.
pub(super) struct Call<'a> {
    transport: &'a Transport,
    request: Result<reqwest::RequestBuilder, ClientError>,
    deadline: Duration,
}

impl Call<'_> {
    fn with(self, change: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder) -> Self {
        Self { request: self.request.map(change), ..self }
    }

    /// How long the request may take from its start to the end of its answer.
    pub(super) fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    pub(super) fn query(self, query: &impl Serialize) -> Self {
        self.with(|request| request.query(query))
    }

    pub(super) fn header(self, name: &'static str, value: &str) -> Self {
        self.with(|request| request.header(name, value))
    }

    /// A JSON body. The types of the API always serialize; should one not, the call fails when it is sent.
    pub(super) fn body_json(self, body: &impl Serialize) -> Self {
        let encoded = serde_json::to_vec(body).map_err(|error| self.transport.decode_error(error));
        match encoded {
            Ok(bytes) => self.body("application/json", bytes),
            Err(error) => Self { request: Err(error), ..self },
        }
    }

    /// A body of another kind: bytes, or a stream made with [`Body::wrap_stream`].
    pub(super) fn body(self, media_type: &'static str, body: impl Into<Body>) -> Self {
        self.with(|request| request.header(CONTENT_TYPE, media_type).body(body))
    }

    /// Sends it and reads the answer as JSON.
    pub(super) async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let transport = self.transport;
        let body = self.bytes().await?;
        serde_json::from_slice(&body).map_err(|error| transport.decode_error(error))
    }

    /// Sends it; whatever the body of the answer is, it is of no interest.
    pub(super) async fn no_content(self) -> Result<(), ClientError> {
        self.bytes().await.map(drop)
    }

    /// The same request once more, if its body does not come as a stream.
    fn copy(&self) -> Option<Self> {
        let request = self.request.as_ref().ok()?.try_clone()?;
        Some(Self { transport: self.transport, request: Ok(request), deadline: self.deadline })
    }

    async fn bytes(mut self) -> Result<Bytes, ClientError> {
        let Some(waiting) = self.transport.waiting.get() else { return self.bytes_once().await };
        let begun = Instant::now();
        loop {
            let again = self.copy();
            let result = self.bytes_once().await;
            let wait = result.as_ref().err().and_then(ClientError::limited);
            let (Some(wait), Some(again), Err(error)) = (wait, again, &result) else { return result };
            if begun.elapsed() + wait > waiting.patience {
                return result;
            }
            (waiting.tell)(error);
            tokio::time::sleep(wait).await;
            self = again;
        }
    }

    async fn bytes_once(self) -> Result<Bytes, ClientError> {
        let (transport, deadline, begun) = (self.transport, self.deadline, Instant::now());
        let exchange = async {
            let mut response = self.send().await?;
            transport.read(&mut response, ANSWER_BYTES_MAX).await
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(result) => result,
            Err(_) => Err(transport.late(begun)),
        }
    }

    /// Sends it and returns once the head of a good answer is there, within the deadline; the body has none of its own.
    pub(super) async fn stream(self) -> Result<Response, ClientError> {
        let (transport, deadline, begun) = (self.transport, self.deadline, Instant::now());
        match tokio::time::timeout(deadline, self.send()).await {
            Ok(result) => result,
            Err(_) => Err(transport.late(begun)),
        }
    }

    async fn send(self) -> Result<Response, ClientError> {
        let transport = self.transport;
        let request = self.request?.header(ACCEPT, "*/*").build().map_err(|error| transport.error(&error))?;
        let response = transport.exchange(request).await.map_err(|error| transport.error(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(transport.refusal(response).await)
    }
}

/// Whether the request does the same when it is done twice (RFC 9110, 9.2.2): it changes nothing, or says under which key.
fn may_be_repeated(request: &Request) -> bool {
    request.method().is_safe() || request.headers().contains_key(IDEMPOTENCY_KEY)
}

/// Whether somebody took the connection and it was lost before an answer came: a server that ends closes what lies idle,
/// and cannot know that a request is on its way (RFC 9112, 9.3.1).
fn is_unanswered(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

impl Transport {
    /// Sends a request, and once more where its connection was lost before an answer came and repeating it is harmless.
    async fn exchange(&self, mut request: Request) -> Result<Response, reqwest::Error> {
        let mut sent = 0;
        loop {
            let again = if may_be_repeated(&request) { request.try_clone() } else { None };
            let result = self.http.execute(request).await;
            sent += 1;
            match (again, &result) {
                (Some(again), Err(error)) if sent < SENT_MAX && is_unanswered(error) => request = again,
                _ => return result,
            }
            tokio::time::sleep(SEND_PAUSE).await;
        }
    }

    fn late(&self, begun: Instant) -> ClientError {
        ClientError::Deadline { endpoint: self.endpoint.to_string(), waited: begun.elapsed() }
    }
}

/// The media type of an answer without its parameters.
pub(super) fn media_type(response: &Response) -> Option<&str> {
    response.headers().get(CONTENT_TYPE)?.to_str().ok()?.split(';').next().map(str::trim)
}

/// An error with its causes. reqwest's own text names the URL and hides why.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        let part = inner.to_string();
        if !text.contains(&part) {
            text = if text.is_empty() { part } else { format!("{text}: {part}") };
        }
        cause = inner.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

/// A path to the same socket that fits into a socket address; through a descriptor of its directory if it must.
fn short_socket_path(path: &Path) -> std::io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX {
        return Ok((path.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not the path of a socket"));
    };
    let dir = OwnedFd::from(std::fs::File::open(dir)?);
    Ok((Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name), Some(dir)))
}
