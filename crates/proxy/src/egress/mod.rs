//! The egress proxy of one sandbox: every connection that leaves it.
//!
//! What always holds: a connection is made only where the policy names its host and port at that moment, by a name that was
//! resolved here to an address that was checked here, and ends within a second once the policy does not name it any more. What
//! is refused ends before a byte of it has left. Every connection is told of once, when it has ended. Whatever is inside may say
//! what it likes: connections, look-ups and dials have limits, which are those of this sandbox alone; where it waits for many that
//! do not answer, its others wait as well.

mod dial;
pub mod greeting;
mod names;
mod relay;
mod resolve;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use holm_domain::egress::{
    name::{Host, HostName},
    policy::{Place, Rule},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

pub use names::TTL_S;
use names::{Names, is_synthetic};
use relay::{Counts, relay};
use resolve::{Resolver, Scope};

use crate::pace::Pace;

/// The most connections of a sandbox at once; others wait to be accepted.
pub const CONNECTIONS_MAX: usize = 512;
/// The most that are accepted in a second; others wait to be.
pub const CONNECTIONS_A_SECOND_MAX: u32 = 1_000;
/// The most of them that are being made at once: a sandbox is no scanner of ports.
const DIALS_MAX: usize = 32;
/// The most names that are looked up at once.
const LOOK_UPS_MAX: usize = 16;
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
}

/// Why a connection was not made, or not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule names it.
    #[error("no rule allows it")]
    NotAllowed,
    /// A rule named it, and does not any more.
    #[error("the rule that allowed it was withdrawn")]
    Withdrawn,
    /// Its address stands for no name that is known.
    #[error("its address stands for no name any more")]
    Forgotten,
    /// The name has no address.
    #[error("its name has no address")]
    NoSuchName,
    /// The name servers do not say.
    #[error("the name servers give no answer")]
    NameServer,
    /// Its addresses may not be reached.
    #[error("it leads to an address that may not be reached ({0})")]
    Special(&'static str),
    /// Nobody answers there.
    #[error("nobody answers at its address")]
    Unreachable,
    /// It was made, and one side broke it off.
    #[error("it was broken off")]
    BrokenOff,
    /// It was open when the sandbox ended.
    #[error("the sandbox ended")]
    SandboxEnded,
    /// What the client asks for in its greeting is another name.
    #[error("the client asks for another name than the one it was connected by")]
    OtherName,
    /// What the client sends is no TLS, and begins as if it were.
    #[error("the client does not greet as a client of TLS does")]
    Malformed,
}

impl Refusal {
    /// Its stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Withdrawn => "withdrawn",
            Self::Forgotten => "forgotten_address",
            Self::NoSuchName => "no_such_name",
            Self::NameServer => "name_server_failed",
            Self::Special(_) => "special_address",
            Self::Unreachable => "unreachable",
            Self::BrokenOff => "broken_off",
            Self::SandboxEnded => "sandbox_ended",
            Self::OtherName => "other_name",
            Self::Malformed => "malformed_greeting",
        }
    }

    /// Whether the policy is the reason, and not the network.
    pub const fn is_of_policy(self) -> bool {
        !matches!(self, Self::NoSuchName | Self::NameServer | Self::Unreachable | Self::BrokenOff | Self::SandboxEnded)
    }
}

/// A connection that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
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
    rules: watch::Sender<Arc<[Rule]>>,
    resolver: Resolver,
    names: Mutex<Names>,
    look_ups: Semaphore,
    dials: Semaphore,
    /// Whether nobody is left inside.
    is_last: watch::Sender<bool>,
}

impl Egress {
    /// A proxy that allows what `rules` name. Fails where the host's name servers cannot be known.
    pub fn new(rules: Vec<Rule>, ways_out: WaysOut) -> io::Result<Arc<Self>> {
        let WaysOut { reach, name_servers } = ways_out;
        Ok(Arc::new(Self {
            rules: watch::Sender::new(rules.into()),
            resolver: Resolver::new(&name_servers, reach)?,
            names: Mutex::default(),
            look_ups: Semaphore::new(LOOK_UPS_MAX),
            dials: Semaphore::new(DIALS_MAX),
            is_last: watch::Sender::new(false),
        }))
    }

    /// Changes what is allowed; connections that are not any more end.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.rules.send_replace(rules.into());
    }

    /// The address that stands for a name inside, as it came over the wire; none where no rule names it.
    pub fn resolve(&self, name: &[u8]) -> Option<Ipv4Addr> {
        let name = HostName::from_wire(name).ok()?;
        let host = Host::Name(name.clone());
        let is_named = self.rules.borrow().iter().any(|rule| rule.names(&host));
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
        let attend = |connections: &mut JoinSet<()>, (client, told)| match asked(&client) {
            Ok(asked) => drop(connections.spawn(self.clone().attend(client, asked, told))),
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
            };
            let _is_cut_off_then = tokio::time::timeout(left, rest).await;
        }
        connections.shutdown().await;
    }

    /// Sees one connection through, and tells of it.
    async fn attend(self: Arc<Self>, mut client: TcpStream, asked: SocketAddrV4, told: mpsc::OwnedPermit<Told>) {
        let (host, port) = (self.host_of(*asked.ip()), asked.port());
        let shown = host.as_ref().map_or_else(|| asked.ip().to_string(), Host::to_string);
        let mut open = Open::new(shown, port, told);
        ends_whole(&client, false);
        let passed = match &host {
            Some(host) => self.pass(&mut client, (host, port), &open).await,
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
    async fn pass(&self, client: &mut TcpStream, (host, port): (&Host, u16), open: &Open) -> Result<(), Refusal> {
        let mut rules = self.rules.subscribe();
        let scope_in = |rules: &Arc<[Rule]>| scope(rules, host, port);
        let scope = scope_in(&rules.borrow_and_update()).ok_or(Refusal::NotAllowed)?;
        let passing = async {
            let mut outside = self.connect(host, port, scope).await?;
            if let Ok(address) = outside.peer_addr() {
                open.address.get_or_init(|| address);
            }
            let name = match host {
                Host::Name(name) => Some(name),
                Host::Address(_) => None,
            };
            ends_whole(&outside, false);
            relay(&mut *client, &mut outside, name, &open.counts, self.is_last.subscribe()).await?;
            ends_whole(client, true);
            ends_whole(&outside, true);
            Ok(())
        };
        tokio::select! {
            passed = passing => passed,
            _ = rules.wait_for(|rules| scope_in(rules) != Some(scope)) => Err(Refusal::Withdrawn),
        }
    }

    async fn connect(&self, host: &Host, port: u16, scope: Scope) -> Result<TcpStream, Refusal> {
        let addresses = match host {
            Host::Name(name) => {
                let _place = self.look_ups.acquire().await.map_err(|_| Refusal::NameServer)?;
                self.resolver.addresses(name, scope).await?
            }
            Host::Address(address) => self.resolver.check(*address, scope).map(|()| vec![*address])?,
        };
        let addresses = addresses.into_iter().map(|address: IpAddr| SocketAddr::new(address, port)).collect();
        let _place = self.dials.acquire().await.map_err(|_| Refusal::Unreachable)?;
        dial::dial(addresses).await.map_err(|error| {
            tracing::debug!(%host, port, %error, "a connection was not made");
            Refusal::Unreachable
        })
    }
}

/// Where a connection to `host` and `port` may lead to, if a rule allows it: what is allowed as part of the public internet must
/// be on it.
fn scope(rules: &[Rule], host: &Host, port: u16) -> Option<Scope> {
    let allowing = rules.iter().filter(|rule| rule.connects(host, port));
    let scopes = allowing.map(|rule| if rule.place == Place::Public { Scope::Public } else { Scope::Listed });
    scopes.reduce(|some, other| if other == Scope::Listed { other } else { some })
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
        told.send(Told {
            host: std::mem::take(&mut self.host),
            port: self.port,
            address: self.address.get().copied(),
            refused: self.refused,
            sent: self.counts.sent.load(Ordering::Relaxed),
            received: self.counts.received.load(Ordering::Relaxed),
            duration: self.begun.elapsed(),
        });
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
