//! Requests to the servers outside: over TLS that is checked, and over connections that are used again.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use holm_domain::egress::name::{Host, HostName};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{
        self, Client,
        connect::{Connected, Connection},
    },
    rt::{TokioIo, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::{BoxError, Service, timeout::Timeout, util::BoxCloneSyncService};

use super::{
    super::{Refusal, outside::Outside},
    HEADERS_MAX,
    body::Outgoing,
    tasks::Tasks,
};

/// How long it may take until TLS is spoken with a server.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// The most connections to all servers; more requests wait for one.
const CONNECTIONS_MAX: usize = 512;
/// How many connections to a server are kept that nobody uses, and for how long.
const IDLE_MAX: usize = 8;
const IDLE_FOR: Duration = Duration::from_secs(3);
/// How many bytes of answers of HTTP/2 may wait: of one, and of all over a connection.
const STREAM_BYTES: u32 = 256 * 1024;
const CONNECTION_BYTES: u32 = 1024 * 1024;
/// How many bytes of an answer of HTTP/1.1 may wait, which bounds its head as well.
const ANSWER_BYTES: usize = 64 * 1024;
/// How many bytes of a request of HTTP/2 may wait to be sent.
const SEND_BYTES: usize = 64 * 1024;

/// Sends requests to servers.
pub struct Upstream {
    any: Sends,
    /// Over HTTP/1.1 alone, where connections become something else.
    upgrading: Sends,
}

type Sends = Client<BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<Held>>, BoxError>, Outgoing>;

impl Upstream {
    /// Servers are trusted whose certificates lead to `roots`.
    pub fn new(outside: &Arc<Outside>, roots: Arc<RootCertStore>, tasks: &Tasks) -> Result<Self, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        let tls = builder.with_root_certificates(roots).with_no_client_auth();
        let builder = || HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_only();
        let dial = Dial { outside: outside.clone(), places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
        Ok(Self {
            any: sends(builder().enable_all_versions().wrap_connector(dial.clone()), tasks),
            upgrading: sends(builder().enable_http1().wrap_connector(dial), tasks),
        })
    }

    /// Sends a request whose target is a whole URI; returns once the head of its answer is there.
    pub async fn send(&self, request: Request<Outgoing>, upgrades: bool) -> Result<Response<Incoming>, Refusal> {
        let sends = if upgrades { &self.upgrading } else { &self.any };
        sends.request(request).await.map_err(|error| {
            tracing::debug!(cause = %chain(&error), "a request was not answered");
            refusal(&error)
        })
    }
}

fn sends(connector: HttpsConnector<Dial>, tasks: &Tasks) -> Sends {
    let mut builder = Client::builder(tasks.clone());
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
    builder.pool_idle_timeout(IDLE_FOR).pool_max_idle_per_host(IDLE_MAX);
    builder.http1_max_buf_size(ANSWER_BYTES).http1_max_headers(HEADERS_MAX);
    builder.http2_max_header_list_size(ANSWER_BYTES as u32).http2_max_send_buf_size(SEND_BYTES);
    builder.http2_initial_stream_window_size(STREAM_BYTES).http2_initial_connection_window_size(CONNECTION_BYTES);
    builder.build(BoxCloneSyncService::new(Timeout::new(connector, CONNECT_WITHIN)))
}

/// What is to be said of a request that was not answered.
fn refusal(error: &legacy::Error) -> Refusal {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Refusal>() {
            return *refusal;
        }
        if inner.is::<tower::timeout::error::Elapsed>() {
            return Refusal::TooSlow;
        }
        if let Some(tls) = inner.downcast_ref().or(within(inner)) {
            return of_tls(tls);
        }
        cause = inner.source();
    }
    if error.is_connect() { Refusal::Unreachable } else { Refusal::BadAnswer }
}

/// The error of TLS in one of input and output, which does not name it as its source.
fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    inner.downcast_ref().or_else(|| within(inner))
}

fn of_tls(error: &rustls::Error) -> Refusal {
    match error {
        rustls::Error::InvalidCertificate(_) => Refusal::Untrusted,
        _ => Refusal::NoTls,
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Connects to where the policy lets a request go.
#[derive(Clone)]
pub struct Dial {
    outside: Arc<Outside>,
    places: Arc<Semaphore>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Held>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Refusal>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { outside, places } = self.clone();
        Box::pin(async move {
            let name = uri.host().and_then(|host| HostName::from_wire(host.as_bytes()).ok());
            let host = Host::Name(name.ok_or(Refusal::OtherHost)?);
            let port = uri.port_u16().unwrap_or(holm_domain::egress::policy::PORT);
            let place = places.acquire_owned().await.map_err(|_| Refusal::SandboxEnded)?;
            let way = outside.way(&host, port).ok_or(Refusal::NotAllowed)?;
            let stream = outside.connect(&host, port, way.scope).await?;
            Ok(TokioIo::new(Held { stream, _place: place }))
        })
    }
}

/// A connection that has a place for as long as it is there.
pub struct Held {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connection for Held {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
