//! What is outside, as far as the policy and the operator of the host let it be reached.
//!
//! What always holds: a connection is made only to an address that was checked, for a host and a port that the policy names at
//! that moment. Look-ups and dials have limits, which are those of this sandbox alone; where it waits for many that do not
//! answer, its others wait as well.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use holm_domain::egress::{
    credential::Credential,
    name::{Host, HostName},
    policy::{Place, Rule},
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};

use super::{
    Refusal, WaysOut,
    checks::is_off,
    dial::dial,
    resolve::{Resolver, Scope},
};

/// The most connections that are being made at once: a sandbox is no scanner of ports.
const DIALS_MAX: usize = 32;
/// The most names that are looked up at once.
const LOOK_UPS_MAX: usize = 16;

/// How a connection that is allowed is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Where it may lead to.
    pub scope: Scope,
    /// Whether all that allows it is about requests: they have to be seen.
    pub is_seen: bool,
}

impl Way {
    /// Whether a connection goes on where it is to be treated as `now`: one whose requests are seen may, once that needs not be.
    fn lasts(self, now: Option<Self>) -> bool {
        now.is_some_and(|now| now.scope == self.scope && (self.is_seen || !now.is_seen))
    }
}

/// What is outside.
pub struct Outside {
    rules: watch::Sender<Arc<[Rule]>>,
    credentials: Vec<Credential>,
    resolver: Resolver,
    look_ups: Semaphore,
    dials: Semaphore,
}

impl Outside {
    /// What `rules` name of it; what leads to where `credentials` are for is seen. Fails where the host's name servers cannot be
    /// known.
    pub fn new(rules: Vec<Rule>, credentials: Vec<Credential>, ways_out: WaysOut) -> io::Result<Arc<Self>> {
        let WaysOut { reach, name_servers, .. } = ways_out;
        Ok(Arc::new(Self {
            rules: watch::Sender::new(rules.into()),
            credentials,
            resolver: Resolver::new(&name_servers, reach)?,
            look_ups: Semaphore::new(LOOK_UPS_MAX),
            dials: Semaphore::new(DIALS_MAX),
        }))
    }

    /// Who looks names up.
    #[cfg(test)]
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// What is allowed.
    #[cfg(test)]
    pub fn rules(&self) -> Arc<[Rule]> {
        self.rules.borrow().clone()
    }

    /// Changes what is allowed.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.rules.send_replace(rules.into());
    }

    /// Whether some rule names `host`, on whichever port.
    pub fn names(&self, host: &Host) -> bool {
        self.rules.borrow().iter().any(|rule| rule.names(host))
    }

    /// How a connection to `host` and `port` is treated, if one is allowed.
    pub fn way(&self, host: &Host, port: u16) -> Option<Way> {
        self.way_by(&self.rules.borrow(), host, port)
    }

    fn way_by(&self, rules: &[Rule], host: &Host, port: u16) -> Option<Way> {
        way(rules, host, port).map(|way| Way { is_seen: way.is_seen || self.is_bound(host, port), ..way })
    }

    /// Whether credentials are for `host` and `port`.
    pub fn is_bound(&self, host: &Host, port: u16) -> bool {
        self.credentials.iter().any(|credential| credential.to.connects(host, port))
    }

    /// Waits until a connection is not treated any more as it was.
    pub async fn changed(&self, host: &Host, port: u16, before: Way) {
        let mut rules = self.rules.subscribe();
        // Whoever says them is there as long as this is.
        let _never_closed = rules.wait_for(|rules| !before.lasts(self.way_by(rules, host, port))).await;
    }

    /// Whether a request is allowed. `path` is what stands before a `?`.
    pub fn allows(&self, name: &HostName, port: u16, method: &str, path: &str) -> bool {
        allows(&self.rules.borrow(), &Host::Name(name.clone()), port, (method, path))
    }

    /// Waits until a request is not allowed any more.
    pub fn withdrawn(
        &self,
        name: HostName,
        port: u16,
        method: String,
        path: String,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (host, mut rules) = (Host::Name(name), self.rules.subscribe());
        async move {
            let _or_all_has_ended = rules.wait_for(|rules| !allows(rules, &host, port, (&method, &path))).await;
        }
    }

    /// Connects to `host` and `port`, which may lead to what is in `scope`.
    pub async fn connect(&self, host: &Host, port: u16, scope: Scope) -> Result<TcpStream, Refusal> {
        let addresses = match host {
            Host::Name(name) => {
                let _place = self.look_ups.acquire().await.map_err(|_| Refusal::NameServer)?;
                self.resolver.addresses(name, scope).await?
            }
            Host::Address(address) => self.resolver.check(*address, scope).map(|()| vec![*address])?,
        };
        let addresses = addresses.into_iter().map(|address: IpAddr| SocketAddr::new(address, port)).collect();
        let _place = self.dials.acquire().await.map_err(|_| Refusal::Unreachable)?;
        dial(addresses).await.map_err(|error| {
            tracing::debug!(%host, port, %error, "a connection was not made");
            Refusal::Unreachable
        })
    }
}

/// Where a connection may lead to: what is allowed as part of the public internet must be on it.
fn way(rules: &[Rule], host: &Host, port: u16) -> Option<Way> {
    let allowing = || rules.iter().filter(|rule| rule.connects(host, port));
    let scopes = allowing().map(|rule| if rule.place == Place::Public { Scope::Public } else { Scope::Listed });
    let scope = scopes.reduce(|some, other| if other == Scope::Listed { other } else { some })?;
    Some(Way { scope, is_seen: allowing().all(Rule::is_of_requests) })
}

fn allows(rules: &[Rule], host: &Host, port: u16, (method, path): (&str, &str)) -> bool {
    rules.iter().any(|rule| rule.connects(host, port) && (is_off("request") || rule.requests(method, path)))
}
