//! Sends the TCP connections that leave the loopback addresses to one port, as `redirect` of nftables does.
//!
//! One chain of type nat at the hook for what is sent here, as nft(8) would make it of
//! `ip daddr != 127.0.0.0/8 tcp redirect to :PORT`. IPv6 is left alone: names have no addresses of it, and others are refused.

use std::io;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, netlink, send, socket_with};

use super::acknowledged;

/// What a message of nftables is to do, and what it is about (linux/netfilter/nf_tables.h).
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NF_INET_LOCAL_OUT, and the priority of translations of destinations there.
const HOOK: u32 = 3;
const PRIORITY: i32 = -100;
const NESTED: u16 = 1 << 15;
const REGISTER: u32 = 1;
const NAME: &[u8] = b"holm\0";

/// Sends what is sent to elsewhere to `port` of this machine.
pub fn to_port(port: u16) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    let about = [
        message(BATCH_BEGIN, 0, libc::AF_UNSPEC, SUBSYSTEM, &[]),
        change(NEW_TABLE, &attribute(1, NAME)),
        change(NEW_CHAIN, &chain()),
        change(NEW_RULE, &rule(port)),
        message(BATCH_END, 0, libc::AF_UNSPEC, SUBSYSTEM, &[]),
    ];
    send(&socket, &about.concat(), SendFlags::empty())?;
    (0..3).try_for_each(|_| acknowledged(&socket))
}

fn chain() -> Vec<u8> {
    let hook = [attribute(1, &HOOK.to_be_bytes()), attribute(2, &PRIORITY.to_be_bytes())].concat();
    [attribute(1, NAME), attribute(3, NAME), attribute(4 | NESTED, &hook), attribute(7, b"nat\0")].concat()
}

fn rule(port: u16) -> Vec<u8> {
    let expressions = [
        // The protocol is TCP.
        expression(b"meta\0", &[attribute(1, &REGISTER.to_be_bytes()), attribute(2, &16_u32.to_be_bytes())]),
        compare(0, &[libc::IPPROTO_TCP as u8]),
        // The first byte of the destination, which stands at 16 of the header of IPv4, is not that of the loopback addresses.
        expression(
            b"payload\0",
            &[(1, REGISTER), (2, 1), (3, 16), (4, 1)].map(|(kind, value)| attribute(kind, &value.to_be_bytes())),
        ),
        compare(1, &[127]),
        expression(
            b"immediate\0",
            &[attribute(1, &REGISTER.to_be_bytes()), attribute(2 | NESTED, &attribute(1, &port.to_be_bytes()))],
        ),
        expression(b"redir\0", &[attribute(1, &REGISTER.to_be_bytes())]),
    ];
    [attribute(1, NAME), attribute(2, NAME), attribute(4 | NESTED, &expressions.concat())].concat()
}

/// Goes on only where what was loaded is (0), or is not (1), `value`.
fn compare(operation: u32, value: &[u8]) -> Vec<u8> {
    expression(
        b"cmp\0",
        &[
            attribute(1, &REGISTER.to_be_bytes()),
            attribute(2, &operation.to_be_bytes()),
            attribute(3 | NESTED, &attribute(1, value)),
        ],
    )
}

fn expression(name: &[u8], of: &[Vec<u8>]) -> Vec<u8> {
    attribute(1 | NESTED, &[attribute(1, name), attribute(2 | NESTED, &of.concat())].concat())
}

/// An attribute, padded to four bytes (linux/netlink.h).
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // None of ours is longer than some hundred bytes.
    let mut attribute = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn change(what: u16, attributes: &[u8]) -> Vec<u8> {
    let flags = super::REQUEST_ACK | (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;
    message(SUBSYSTEM << 8 | what, flags, libc::AF_INET, 0, attributes)
}

fn message(kind: u16, flags: u16, family: i32, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let version = 0;
    let mut body = vec![family as u8, version];
    body.extend(resource.to_be_bytes());
    body.extend(attributes);
    super::message(kind, flags | libc::NLM_F_REQUEST as u16, &body)
}
