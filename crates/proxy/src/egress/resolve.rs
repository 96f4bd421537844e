//! From a name to the addresses that may be dialled.
//!
//! What always holds: an address that is returned was checked, and is the one that is dialled: nobody looks the name up again. What
//! is kept of answers has a limit, however long they are.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_resolver::{
    Resolver as Hickory, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
};
use holm_domain::egress::{
    address::{leads_to, may_reach},
    name::HostName,
};
use ipnet::IpNet;

use super::{Refusal, checks::is_off};

/// How long a name server may take for one answer, and how often it is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ASKED_AT_MOST: usize = 2;
/// The most names whose addresses are kept, each for as long as its servers allow and no longer than this.
const KEPT_MAX: usize = 1_024;
const KEPT_FOR: Duration = Duration::from_secs(300);
/// The most addresses of a name that are looked at, and of those that may be reached are tried.
const ADDRESSES_MAX: usize = 32;
const TRIED_MAX: usize = 16;
/// An address that no host has (RFC 5737).
const NOBODYS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Where a connection may lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The public internet, and what the operator listed beside it.
    Listed,
    /// The public internet alone.
    Public,
}

/// Looks names up for one sandbox.
pub struct Resolver {
    hickory: TokioResolver,
    kept: Mutex<HashMap<HostName, (Vec<IpAddr>, Instant)>>,
    /// What of the addresses that are not on the public internet the operator listed.
    listed: Vec<IpNet>,
}

impl Resolver {
    /// One that asks `servers`, or those of the host where none are given.
    pub fn new(servers: &[SocketAddr], listed: Vec<IpNet>) -> io::Result<Self> {
        if is_own(NOBODYS)? {
            let why = "this host lets programs take addresses that are not its own (net.ipv4.ip_nonlocal_bind), so which are is \
                       not known";
            return Err(io::Error::other(why));
        }
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| {
                let way_out = "name some with --host-name-server";
                io::Error::other(format!("the name servers of this host are not known: {error}; {way_out}"))
            })?
        } else {
            let servers = servers.iter().map(server).collect();
            Hickory::builder_with_config(ResolverConfig::from_name_servers(servers), TokioRuntimeProvider::default())
        };
        tune(builder.options_mut(), servers);
        Ok(Self { hickory: builder.build().map_err(io::Error::other)?, kept: Mutex::default(), listed })
    }

    /// The addresses of a name, each checked.
    pub async fn addresses(&self, name: &HostName, scope: Scope) -> Result<Vec<IpAddr>, Refusal> {
        let found = match self.kept(name) {
            Some(kept) => kept,
            None => self.look_up(name).await?,
        };
        let mut refused = Refusal::NoSuchName;
        let may = |address: &IpAddr| self.check(*address, scope).map_err(|why| refused = why).is_ok();
        let addresses: Vec<IpAddr> = found.into_iter().filter(may).take(TRIED_MAX).collect();
        if addresses.is_empty() { Err(refused) } else { Ok(addresses) }
    }

    /// Knows a name without asking.
    #[cfg(test)]
    pub fn knows(&self, name: &HostName, address: IpAddr) {
        let until = Instant::now() + KEPT_FOR;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), (vec![address], until));
    }

    fn kept(&self, name: &HostName) -> Option<Vec<IpAddr>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(name).filter(|(_, until)| Instant::now() < *until).map(|(addresses, _)| addresses.clone())
    }

    async fn look_up(&self, name: &HostName) -> Result<Vec<IpAddr>, Refusal> {
        // With the dot at its end it is looked up as it is, in no domain of the host's.
        let found = self.hickory.lookup_ip(format!("{name}.")).await.map_err(|error| {
            tracing::debug!(%name, %error, "a name was not resolved");
            if error.is_no_records_found() || error.is_nx_domain() { Refusal::NoSuchName } else { Refusal::NameServer }
        })?;
        let addresses: Vec<IpAddr> = found.iter().take(ADDRESSES_MAX).collect();
        let now = Instant::now();
        let until = found.valid_until().min(now + KEPT_FOR);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, (_, until)| now < *until);
        }
        if kept.len() < KEPT_MAX {
            kept.insert(name.clone(), (addresses.clone(), until));
        }
        Ok(addresses)
    }

    /// Whether an address may be dialled.
    pub fn check(&self, address: IpAddr, scope: Scope) -> Result<(), Refusal> {
        let listed = match scope {
            Scope::Listed => self.listed.as_slice(),
            Scope::Public => &[],
        };
        if is_off("address") {
            return Ok(());
        }
        may_reach(address, listed).map_err(|special| Refusal::Special(special.purpose))?;
        let is_listed = listed.iter().any(|range| *range == IpNet::from(address));
        match is_own(leads_to(address)) {
            Ok(own) if own && !is_listed => Err(Refusal::Special("the host itself")),
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Unreachable),
        }
    }
}

/// Whether an address is one of the host's, whichever it has now: the kernel gives a socket these and no others (EADDRNOTAVAIL,
/// ip(7)).
fn is_own(address: IpAddr) -> io::Result<bool> {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    (udp.port, tcp.port) = (address.port(), address.port());
    NameServerConfig::new(address.ip(), true, vec![udp, tcp])
}

fn tune(options: &mut ResolverOpts, servers: &[SocketAddr]) {
    options.timeout = ANSWER_WITHIN;
    options.attempts = ASKED_AT_MOST;
    options.edns0 = true;
    // Its own limit is a number of answers, and those may be long.
    options.cache_size = 0;
    if !servers.is_empty() {
        // Who names servers has those asked.
        options.use_hosts_file = ResolveHosts::Never;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_not_reached_unless_it_is_listed_by_itself() {
        for (address, own) in [("127.0.0.1", true), ("127.0.0.2", true), ("192.0.2.1", false), ("1.1.1.1", false)] {
            assert_eq!(is_own(address.parse().unwrap()).unwrap(), own, "{address}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let servers = ["127.0.0.1:53".parse().unwrap()];
        let check = |listed: &str| {
            let listed = vec![listed.parse().unwrap()];
            Resolver::new(&servers, listed).unwrap().check("127.0.0.1".parse().unwrap(), Scope::Listed)
        };
        assert_eq!(check("10.0.0.0/8"), Err(Refusal::Special("loopback")));
        assert_eq!(check("127.0.0.0/8"), Err(Refusal::Special("the host itself")));
        assert_eq!(check("127.0.0.1/32"), Ok(()));
        let listed = vec!["127.0.0.0/8".parse().unwrap()];
        let mapped = Resolver::new(&servers, listed).unwrap().check("::ffff:127.0.0.2".parse().unwrap(), Scope::Listed);
        assert_eq!(mapped, Err(Refusal::Special("the host itself")), "what stands for an address is that");
        let public = Resolver::new(&servers, vec!["127.0.0.1/32".parse().unwrap()]).unwrap();
        let refused = public.check("127.0.0.1".parse().unwrap(), Scope::Public);
        assert_eq!(refused, Err(Refusal::Special("loopback")), "what is listed is not the public internet");
    }
}
