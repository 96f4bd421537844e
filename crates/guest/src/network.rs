//! A network that consists of `lo`: every address is local, so every connection fails at once instead of timing out, or comes
//! to the one port behind which the host decides.
//!
//! Plain netlink messages: the image need not hold an `ip` program, and none of it would be trusted.

mod redirect;

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send, socket_with,
};

const REQUEST_ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const PORTS_FROM: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Brings `lo` up, routes everything to it, and sends what is TCP and leads elsewhere to the port `redirect`, if there is one;
/// returns what of it cannot be had here.
pub fn set_up(redirect: Option<u16>) -> io::Result<Vec<String>> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    let lo = rustix::net::netdevice::name_to_index(&socket, "lo")?;
    call(&socket, &link_up(lo))?;
    call(&socket, &local_default(libc::AF_INET as u8, lo))?;
    match call(&socket, &local_default(libc::AF_INET6 as u8, lo)) {
        // A kernel without IPv6 has nothing to route.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
        other => other?,
    }
    if let Some(port) = redirect {
        let refused = |error| crate::inner::context(error, "nftables, by which connections are sent to the host");
        redirect::to_port(port).map_err(refused)?;
    }
    // A kernel before 4.11 lacks it.
    let low_ports = std::fs::write(PORTS_FROM, "0").map_err(|error| {
        format!("network.low_ports: only root inside may use ports below 1024: writing {PORTS_FROM}: {error}")
    });
    Ok(low_ports.err().into_iter().collect())
}

/// Sends one request and reads its acknowledgement.
fn call(socket: &impl std::os::fd::AsFd, message: &[u8]) -> io::Result<()> {
    send(socket, message, SendFlags::empty())?;
    acknowledged(socket)
}

/// Reads an acknowledgement.
fn acknowledged(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    let mut answer = [0_u8; 1024];
    let (count, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    // nlmsghdr (16), then the negative errno of an nlmsgerr.
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if count < 20 || i32::from(kind) != libc::NLMSG_ERROR {
        return Err(io::Error::other("the kernel's answer over netlink makes no sense"));
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        // Was there already: a second guest in one network namespace, in tests.
        errno if -errno == libc::EEXIST => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

fn link_up(index: u32) -> Vec<u8> {
    let mut body = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    // Flags, and which of them to change.
    body.extend((libc::IFF_UP as u32).to_ne_bytes());
    body.extend((libc::IFF_UP as u32).to_ne_bytes());
    message(libc::RTM_NEWLINK, REQUEST_ACK, &body)
}

/// `ip route add local default dev lo`.
fn local_default(family: u8, index: u32) -> Vec<u8> {
    let prefix_length = 0;
    let (table, protocol, scope, kind) =
        (libc::RT_TABLE_LOCAL, libc::RTPROT_BOOT, libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
    let mut body = vec![family, prefix_length, 0, 0, table, protocol, scope, kind];
    body.extend(0_u32.to_ne_bytes());
    body.extend(8_u16.to_ne_bytes());
    body.extend(libc::RTA_OIF.to_ne_bytes());
    body.extend(index.to_ne_bytes());
    message(libc::RTM_NEWROUTE, REQUEST_ACK | CREATE, &body)
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}
