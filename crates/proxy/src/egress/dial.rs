//! A connection to one of the addresses that were checked, and to no other.

use std::{net::SocketAddr, time::Duration};

use hyper_util::client::legacy::connect::HttpConnector;
use tokio::net::TcpStream;
use tower::{Service as _, service_fn};

/// How long all addresses together may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// How long the addresses of one version of IP are tried before those of the other are tried beside them (RFC 8305, section 5).
const OTHERS_AFTER: Duration = Duration::from_millis(250);
/// After how long without a byte the kernel asks whether the other side is still there.
const ALIVE_AFTER: Duration = Duration::from_secs(60);

/// Connects to the first that answers.
pub async fn dial(addresses: Vec<SocketAddr>) -> std::io::Result<TcpStream> {
    let known = service_fn(move |_| std::future::ready(Ok::<_, std::io::Error>(addresses.clone().into_iter())));
    let mut connector = HttpConnector::new_with_resolver(known);
    connector.set_connect_timeout(Some(CONNECT_WITHIN));
    connector.set_happy_eyeballs_timeout(Some(OTHERS_AFTER));
    connector.set_keepalive(Some(ALIVE_AFTER));
    connector.set_nodelay(true);
    // The name stands for the addresses alone; each has its port.
    let placeholder = http::Uri::from_static("http://checked");
    let connected = tokio::time::timeout(CONNECT_WITHIN, connector.call(placeholder)).await;
    let connected = connected.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
    Ok(connected.map_err(std::io::Error::other)?.into_inner())
}
