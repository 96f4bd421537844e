//! Connections within which each request is seen: TLS ends here, with a certificate that the sandbox trusts, and begins anew
//! to the server.
//!
//! What always holds: what is intercepted is TLS to the name that it was connected by, or it is closed; each request is
//! decided by itself, at its begin and for as long as it lasts, and what is refused has left by no byte; a server is spoken to
//! over TLS alone, whose certificate was checked. Bodies pass as they come, and no faster than they are taken. What goes wrong
//! has a status and a code, which name nothing but the host. A request of HTTP/1.1 goes on for some seconds where its client
//! says no more.
//!
//! All limits together are what a shim can hold (its own is 256 MiB): 512 streams may wait for a place, each with a
//! head and what follows its body, which are 16 KiB on the wire and may be 80 KiB once they are read; connections of HTTP/1.1
//! have 128 heads, and 128 bodies are under way each way.

pub mod authority;
mod body;
mod call;
mod client;
mod exchange;
pub mod forms;
pub mod head;
pub mod inject;
pub mod mask;
mod masked;
mod tasks;
#[cfg(test)]
mod tests;
mod upstream;

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holm_domain::egress::name::HostName;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{AlertDescription, RootCertStore, ServerConfig, server::Acceptor};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use self::{
    authority::{Authority, AuthorityError, asks_for},
    call::Call,
    client::client,
    inject::Vault,
    tasks::Tasks,
    upstream::Upstream,
};
use super::{Refusal, Told, outside::Outside};

pub use exchange::ToldRequest;

/// The most bytes of the head of a request of HTTP/1.1, and of one of HTTP/2, as that counts them (RFC 9113, section 6.5.2).
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HTTP2_HEAD_BYTES_MAX: u32 = 16 * 1024;
/// The most fields of a head.
const HEADERS_MAX: usize = 100;
/// The most connections of a sandbox that are intercepted at once, others wait; and the most of HTTP/2, others are offered
/// HTTP/1.1.
const CONNECTIONS_MAX: usize = 128;
const HTTP2_CONNECTIONS_MAX: usize = 16;
/// The most requests of a sandbox that are under way; others wait.
const REQUESTS_MAX: usize = 128;
/// How long a connection waits for its place.
const PLACE_WITHIN: Duration = Duration::from_secs(90);
/// How long a client may take to greet.
const GREETING_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may be without a request, and how long the head of one may take.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// How long a connection that was asked to end may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// The most requests of a connection of HTTP/2 at once, and how many bytes of them may wait: of one, and of all.
const STREAMS_MAX: u32 = 32;
const STREAM_BYTES: u32 = 64 * 1024;
const CONNECTION_BYTES: u32 = 512 * 1024;
/// How many bytes of an answer may wait to be taken.
const SEND_BYTES: usize = 64 * 1024;
/// How many requests a client may take back before they were looked at (CVE-2023-44487).
const RESETS_MAX: usize = 32;

/// What sees the requests of one sandbox.
pub struct Interceptor {
    authority: Authority,
    outside: Arc<Outside>,
    upstream: Upstream,
    /// What is added to requests, once it is there.
    vault: OnceLock<Vault>,
    connections: Semaphore,
    http2_connections: Semaphore,
    requests: Arc<Semaphore>,
    /// Connections to servers, beside the requests that go over them.
    tasks: Tasks,
    has_ended: AtomicBool,
}

/// Why there is no interceptor.
#[derive(Debug, thiserror::Error)]
pub enum NoInterceptor {
    /// It has no authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It cannot speak TLS to servers.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// What a connection was made to, and how many of its requests are under way.
struct At {
    name: HostName,
    port: u16,
    under_way: watch::Sender<usize>,
    /// Whether the connection was cut before its end: what looks like the end of a body is none then.
    is_cut: AtomicBool,
    /// Whether the client has said all it will.
    is_quiet: watch::Sender<bool>,
}

impl At {
    fn begin(&self) {
        self.under_way.send_modify(|count| *count += 1);
    }

    fn end(&self) {
        self.under_way.send_modify(|count| *count -= 1);
    }

    fn says_no_more(&self) {
        self.is_quiet.send_replace(true);
    }

    /// Waits until the client has said all it will.
    async fn quiet(&self) {
        let _never_closed = self.is_quiet.subscribe().wait_for(|is_quiet| *is_quiet).await.map(drop);
    }

    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    /// Waits until there has been no request for [`IDLE_FOR`].
    async fn idle(&self) {
        let mut count = self.under_way.subscribe();
        loop {
            // Whoever counts is there as long as this is.
            let _ = count.wait_for(|count| *count == 0).await.map(drop);
            let begins = async { count.wait_for(|count| *count > 0).await.map(drop) };
            if timeout(IDLE_FOR, begins).await.is_err() {
                return;
            }
        }
    }
}

impl Interceptor {
    /// One whose authority is valid for `valid_for`, and which trusts servers whose certificates lead to `roots`.
    pub fn new(
        outside: Arc<Outside>,
        roots: Arc<RootCertStore>,
        valid_for: Duration,
    ) -> Result<Arc<Self>, NoInterceptor> {
        let tasks = Tasks::default();
        Ok(Arc::new(Self {
            authority: Authority::new(valid_for)?,
            upstream: Upstream::new(&outside, roots, &tasks)?,
            outside,
            vault: OnceLock::new(),
            connections: Semaphore::new(CONNECTIONS_MAX),
            http2_connections: Semaphore::new(HTTP2_CONNECTIONS_MAX),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            tasks,
            has_ended: AtomicBool::new(false),
        }))
    }

    /// What the sandbox is to trust, as a file of PEM.
    pub fn trusted(&self) -> String {
        self.authority.pem()
    }

    /// Adds what `vault` has to requests from now on. The first that it is given counts.
    pub fn add(&self, vault: Vault) {
        self.vault.get_or_init(|| vault);
    }

    /// Waits until no request is under way.
    pub async fn at_rest(&self) {
        let _all = self.requests.acquire_many(REQUESTS_MAX as u32).await;
    }

    /// Ends the connections to servers, and with them the requests that still go over one.
    pub async fn stop(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.tasks.stop().await;
    }

    /// Why a request that failed did: once the sandbox has ended that says nothing of its server.
    fn why(&self, refusal: Refusal) -> Refusal {
        if self.has_ended.load(Ordering::Acquire) { Refusal::SandboxEnded } else { refusal }
    }

    /// Serves a connection that was made to `name` and `port` until it ends. Each request is told to `told`.
    pub async fn serve(
        self: &Arc<Self>,
        client: TcpStream,
        (name, port): (&HostName, u16),
        told: &mpsc::Sender<Told>,
        is_last: watch::Receiver<bool>,
    ) -> Result<(), Refusal> {
        let _place = place(&self.connections).await?;
        let http2_place = self.http2_connections.try_acquire().ok();
        let greeting = self.greet(client, name, http2_place.is_some());
        let stream = timeout(GREETING_WITHIN, greeting).await.map_err(|_| Refusal::TooSlow)??;
        let at = Arc::new(At {
            name: name.clone(),
            port,
            under_way: watch::Sender::new(0),
            is_cut: AtomicBool::new(false),
            is_quiet: watch::Sender::new(false),
        });
        let tasks = Tasks::default();
        let call = Call::new(self.clone(), at, told.clone(), tasks.clone(), is_last);
        let served = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            serve_http2(stream, call, tasks.clone()).await
        } else {
            drop(http2_place);
            serve_http1(stream, call).await
        };
        // What a connection became goes on after it.
        tasks.end().await;
        served.map_err(|error| {
            tracing::debug!(%error, host = %name, "a connection was not served to its end");
            if error.is_parse() { Refusal::MalformedRequest } else { Refusal::BrokenOff }
        })
    }

    /// Begins TLS with a client that is to ask for `name`, and may speak HTTP/2 where that is offered.
    async fn greet(
        &self,
        client: TcpStream,
        name: &HostName,
        offers_http2: bool,
    ) -> Result<TlsStream<TcpStream>, Refusal> {
        let config = self.authority.speaks_for(name).map_err(|error| {
            tracing::error!(%error, "a connection cannot be intercepted");
            Refusal::NoCertificate
        })?;
        let config = if offers_http2 { config } else { http1_alone(&config) };
        let greeted = LazyConfigAcceptor::new(Acceptor::default(), client).await.map_err(|_| Refusal::Malformed)?;
        let is_asked_for = asks_for(&greeted.client_hello(), name);
        // Who asks for another is told so in TLS: there is no certificate for that.
        match greeted.into_stream(config).await {
            Ok(stream) if is_asked_for => Ok(stream),
            Err(error) if is_asked_for => {
                tracing::debug!(%error, host = %name, "a client does not begin TLS");
                Err(if is_distrust(&error) { Refusal::Distrusted } else { Refusal::Malformed })
            }
            _ => Err(Refusal::OtherName),
        }
    }
}

/// The same without HTTP/2.
fn http1_alone(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols.retain(|protocol| protocol != b"h2");
    Arc::new(config)
}

async fn place(places: &Semaphore) -> Result<SemaphorePermit<'_>, Refusal> {
    let place = timeout(PLACE_WITHIN, places.acquire()).await.map_err(|_| Refusal::TooSlow)?;
    place.map_err(|_| Refusal::SandboxEnded)
}

/// Whether a client of TLS ended it because of the certificate (RFC 8446, section 6.2).
fn is_distrust(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        tls,
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
        ))
    )
}

async fn serve_http1(stream: TlsStream<TcpStream>, call: Call) -> hyper::Result<()> {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE_FOR).half_close(true);
    builder.max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    let at = call.at();
    let service = service_fn(move |request| call.clone().answer(request));
    let client = client(stream, at.clone());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(client), service).with_upgrades());
    let mut served = Served { at: &at, has_ended: false };
    let ended = connection.as_mut().await;
    served.has_ended = true;
    ended
}

/// Says that a connection is cut where it is dropped before that has ended; to be dropped before it.
struct Served<'a> {
    at: &'a At,
    has_ended: bool,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.at.is_cut.store(!self.has_ended, Ordering::Release);
    }
}

async fn serve_http2(stream: TlsStream<TcpStream>, call: Call, tasks: Tasks) -> hyper::Result<()> {
    let mut builder = http2::Builder::new(tasks);
    builder.timer(TokioTimer::new()).max_header_list_size(HTTP2_HEAD_BYTES_MAX).max_send_buf_size(SEND_BYTES);
    builder.max_concurrent_streams(STREAMS_MAX).max_pending_accept_reset_streams(RESETS_MAX);
    builder.initial_stream_window_size(STREAM_BYTES).initial_connection_window_size(CONNECTION_BYTES);
    let at = call.at();
    let service = service_fn(move |request| call.clone().answer(request));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        served = connection.as_mut() => served,
        () = at.idle() => {
            connection.as_mut().graceful_shutdown();
            timeout(LEAVE_WITHIN, connection).await.unwrap_or(Ok(()))
        }
    }
}
