//! From sockets to routes, and the orderly end.
//!
//! When the server is to end it accepts nothing more than who has connected already, waiting polls answer at once, live
//! streams end so that their clients resume elsewhere, and requests in progress are completed, as is the first of who has just
//! come. Whatever is left after `drain_timeout` is cut.

mod places;

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::OwnedSemaphorePermit,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;

pub use places::{Seat, UnderWay};

use crate::{Server, app::App, tasks};
use places::{LEAVE_WITHIN, Places};

/// How long accepting pauses after it failed, for example because no descriptors were left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections are still accepted once the server is to end: some are made and not accepted yet.
const CLOSE_AFTER: Duration = Duration::from_millis(50);
/// How long a connection may take until its first request comes once the server is to end.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// Where a server listens. Whoever binds it decides on its address and its permissions.
#[derive(Debug)]
pub enum Listener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Why a server did not serve, or not end in order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is nothing to listen on.
    #[error("a server needs at least one listener")]
    NoListener,
    /// A part of the server broke.
    #[error("a part of the server broke: {0}")]
    Broke(#[from] tokio::task::JoinError),
}

impl Server {
    /// Serves until `shutdown` is cancelled, then ends in order. Returns how many connections had to be cut.
    pub async fn serve(self, listeners: Vec<Listener>, shutdown: CancellationToken) -> Result<usize, ServeError> {
        if listeners.is_empty() {
            return Err(ServeError::NoListener);
        }
        let router = self.router();
        let app = self.app;
        let places = Places::new(&app.config.limits);
        let mut parts = JoinSet::new();
        for listener in listeners {
            parts.spawn(accept(Arc::clone(&app), listener, router.clone(), Arc::clone(&places)));
        }
        let tasks = Arc::clone(&app);
        parts.spawn(async move {
            tasks::run(tasks).await;
            0
        });
        // A part that ends before it was asked to takes the server with it: half a server helps nobody.
        let early = tokio::select! {
            () = shutdown.cancelled() => None,
            part = parts.join_next() => part,
        };
        app.shutdown.cancel();
        let mut cut = 0;
        let mut broke = early.and_then(Result::err);
        while let Some(part) = parts.join_next().await {
            match part {
                Ok(connections) => cut += connections,
                Err(error) => broke = Some(error),
            }
        }
        broke.map_or(Ok(cut), |error| Err(error.into()))
    }
}

/// Serves one listener; returns how many of its connections had to be cut.
async fn accept(app: Arc<App>, listener: Listener, router: Router, places: Arc<Places>) -> usize {
    let mut connections = JoinSet::new();
    loop {
        // The finished ones are collected on the way, so that the set holds only what is open.
        while connections.try_join_next().is_some() {}
        tokio::select! {
            biased;
            () = app.shutdown.cancelled() => break,
            accepted = accept_one(&listener, &places) => match accepted {
                Ok((stream, place)) => {
                    let serving = serve_connection(Arc::clone(&app), stream, router.clone(), places.seat(place));
                    connections.spawn(serving);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Who has connected was told by nobody that this server ends.
    let closing = Instant::now() + CLOSE_AFTER;
    while let Ok(Ok((stream, place))) = timeout_at(closing, accept_one(&listener, &places)).await {
        connections.spawn(serve_connection(Arc::clone(&app), stream, router.clone(), places.seat(place)));
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    let in_time = timeout(app.config.limits.drain_timeout, drained).await;
    let left = connections.len();
    if in_time.is_err() {
        tracing::warn!(left, "connections are cut that did not end in time");
        connections.shutdown().await;
    }
    left
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Accepts a connection, then waits for a place for it: only who is there takes one.
async fn accept_one(listener: &Listener, places: &Places) -> io::Result<(Box<dyn Connection>, OwnedSemaphorePermit)> {
    let stream: Box<dyn Connection> = match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            // Entries of a stream are small and must not wait for each other.
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            Box::new(stream)
        }
    };
    Ok((stream, places.free().await?))
}

async fn serve_connection(app: Arc<App>, stream: Box<dyn Connection>, router: Router, seat: Arc<Seat>) {
    let limits = &app.config.limits;
    // The clock runs only while a write waits.
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(limits.write_timeout));
    let (router, cut, leave) = (TowerToHyperService::new(router), seat.cut.clone(), seat.leave.clone());
    let asked = CancellationToken::new();
    let first = asked.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        first.cancel();
        request.extensions_mut().insert(Arc::clone(&seat));
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.head_bytes_max)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = cut.cancelled() => return,
        () = leave.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let Ok(served) = timeout(LEAVE_WITHIN, connection).await else {
                tracing::debug!("a connection is cut that was asked to leave and did not");
                return;
            };
            served
        }
        () = app.shutdown.cancelled() => tokio::select! {
            biased;
            served = connection.as_mut() => served,
            _ = timeout(FIRST_WITHIN, asked.cancelled()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests;
