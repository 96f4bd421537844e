//! The egress proxy of an attempt, beside the work with its guest.
//!
//! What always holds: every connection that it accepted is told of before the attempt's end is.

use std::{net::TcpListener, sync::Arc};

use holm_proxy::egress::{Egress, Told};
use holm_wire::host_api::Refused;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{outcome::Ending, supervise::Attempt};

/// How many connections may have ended, or be open, that were not noted yet.
const CONNECTIONS_WAITING_MAX: usize = 1_024;

/// The proxy at work.
pub(crate) struct Proxy {
    /// Who knows what is allowed.
    pub egress: Arc<Egress>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    /// What is told of connections.
    pub told: mpsc::Receiver<Told>,
}

impl Proxy {
    /// Ends what is open; returns once all of it was told.
    pub async fn close(self) -> Vec<Told> {
        let Self { stop, serving, mut told, .. } = self;
        drop(stop);
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
            let egress = Egress::new(self.launch.spec.allow.clone(), self.launch.ways_out.clone())?;
            let (sender, told) = mpsc::channel(CONNECTIONS_WAITING_MAX);
            let (stop, stopped) = oneshot::channel();
            let serving = tokio::spawn(egress.clone().serve(listener, sender, stopped));
            Ok(Proxy { egress, stop, serving, told })
        };
        start().map_err(|error: std::io::Error| Ending::NotLaunched(format!("the egress proxy cannot start: {error}")))
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

    /// Notes one connection: what was refused is counted.
    pub(crate) fn note_connection(&self, connection: &Told) {
        let Told { host, port, address, refused, sent, received, duration } = connection;
        let reason = refused.map(holm_proxy::egress::Refusal::code);
        tracing::debug!(host, port, ?address, reason, sent, received, ?duration, "a connection of the sandbox ended");
        if refused.is_some_and(|refused| refused.is_of_policy()) {
            self.count_refusal(&Refused { host: host.clone(), port: *port, protocol: "tcp".to_owned(), count: 1 });
        }
    }
}
