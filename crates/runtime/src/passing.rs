//! One message with descriptors over a Unix stream socket: how the agent hands a sandbox's parts to its shim, and the
//! launcher the guest.
//!
//! A message is a head of 8 bytes (length of the body and number of descriptors, both little-endian), with which all
//! descriptors travel (SCM_RIGHTS, unix(7)), and a JSON body. What always holds: bodies and counts have limits, a message
//! that was cut is an error and never a shorter list, received descriptors are close-on-exec, and neither end waits longer
//! than [`TRANSFER_TIMEOUT`] for the other.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::Descriptor;

/// The longest body, in bytes.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most descriptors in one message; the kernel's own limit is 253 (SCM_MAX_FD).
pub const DESCRIPTORS_MAX: usize = 200;
/// The longest wait for the other end, for each piece.
pub const TRANSFER_TIMEOUT: Duration = Duration::from_secs(20);
const HEAD_BYTES: usize = 8;

/// Why a message could not be passed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed, the other end took too long, or it went away.
    #[error("passing descriptors: {0}")]
    Io(#[from] io::Error),
    /// There is more of something than a message may carry.
    #[error("a message of {given} {what}: {max} is the limit")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there is.
        given: usize,
        /// How much is allowed.
        max: usize,
    },
    /// The body is not what it should be.
    #[error("the body of a passed message: {0}")]
    Body(#[from] serde_json::Error),
    /// The kernel did not deliver all the descriptors that the head announces, or others.
    #[error("{announced} descriptors were announced and {received} received")]
    Descriptors {
        /// How many the head names.
        announced: usize,
        /// How many arrived.
        received: usize,
    },
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

#[derive(Serialize)]
struct Outgoing<'a, T> {
    names: Vec<&'a str>,
    body: &'a T,
}

#[derive(Deserialize)]
struct Incoming<T> {
    names: Vec<String>,
    body: T,
}

/// Sends `body` and duplicates of `descriptors`.
pub fn send<T: Serialize>(socket: &UnixStream, body: &T, descriptors: &[Descriptor]) -> Result<(), Error> {
    let names = descriptors.iter().map(|descriptor| descriptor.name.as_str()).collect();
    let bytes = serde_json::to_vec(&Outgoing { names, body })?;
    within("bytes", bytes.len(), BODY_BYTES_MAX)?;
    within("descriptors", descriptors.len(), DESCRIPTORS_MAX)?;
    socket.set_write_timeout(Some(TRANSFER_TIMEOUT))?;

    let mut head = [0; HEAD_BYTES];
    // Both were just checked against limits far below 2^32.
    head[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    head[4..].copy_from_slice(&(descriptors.len() as u32).to_le_bytes());
    let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(|descriptor| descriptor.fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Error::TooLarge { what: "descriptors", given: fds.len(), max: DESCRIPTORS_MAX });
    }
    let sent = retry(|| sendmsg(socket, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL))?;
    let mut socket = socket;
    socket.write_all(&head[sent..])?;
    socket.write_all(&bytes)?;
    Ok(())
}

/// Receives one message. Descriptors keep the order in which they were sent.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> Result<(T, Vec<Descriptor>), Error> {
    socket.set_read_timeout(Some(TRANSFER_TIMEOUT))?;
    let mut head = [0; HEAD_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry(|| recvmsg(socket, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    // Taken at once, so that they are closed whatever turns out to be wrong.
    let mut fds: Vec<OwnedFd> = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = part {
            fds.extend(passed);
        }
    }
    if message.bytes == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let mut socket = socket;
    socket.read_exact(&mut head[message.bytes..])?;
    let [length, count] = [&head[..4], &head[4..]]
        .map(|half| half.iter().rev().fold(0usize, |value, byte| (value << 8) | usize::from(*byte)));
    within("bytes", length, BODY_BYTES_MAX)?;
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes)?;
    let incoming: Incoming<T> = serde_json::from_slice(&bytes)?;
    let whole = !message.flags.contains(ReturnFlags::CTRUNC);
    if !whole || fds.len() != count || incoming.names.len() != count {
        return Err(Error::Descriptors { announced: count, received: fds.len() });
    }
    let descriptors = incoming.names.into_iter().zip(fds).map(|(name, fd)| Descriptor { name, fd }).collect();
    Ok((incoming.body, descriptors))
}

fn within(what: &'static str, given: usize, max: usize) -> Result<(), Error> {
    if given <= max { Ok(()) } else { Err(Error::TooLarge { what, given, max }) }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    rustix::io::retry_on_intr(&mut call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd};
    use std::{fs::File, os::unix::fs::FileExt};

    fn file(content: &str) -> OwnedFd {
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap());
        file.write_all_at(content.as_bytes(), 0).unwrap();
        file.into()
    }

    fn named(count: usize) -> Vec<Descriptor> {
        (0..count).map(|n| Descriptor { name: format!("d.{n}"), fd: file(&n.to_string()) }).collect()
    }

    #[test]
    fn body_and_descriptors_arrive_in_order_and_close_on_exec() {
        let (left, right) = UnixStream::pair().unwrap();
        for count in [0, 1, DESCRIPTORS_MAX] {
            send(&left, &format!("{count} of them"), &named(count)).unwrap();
            let (body, descriptors): (String, _) = receive(&right).unwrap();
            assert_eq!(body, format!("{count} of them"));
            assert_eq!(descriptors.len(), count);
            for (n, descriptor) in descriptors.into_iter().enumerate() {
                assert_eq!(descriptor.name, format!("d.{n}"));
                assert!(fcntl_getfd(&descriptor.fd).unwrap().contains(FdFlags::CLOEXEC));
                let mut content = String::new();
                File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&descriptor.fd)))
                    .unwrap()
                    .read_to_string(&mut content)
                    .unwrap();
                assert_eq!(content, n.to_string());
            }
        }
    }

    #[test]
    fn a_body_larger_than_the_socket_holds_arrives() {
        let (left, right) = UnixStream::pair().unwrap();
        let long = "x".repeat(2 * 1024 * 1024);
        let sent = long.clone();
        let sender = std::thread::spawn(move || send(&left, &sent, &named(3)));
        let (body, descriptors): (String, _) = receive(&right).unwrap();
        assert!(body == long && descriptors.len() == 3);
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn limits_hold_on_both_ends() {
        let (left, right) = UnixStream::pair().unwrap();
        let error = send(&left, &"x".repeat(BODY_BYTES_MAX), &[]).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "bytes", .. }), "{error}");
        let error = send(&left, &(), &named(DESCRIPTORS_MAX + 1)).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "descriptors", .. }), "{error}");
        (&left).write_all(&[255; HEAD_BYTES]).unwrap();
        let error = receive::<String>(&right).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "bytes", .. }), "{error}");
    }

    #[test]
    fn announced_descriptors_that_do_not_arrive_are_an_error() {
        let (left, right) = UnixStream::pair().unwrap();
        let body = br#"{"names":["a"],"body":null}"#;
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(body);
        (&left).write_all(&bytes).unwrap();
        let error = receive::<()>(&right).unwrap_err();
        assert!(matches!(error, Error::Descriptors { announced: 1, received: 0 }), "{error}");
    }

    #[test]
    fn an_end_that_went_away_is_an_error() {
        let (left, right) = UnixStream::pair().unwrap();
        drop(left);
        assert!(matches!(receive::<()>(&right).unwrap_err(), Error::Io(_)));
    }
}
