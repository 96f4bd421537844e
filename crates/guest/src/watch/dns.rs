//! The name server of a sandbox that reaches nothing: it answers every question with REFUSED, at once.

use std::{io, os::fd::BorrowedFd};

use holm_wire::dns::{QUESTION_BYTES_MAX, Question, Reply};
use rustix::net::{RecvFlags, SendFlags, recvfrom, sendto};

use super::{Destination, Source};
use crate::names;

/// Takes the port.
pub(super) fn source() -> io::Result<Source> {
    Ok(Source { socket: crate::sys::watched(names::socket()?)?, look: answer })
}

fn answer(socket: BorrowedFd<'_>) -> io::Result<Option<Destination>> {
    let mut question = [0; QUESTION_BYTES_MAX];
    let (count, _, from) = recvfrom(socket, &mut question[..], RecvFlags::DONTWAIT)?;
    let (Some(question), Some(from)) = (Question::parse(&question[..count]), from) else { return Ok(None) };
    let host = question.name.clone();
    // An asker that is gone already gets none.
    let _ = sendto(socket, &question.answer(Reply::Refused), SendFlags::DONTWAIT, &from);
    Ok(Some(Destination { host, port: 0, protocol: "dns" }))
}
