//! The egress proxy of one sandbox: every connection that leaves it.
//!
//! What always holds: a connection of the sandbox is made only where the policy names its host and port at that moment, by a name that was
//! resolved here to an address that was checked here, and ends within a second once the policy does not name it any more. What
//! is refused ends before a byte of it has left. Every connection is told of once, when it has ended. Whatever is inside may say
//! what it likes: connections, look-ups and dials have limits, which are those of this sandbox alone; where it waits for many that
//! do not answer, its others wait as well.

pub mod checks;
mod dial;
pub mod greeting;
pub mod intercept;
mod names;
mod outside;
mod refusal;
mod relay;
mod resolve;
#[cfg(test)]
mod tests;
pub mod trust;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use holm_domain::egress::{
    credential::Credential,
    name::{Host, HostName},
    policy::Rule,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use intercept::{Interceptor, NoInterceptor};
pub use intercept::{
    ToldRequest,
    inject::{Unusable, Values, Vault, placeholder},
};
pub use names::TTL_S;
use names::{Names, is_synthetic};
use outside::Outside;
pub use refusal::Refusal;
use relay::{Counts, relay};
use resolve::Scope;
use trust::{BadTrust, Trust};

use crate::pace::Pace;

/// The most connections of a sandbox at once; others wait to be accepted.
pub const CONNECTIONS_MAX: usize = 512;
/// The most that are accepted in a second; others wait to be.
pub const CONNECTIONS_A_SECOND_MAX: u32 = 1_000;
/// Within which time it is known whether another connection waits to be accepted.
const WAITING_IS_KNOWN_IN: Duration = Duration::from_millis(5);
/// How long nothing is accepted after that failed, as where there are no more descriptors.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What the operator of a host says of the ways out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaysOut {
    /// What of the addresses that are not on the public internet the operator of the host listed: a rule that names them, or a
    /// name that leads to them, is of use only then.
    #[serde(default)]
    pub reach: Vec<IpNet>,
    /// Which name servers are asked; those of the host where there are none.
    #[serde(default)]
    pub name_servers: Vec<SocketAddr>,
    /// A file of PEM with authorities that servers are trusted by, beside those that the host trusts.
    #[serde(default)]
    pub trust: Option<PathBuf>,
}

/// What is told when it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A connection.
    Connection(ToldConnection),
    /// A request over one that is intercepted.
    Request(ToldRequest),
}

/// A connection that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldConnection {
    /// The name or address that was asked for.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Where it led to.
    pub address: Option<SocketAddr>,
    /// Why it was not made, or was ended.
    pub refused: Option<Refusal>,
    /// How many bytes the sandbox sent.
    pub sent: u64,
    /// How many bytes it was sent.
    pub received: u64,
    /// How long it took.
    pub duration: Duration,
}

/// The proxy of one sandbox.
pub struct Egress {
    outside: Arc<Outside>,
    /// Who sees requests, where rules were about them when the sandbox began.
    seen: Option<Seen>,
    names: Mutex<Names>,
    /// Whether nobody is left inside.
    is_last: watch::Sender<bool>,
}

struct Seen {
    interceptor: Arc<Interceptor>,
    /// The authorities that the host trusts, as a file of PEM.
    host: String,
}

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum NoProxy {
    /// The host's name servers cannot be known.
    #[error(transparent)]
    Outside(#[from] io::Error),
    /// Nothing can be intercepted.
    #[error(transparent)]
    Interceptor(#[from] NoInterceptor),
    /// The file of authorities is none.
    #[error(transparent)]
    Trust(#[from] BadTrust),
}

impl Egress {
    /// A proxy that allows what `rules` name, for a sandbox that lives no longer than `lives_for`. It adds `credentials` to
    /// requests once it [has](Self::add) their values; until then no request is made to where they are for.
    pub fn new(
        rules: Vec<Rule>,
        credentials: Vec<Credential>,
        ways_out: WaysOut,
        lives_for: Duration,
    ) -> Result<Arc<Self>, NoProxy> {
        let is_seen = !credentials.is_empty() || rules.iter().any(Rule::is_of_requests);
        let trust = is_seen.then(|| Trust::of_host(ways_out.trust.as_deref())).transpose()?;
        let outside = Outside::new(rules, credentials, ways_out)?;
        let seen = |trust: Trust| {
            let interceptor = Interceptor::new(outside.clone(), trust.roots, lives_for)?;
            Ok::<_, NoProxy>(Seen { interceptor, host: trust.host })
        };
        let seen = trust.map(seen).transpose()?;
        Ok(Arc::new(Self { outside, seen, names: Mutex::default(), is_last: watch::Sender::new(false) }))
    }

    /// What the sandbox is to trust, where requests are seen: its own certificate authority, and what the host trusts, each as a
    /// file of PEM.
    pub fn trusted(&self) -> Option<(String, &str)> {
        self.seen.as_ref().map(|seen| (seen.interceptor.trusted(), seen.host.as_str()))
    }

    /// Adds what `vault` has to requests from now on.
    pub fn add(&self, vault: Vault) {
        if let Some(seen) = &self.seen {
            seen.interceptor.add(vault);
        }
    }

    /// Changes what is allowed; connections and requests that are not any more end.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.outside.set_rules(rules);
    }

    /// The address that stands for a name inside, as it came over the wire; none where no rule names it.
    pub fn resolve(&self, name: &[u8]) -> Option<Ipv4Addr> {
        let name = HostName::from_wire(name).ok()?;
        let is_named = self.outside.names(&Host::Name(name.clone()));
        is_named.then(|| self.names.lock().unwrap_or_else(PoisonError::into_inner).address_of(&name))
    }

    /// Accepts what the sandbox's network sends to `listener`, until `stop` is dropped or sent to; what is open ends then. Where a
    /// time is sent, nobody is left inside, and what was sent from there is passed on before, for that time at most. Each connection
    /// is told to `told`, and none is accepted while there is no room for that.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        told: mpsc::Sender<Told>,
        stop: oneshot::Receiver<Duration>,
    ) {
        let asked = |client: &TcpStream| rustix::net::sockopt::ip_original_dst(client);
        self.serve_at_once(CONNECTIONS_MAX, asked, listener, told, stop).await;
    }

    /// Serves `most` connections at once; `asked` says what a connection was made to.
    async fn serve_at_once(
        self: Arc<Self>,
        most: usize,
        asked: impl Fn(&TcpStream) -> rustix::io::Result<SocketAddrV4>,
        listener: TcpListener,
        told: mpsc::Sender<Told>,
        stop: oneshot::Receiver<Duration>,
    ) {
        let (mut connections, mut pace) = (JoinSet::new(), Pace::new(CONNECTIONS_A_SECOND_MAX));
        let sender = told.clone();
        let attend = |connections: &mut JoinSet<()>, (client, told)| match asked(&client) {
            Ok(asked) => drop(connections.spawn(self.clone().attend(client, asked, told, sender.clone()))),
            Err(error) => tracing::debug!(%error, "the kernel does not say where a connection was to go"),
        };
        let accepting = async {
            loop {
                let accepted = tokio::select! {
                    accepted = accept(&listener, &told), if connections.len() < most => accepted,
                    Some(_) = connections.join_next() => continue,
                };
                if let Some(accepted) = accepted {
                    attend(&mut connections, accepted);
                }
                pace.wait().await;
            }
        };
        let left = tokio::select! {
            () = accepting => None,
            stopped = stop => stopped.ok(),
        };
        if let Some(left) = left {
            self.is_last.send_replace(true);
            let rest = async {
                while let Some(accepted) = accepted_before(&listener, &told).await {
                    attend(&mut connections, accepted);
                }
                while connections.join_next().await.is_some() {}
                if let Some(seen) = &self.seen {
                    seen.interceptor.at_rest().await;
                }
            };
            let _is_cut_off_then = tokio::time::timeout(left, rest).await;
        }
        connections.shutdown().await;
        if let Some(seen) = &self.seen {
            seen.interceptor.stop().await;
        }
    }

    /// Sees one connection through, and tells of it.
    async fn attend(
        self: Arc<Self>,
        client: TcpStream,
        asked: SocketAddrV4,
        room: mpsc::OwnedPermit<Told>,
        told: mpsc::Sender<Told>,
    ) {
        let (host, port) = (self.host_of(*asked.ip()), asked.port());
        let shown = host.as_ref().map_or_else(|| asked.ip().to_string(), Host::to_string);
        let mut open = Open::new(shown, port, room);
        ends_whole(&client, false);
        let passed = match &host {
            Some(host) => self.pass(client, (host, port), &open, &told).await,
            None => Err(Refusal::Forgotten),
        };
        open.refused = passed.err();
    }

    /// What was asked for by an address inside.
    fn host_of(&self, address: Ipv4Addr) -> Option<Host> {
        if is_synthetic(address) {
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            return names.name_of(address).cloned().map(Host::Name);
        }
        Some(Host::Address(address.into()))
    }

    /// Connects `client` to what it asks for, for as long as that is allowed.
    async fn pass(
        &self,
        client: TcpStream,
        (host, port): (&Host, u16),
        open: &Open,
        told: &mpsc::Sender<Told>,
    ) -> Result<(), Refusal> {
        let way = self.outside.way(host, port).ok_or(Refusal::NotAllowed)?;
        let passing = async {
            match host {
                Host::Name(name) if way.is_seen => {
                    // What is cut off within TLS is not whole for its client.
                    ends_whole(&client, true);
                    let seen = self.seen.as_ref().ok_or(Refusal::NoCertificate)?;
                    seen.interceptor.serve(client, (name, port), told, self.is_last.subscribe()).await
                }
                _ => self.pass_through(client, (host, port), way.scope, open).await,
            }
        };
        tokio::select! {
            passed = passing => passed,
            () = self.outside.changed(host, port, way) => Err(Refusal::Withdrawn),
        }
    }

    /// Passes on what comes, as it comes.
    async fn pass_through(
        &self,
        mut client: TcpStream,
        (host, port): (&Host, u16),
        scope: Scope,
        open: &Open,
    ) -> Result<(), Refusal> {
        let mut outside = self.outside.connect(host, port, scope).await?;
        if let Ok(address) = outside.peer_addr() {
            open.address.get_or_init(|| address);
        }
        let name = match host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        };
        ends_whole(&outside, false);
        relay(&mut client, &mut outside, name, &open.counts, self.is_last.subscribe()).await?;
        ends_whole(&client, true);
        ends_whole(&outside, true);
        Ok(())
    }
}

/// A connection that is told of when it ends, however that is.
struct Open {
    host: String,
    port: u16,
    begun: Instant,
    counts: Counts,
    address: OnceLock<SocketAddr>,
    refused: Option<Refusal>,
    told: Option<mpsc::OwnedPermit<Told>>,
}

impl Open {
    fn new(host: String, port: u16, told: mpsc::OwnedPermit<Told>) -> Self {
        Self {
            host,
            port,
            begun: Instant::now(),
            counts: Counts::default(),
            address: OnceLock::new(),
            // Unless it ends before.
            refused: Some(Refusal::SandboxEnded),
            told: Some(told),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(told) = self.told.take() else { return };
        let (sent, received) = self.counts.get();
        told.send(Told::Connection(ToldConnection {
            host: std::mem::take(&mut self.host),
            port: self.port,
            address: self.address.get().copied(),
            refused: self.refused,
            sent,
            received,
            duration: self.begun.elapsed(),
        }));
    }
}

/// A connection, and the room to tell of it.
type Accepted = (TcpStream, mpsc::OwnedPermit<Told>);

/// The next of those that waited when nobody was left inside any more.
async fn accepted_before(listener: &TcpListener, told: &mpsc::Sender<Told>) -> Option<Accepted> {
    // Long enough for the kernel to say what waits.
    tokio::time::timeout(WAITING_IS_KNOWN_IN, accept(listener, told)).await.ok().flatten()
}

/// The next connection, and the room to tell of it; nothing where that failed.
async fn accept(listener: &TcpListener, told: &mpsc::Sender<Told>) -> Option<Accepted> {
    // Who is told is there as long as the proxy is.
    let Ok(room) = told.clone().reserve_owned().await else { return std::future::pending().await };
    match listener.accept().await {
        Ok((client, _)) => Some((client, room)),
        Err(error) => {
            tracing::warn!(%error, "a connection of the sandbox cannot be accepted");
            tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            None
        }
    }
}

/// Says whether a connection that is closed has ended whole, or is to be reset: an end would be taken for a whole answer, or a
/// whole question.
fn ends_whole(connection: &TcpStream, whole: bool) {
    let linger = if whole { None } else { Some(Duration::ZERO) };
    if let Err(error) = rustix::net::sockopt::set_socket_linger(connection, linger) {
        tracing::warn!(%error, "a connection that is broken off cannot be reset");
    }
}
