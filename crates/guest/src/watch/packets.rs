//! Attempts seen on `lo`: connections that were refused, and UDP to other places than the loopback addresses.
//!
//! A refused TCP connection shows as a reset that answers a SYN: acknowledging, with sequence 0, from the address that was
//! tried. Looking for that instead of for the SYN leaves out connections that a server inside has taken. The kernel's
//! filters let nothing else through, so watching costs nothing while programs inside talk to each other.
//!
//! Raw sockets see all that arrives, since every address is local. Packet sockets would see the same, but each waits for an
//! RCU grace period (8 ms and more) when it is closed, and so would the end of every run.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, ipproto, recv, socket_with};

use super::{Destination, Source};
use crate::sys;

const TCP: u8 = 6;
const UDP: u8 = 17;
const RST_ACK: u8 = 0x14;
const LOOPBACK_NET: u8 = 127;
/// How much of a packet is looked at: the largest IPv4 header and a TCP header.
const SNAP: u32 = 128;
const DROP: u32 = 0;
/// Where a filter finds the IP header, whatever the socket hands out (SKF_NET_OFF).
const NET_OFF: u32 = libc::SKF_NET_OFF as u32;
const IPV6_DESTINATION: u32 = 24;

/// One source for each version of IP and each protocol. A kernel without IPv6 has none for it.
pub(super) fn sources() -> io::Result<Vec<Source>> {
    let mut sources = vec![
        source(AddressFamily::INET, ipproto::TCP, &ipv4_filter(), look_ipv4)?,
        source(AddressFamily::INET, ipproto::UDP, &ipv4_filter(), look_ipv4)?,
    ];
    let ipv6 = [
        source(AddressFamily::INET6, ipproto::TCP, &ipv6_tcp_filter(), look_ipv6_tcp),
        source(AddressFamily::INET6, ipproto::UDP, &ipv6_udp_filter(), look_ipv6_udp),
    ];
    for source in ipv6 {
        match source {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            other => sources.push(other?),
        }
    }
    Ok(sources)
}

type Look = fn(BorrowedFd<'_>) -> io::Result<Option<Destination>>;

fn source(family: AddressFamily, protocol: Protocol, filter: &[libc::sock_filter], look: Look) -> io::Result<Source> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::RAW, flags, Some(protocol))?;
    sys::attach_filter(socket.as_fd(), filter)?;
    if family == AddressFamily::INET6 {
        sys::tell_destinations(socket.as_fd())?;
    }
    Ok(Source { socket: sys::watched(socket)?, look })
}

fn look_ipv4(socket: BorrowedFd<'_>) -> io::Result<Option<Destination>> {
    let mut packet = [0; SNAP as usize];
    let (count, _) = recv(socket, &mut packet[..], RecvFlags::DONTWAIT)?;
    Ok(parse_ipv4(&packet[..count]))
}

fn look_ipv6_tcp(socket: BorrowedFd<'_>) -> io::Result<Option<Destination>> {
    let mut segment = [0; SNAP as usize];
    let (count, from, to) = sys::take_ipv6(socket, &mut segment)?;
    Ok(to.and_then(|to| transport(TCP, from.into(), to.into(), &segment[..count])))
}

fn look_ipv6_udp(socket: BorrowedFd<'_>) -> io::Result<Option<Destination>> {
    let mut segment = [0; SNAP as usize];
    let (count, from, to) = sys::take_ipv6(socket, &mut segment)?;
    Ok(to.and_then(|to| transport(UDP, from.into(), to.into(), &segment[..count])))
}

fn ipv4_filter() -> Vec<libc::sock_filter> {
    vec![
        load_byte(9),
        jump_if_equal(TCP.into(), 1, 0),
        jump_if_equal(UDP.into(), 8, 11),
        // TCP: not 127/8, then X = length of the IP header, a reset that acknowledges with sequence 0.
        load_byte(12),
        jump_if_equal(LOOPBACK_NET.into(), 9, 0),
        instruction(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, 13),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, RST_ACK.into()),
        jump_if_equal(RST_ACK.into(), 0, 5),
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, 0, 0, 4),
        jump_if_equal(0, 2, 3),
        // UDP: not to 127/8.
        load_byte(16),
        jump_if_equal(LOOPBACK_NET.into(), 1, 0),
        accept(SNAP),
        accept(DROP),
    ]
}

/// The header of IPv6 is cut off before: a segment begins at 0.
fn ipv6_tcp_filter() -> Vec<libc::sock_filter> {
    vec![
        load_byte(13),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, RST_ACK.into()),
        jump_if_equal(RST_ACK.into(), 0, 3),
        load_word(4),
        jump_if_equal(0, 0, 1),
        accept(SNAP),
        accept(DROP),
    ]
}

/// Everything but what goes to ::1.
fn ipv6_udp_filter() -> Vec<libc::sock_filter> {
    vec![
        load_word(NET_OFF.wrapping_add(IPV6_DESTINATION)),
        jump_if_equal(0, 0, 6),
        load_word(NET_OFF.wrapping_add(IPV6_DESTINATION + 4)),
        jump_if_equal(0, 0, 4),
        load_word(NET_OFF.wrapping_add(IPV6_DESTINATION + 8)),
        jump_if_equal(0, 0, 2),
        load_word(NET_OFF.wrapping_add(IPV6_DESTINATION + 12)),
        jump_if_equal(1, 1, 0),
        accept(SNAP),
        accept(DROP),
    ]
}

fn instruction(code: u32, jump_true: u8, jump_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k }
}

fn load_byte(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at)
}

fn load_word(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at)
}

fn jump_if_equal(value: u32, jump_true: u8, jump_false: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jump_true, jump_false, value)
}

fn accept(bytes: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, bytes)
}

fn parse_ipv4(packet: &[u8]) -> Option<Destination> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    // A fragment that is not the first has no ports.
    if u16_at(packet, 6)? & 0x1fff != 0 {
        return None;
    }
    let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(u32_at(packet, at)?)));
    transport(*packet.get(9)?, address(12)?, address(16)?, packet.get(header..)?)
}

fn transport(protocol: u8, source: IpAddr, destination: IpAddr, segment: &[u8]) -> Option<Destination> {
    let (address, port, protocol) = match protocol {
        // The answer to a SYN comes from where the SYN went to.
        TCP if *segment.get(13)? & RST_ACK == RST_ACK && u32_at(segment, 4)? == 0 => {
            (source, u16_at(segment, 0)?, "tcp")
        }
        UDP => (destination, u16_at(segment, 2)?, "udp"),
        _ => return None,
    };
    let elsewhere = !address.is_loopback() && !address.is_multicast();
    elsewhere.then(|| Destination { host: address.to_string(), port, protocol })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, source: [u8; 4], destination: [u8; 4], segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend(segment);
        packet
    }

    fn tcp(port: u16, sequence: u32, flags: u8) -> Vec<u8> {
        let mut segment = port.to_be_bytes().to_vec();
        segment.extend([1, 2]);
        segment.extend(sequence.to_be_bytes());
        segment.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        segment
    }

    #[test]
    fn tells_refused_connections_from_others() {
        let refused = ipv4(TCP, [1, 2, 3, 4], [1, 2, 3, 4], &tcp(443, 0, 0x14));
        let expected = Destination { host: "1.2.3.4".into(), port: 443, protocol: "tcp" };
        assert_eq!(parse_ipv4(&refused), Some(expected));
        for other in [
            ipv4(TCP, [127, 0, 0, 1], [127, 0, 0, 1], &tcp(443, 0, 0x14)),
            ipv4(TCP, [1, 2, 3, 4], [1, 2, 3, 4], &tcp(443, 9, 0x14)),
            ipv4(TCP, [1, 2, 3, 4], [1, 2, 3, 4], &tcp(443, 0, 0x02)),
            ipv4(1, [1, 2, 3, 4], [1, 2, 3, 4], &tcp(443, 0, 0x14)),
        ] {
            assert_eq!(parse_ipv4(&other), None, "{other:?}");
        }
    }

    #[test]
    fn no_length_is_too_short() {
        let packet = ipv4(TCP, [1, 2, 3, 4], [1, 2, 3, 4], &tcp(443, 0, 0x14));
        for length in 0..packet.len() - 6 {
            assert_eq!(parse_ipv4(&packet[..length]), None, "{length} bytes");
        }
        let (address, segment) = (IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), tcp(443, 0, 0x14));
        for length in 0..14 {
            assert_eq!(transport(TCP, address, address, &segment[..length]), None, "{length} bytes");
        }
    }
}
