//! The egress proxy of an attempt, beside the work with its guest.
//!
//! What always holds: every connection that it accepted is told of before the attempt's end is, however the work with the guest
//! ends; what a command has sent when it ends by itself leaves the host, or is waited for some seconds.

use std::{net::TcpListener, sync::Arc, time::Duration};

use holm_proxy::egress::{Egress, Refusal, Told, ToldConnection, ToldRequest};
use holm_wire::host_api::Refused;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{deadline::Causes, outcome::Ending, supervise::Attempt};

/// How many connections may have ended, or be open, that were not noted yet.
const CONNECTIONS_WAITING_MAX: usize = 1_024;

/// How many characters of a path are in an event.
const PATH_CHARS_MAX: usize = 200;

/// How long what a command has sent may take to leave after its end.
const PASSED_ON_WITHIN: Duration = Duration::from_secs(5);

/// The proxy at work.
pub(crate) struct Proxy {
    /// Who knows what is allowed.
    pub egress: Arc<Egress>,
    stop: oneshot::Sender<Duration>,
    serving: JoinHandle<()>,
    /// What is told of connections.
    pub told: mpsc::Receiver<Told>,
}

impl Proxy {
    /// Ends what is open; returns once all of it was told. Where nobody is left inside, what was sent from there is passed on first,
    /// within `left`.
    async fn close(self, left: Option<Duration>) -> Vec<Told> {
        let Self { stop, serving, mut told, .. } = self;
        if let Some(left) = left {
            // One that has ended is told of below.
            let _ = stop.send(left);
        } else {
            drop(stop);
        }
        if let Err(error) = serving.await {
            tracing::error!(%error, "the egress proxy ended before");
        }
        std::iter::from_fn(|| told.try_recv().ok()).collect()
    }
}

impl Attempt {
    /// Starts the proxy behind the sandbox's way out.
    pub(crate) fn proxy(&self, way_out: TcpListener) -> Result<Proxy, Ending> {
        let start = || {
            way_out.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(way_out)?;
            let (spec, ways_out) = (&self.launch.spec, self.launch.ways_out.clone());
            let egress = Egress::new(spec.allow.clone(), spec.credentials.clone(), ways_out, self.time_limit())
                .map_err(std::io::Error::other)?;
            let (sender, told) = mpsc::channel(CONNECTIONS_WAITING_MAX);
            let (stop, stopped) = oneshot::channel();
            let serving = tokio::spawn(egress.clone().serve(listener, sender, stopped));
            Ok(Proxy { egress, stop, serving, told })
        };
        start().map_err(|error: std::io::Error| Ending::NotLaunched(format!("the egress proxy cannot start: {error}")))
    }

    /// How long what was sent from inside may take to leave: a command that ended by itself has counted on that.
    pub(crate) fn left_to_pass_on(&self, ending: &Ending) -> Option<Duration> {
        let is_by_itself = self.watchdog.view().borrow().causes == Causes::default();
        (matches!(ending, Ending::Exited(_)) && is_by_itself).then_some(PASSED_ON_WITHIN)
    }

    /// Ends the proxy of a sandbox that is being killed, and notes what is told of it.
    pub(crate) async fn close_proxy(&self, proxy: Option<Proxy>, left: Option<Duration>) {
        if let Some(proxy) = proxy {
            proxy.close(left).await.iter().for_each(|connection| self.note_connection(connection));
        }
    }

    /// Notes connections as they end.
    pub(crate) async fn note_connections(&self, proxy: Option<&mut Proxy>) -> std::convert::Infallible {
        if let Some(proxy) = proxy {
            while let Some(connection) = proxy.told.recv().await {
                self.note_connection(&connection);
            }
        }
        std::future::pending().await
    }

    /// Notes one connection: what did not come to be is counted.
    pub(crate) fn note_connection(&self, told: &Told) {
        match told {
            Told::Connection(connection) => self.note_end(connection),
            Told::Request(request) => self.note_request(request),
        }
    }

    fn note_end(&self, connection: &ToldConnection) {
        let ToldConnection { host, port, address, refused, sent, received, duration } = connection;
        let reason = refused.map(Refusal::code);
        tracing::debug!(host, port, ?address, reason, sent, received, ?duration, "a connection of the sandbox ended");
        if let Some(refused) = refused.filter(|refused| refused.is_told()) {
            let reason = (refused != Refusal::NotAllowed).then(|| refused.to_string());
            let attempt = Refused { host: host.clone(), port: *port, protocol: "tcp".to_owned(), count: 1 };
            self.count_refusal(&attempt, reason);
        }
    }

    fn note_request(&self, request: &ToldRequest) {
        let ToldRequest { host, port, method, path, secrets, status, refused, sent, received, duration } = request;
        let reason = refused.map(Refusal::code);
        tracing::debug!(
            host,
            port,
            method,
            path,
            ?secrets,
            status,
            reason,
            sent,
            received,
            ?duration,
            "a request ended"
        );
        if let Some(refused) = refused.filter(|refused| refused.is_told()) {
            let path: String = path.chars().take(PATH_CHARS_MAX).collect();
            let reason = format!("{refused}: {method} {path}");
            let attempt = Refused { host: host.clone(), port: *port, protocol: "http".to_owned(), count: 1 };
            self.count_refusal(&attempt, Some(reason));
        }
    }
}
