//! From a name to the addresses that may be dialled.
//!
//! What always holds: an address that is returned was checked, and is the one that is dialled: nobody looks the name up again.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use hickory_resolver::{
    Resolver as Hickory, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
};
use holm_domain::egress::{address::may_reach, name::HostName};
use ipnet::IpNet;

use super::Refusal;

/// How long a name server may take for one answer, and how often it is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ASKED_AT_MOST: usize = 2;
/// The most names whose addresses are kept for as long as their servers allow.
const KEPT_MAX: u64 = 1_024;
/// The most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;

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
    /// What of the addresses that are not on the public internet the operator listed.
    listed: Vec<IpNet>,
}

impl Resolver {
    /// One that asks `servers`, or those of the host where none are given.
    pub fn new(servers: &[SocketAddr], listed: Vec<IpNet>) -> std::io::Result<Self> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| {
                let way_out = "name some with --host-name-server";
                std::io::Error::other(format!("the name servers of this host are not known: {error}; {way_out}"))
            })?
        } else {
            let servers = servers.iter().map(server).collect();
            Hickory::builder_with_config(ResolverConfig::from_name_servers(servers), TokioRuntimeProvider::default())
        };
        tune(builder.options_mut());
        Ok(Self { hickory: builder.build().map_err(std::io::Error::other)?, listed })
    }

    /// The addresses of a name, each checked.
    pub async fn addresses(&self, name: &HostName, scope: Scope) -> Result<Vec<IpAddr>, Refusal> {
        // With the dot at its end it is looked up as it is, in no domain of the host's.
        let found = self.hickory.lookup_ip(format!("{name}.")).await.map_err(|error| {
            tracing::debug!(%name, %error, "a name was not resolved");
            if error.is_no_records_found() || error.is_nx_domain() { Refusal::NoSuchName } else { Refusal::NameServer }
        })?;
        let mut refused = Refusal::NoSuchName;
        let may = |address: &IpAddr| self.check(*address, scope).map_err(|why| refused = why).is_ok();
        let addresses: Vec<IpAddr> = found.iter().filter(may).take(ADDRESSES_MAX).collect();
        if addresses.is_empty() { Err(refused) } else { Ok(addresses) }
    }

    /// Whether an address may be dialled.
    pub fn check(&self, address: IpAddr, scope: Scope) -> Result<(), Refusal> {
        let listed = match scope {
            Scope::Listed => self.listed.as_slice(),
            Scope::Public => &[],
        };
        may_reach(address, listed).map_err(|special| Refusal::Special(special.purpose))?;
        let is_listed = listed.iter().any(|range| *range == IpNet::from(address));
        match is_own(address) {
            Ok(own) if own && !is_listed => Err(Refusal::Special("the host itself")),
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Unreachable),
        }
    }
}

/// Whether an address is one of the host's, whichever it has now: the kernel sends to these from themselves. Nothing is sent.
fn is_own(address: IpAddr) -> std::io::Result<bool> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // The port of `discard`; datagrams have no connection.
    socket.connect((address, 9))?;
    Ok(address.is_loopback() || socket.local_addr()?.ip() == address)
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    (udp.port, tcp.port) = (address.port(), address.port());
    NameServerConfig::new(address.ip(), true, vec![udp, tcp])
}

fn tune(options: &mut ResolverOpts) {
    options.timeout = ANSWER_WITHIN;
    options.attempts = ASKED_AT_MOST;
    options.cache_size = KEPT_MAX;
    options.edns0 = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_not_reached_unless_it_is_listed_by_itself() {
        assert!(is_own("127.0.0.1".parse().unwrap()).unwrap());
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
        let public = Resolver::new(&servers, vec!["127.0.0.1/32".parse().unwrap()]).unwrap();
        let refused = public.check("127.0.0.1".parse().unwrap(), Scope::Public);
        assert_eq!(refused, Err(Refusal::Special("loopback")), "what is listed is not the public internet");
    }
}
