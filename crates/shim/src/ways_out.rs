//! The egress proxy of an attempt, beside the work with its guest.
//!
//! What always holds: every connection that it accepted is told of before the attempt's end is, however the work with the guest
//! ends; what a command has sent when it ends by itself leaves the host, or is waited for some seconds.

use std::{net::TcpListener, sync::Arc, time::Duration};

use holm_domain::egress::record::{Record, Requested};
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

    /// Ends the proxy of a sandbox that is being killed; what is told of it is yet to be noted.
    pub(crate) async fn close_proxy(&self, proxy: Option<Proxy>, left: Option<Duration>) -> Vec<Told> {
        match proxy {
            Some(proxy) => proxy.close(left).await,
            None => Vec::new(),
        }
    }

    /// Notes connections and requests as they end; returns the end of the run where no more can be.
    pub(crate) async fn note_connections(&self, proxy: Option<&mut Proxy>) -> Ending {
        if let Some(proxy) = proxy {
            loop {
                // Room first: what was received must not be forgotten when this is. Others wait to be told of meanwhile, and
                // so to begin.
                self.spool.room().await;
                let Some(told) = proxy.told.recv().await else { break };
                if let Err(ending) = self.note(&told) {
                    return ending;
                }
            }
        }
        std::future::pending().await
    }

    /// Notes what was told at the end, when nothing else is written any more; returns the end of the run, as
    /// [`write_rest`](Self::write_rest) does.
    pub(crate) async fn note_rest(&self, told: Vec<Told>, mut ending: Ending) -> Ending {
        let mut unrecorded = 0;
        for told in &told {
            if !self.spool.has_room() {
                ending = self.write_rest(ending).await;
            }
            unrecorded += usize::from(self.note(told).is_err());
        }
        if unrecorded > 0 {
            tracing::warn!(unrecorded, "connections that were open at the end are not recorded");
        }
        self.write_rest(ending).await
    }

    /// Records what has ended, and counts what did not come to be.
    fn note(&self, told: &Told) -> Result<(), Ending> {
        let record = record(told);
        tracing::debug!(?record, "a connection or a request of the sandbox ended");
        if let Some((refused, attempt, reason)) = refused(told) {
            self.count_refusal(
                &attempt,
                (refused != Refusal::NotAllowed || attempt.protocol == HTTP).then_some(reason),
            );
        }
        let line = serde_json::to_vec(&record).map_err(|error| Ending::unkept(&error.into()))?;
        self.record(&line)
    }
}

/// The protocol of a request, in events.
const HTTP: &str = "http";

/// What is recorded.
fn record(told: &Told) -> Record {
    let code = |refused: &Option<Refusal>| refused.map(|refused| refused.code().to_owned());
    let ms = |duration: &Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match told {
        Told::Connection(ToldConnection { host, port, address, refused, sent, received, duration }) => Record {
            host: host.clone(),
            port: *port,
            address: address.map(|address| address.ip().to_string()),
            request: None,
            refused: code(refused),
            sent: *sent,
            received: *received,
            duration_ms: ms(duration),
        },
        Told::Request(request) => Record {
            host: request.host.clone(),
            port: request.port,
            address: None,
            request: Some(Requested {
                method: request.method.clone(),
                path: request.path.clone(),
                status: request.status,
                secrets: request.secrets.clone(),
            }),
            refused: code(&request.refused),
            sent: request.sent,
            received: request.received,
            duration_ms: ms(&request.duration),
        },
    }
}

/// What did not come to be, as it is counted in events; nothing where that is not worth telling.
fn refused(told: &Told) -> Option<(Refusal, Refused, String)> {
    let (host, port, refused, protocol, of) = match told {
        Told::Connection(connection) => (&connection.host, connection.port, connection.refused, "tcp", String::new()),
        Told::Request(ToldRequest { host, port, method, path, refused, .. }) => {
            let path: String = path.chars().take(PATH_CHARS_MAX).collect();
            (host, *port, *refused, HTTP, format!(": {method} {path}"))
        }
    };
    let refused = refused.filter(|refused| refused.is_told())?;
    let attempt = Refused { host: host.clone(), port, protocol: protocol.to_owned(), count: 1 };
    Some((refused, attempt, format!("{refused}{of}")))
}
