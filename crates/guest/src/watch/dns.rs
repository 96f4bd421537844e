//! The name server on 127.0.0.53: it answers every question with REFUSED, at once.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::BorrowedFd,
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto, socket_with};

use super::{Destination, Source};

const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 53), 53);
const HEADER: usize = 12;
/// More than a question of one name takes.
const QUESTION_BYTES_MAX: usize = 2_048;
const NAME_BYTES_MAX: usize = 255;
const REFUSED: u8 = 5;

/// Takes the port.
pub(super) fn source() -> io::Result<Source> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    bind(&socket, &ADDRESS)?;
    Ok(Source { socket: crate::sys::watched(socket)?, look: answer })
}

fn answer(socket: BorrowedFd<'_>) -> io::Result<Option<Destination>> {
    let mut question = [0; QUESTION_BYTES_MAX];
    let (count, _, from) = recvfrom(socket, &mut question[..], RecvFlags::DONTWAIT)?;
    let asked = asked(&question[..count]);
    if let (Some((_, reply)), Some(from)) = (&asked, from) {
        // An asker that is gone already gets none.
        let _ = sendto(socket, reply, SendFlags::DONTWAIT, &from);
    }
    Ok(asked.map(|(name, _)| Destination { host: name, port: 0, protocol: "dns" }))
}

/// The name that is asked for, and the answer.
fn asked(question: &[u8]) -> Option<(String, Vec<u8>)> {
    let (name, end) = name_of(question)?;
    Some((name, refuse(question.get(..end)?)?))
}

/// The name in the one question of a query, and where the question ends.
fn name_of(query: &[u8]) -> Option<(String, usize)> {
    let is_answer = query.get(2)? & 0x80 != 0;
    if is_answer || query.get(4..6)? != [0, 1] {
        return None;
    }
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        // Pointers have no place in a question.
        if length > 63 {
            return None;
        }
        at += 1;
        if length == 0 {
            break;
        }
        let label = query.get(at..at + length)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }));
        if name.len() > NAME_BYTES_MAX {
            return None;
        }
        at += length;
    }
    // Type and class.
    let end = at + 4;
    (query.len() >= end).then_some((name, end))
}

/// The question sent back as a refusal: same id and question, nothing else.
fn refuse(question: &[u8]) -> Option<Vec<u8>> {
    let mut reply = question.to_vec();
    let head = reply.first_chunk_mut::<HEADER>()?;
    let recursion_desired = head[2] & 0x01;
    let opcode = head[2] & 0x78;
    head[2] = 0x80 | opcode | recursion_desired;
    head[3] = REFUSED;
    head[6..].fill(0);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x07example\x03com\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";

    #[test]
    fn refuses_with_the_same_question() {
        let (name, end) = name_of(QUERY).unwrap();
        assert_eq!(name, "example.com");
        let reply = refuse(&QUERY[..end]).unwrap();
        assert_eq!(reply, b"\x12\x34\x81\x05\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01");
    }

    #[test]
    fn drops_what_is_no_query() {
        for length in 0..29 {
            assert_eq!(name_of(&QUERY[..length]), None, "{length} bytes");
        }
        let mut answer = QUERY.to_vec();
        answer[2] |= 0x80;
        assert_eq!(name_of(&answer), None);
        let mut pointer = QUERY.to_vec();
        pointer[12] = 0xc0;
        assert_eq!(name_of(&pointer), None);
    }
}
