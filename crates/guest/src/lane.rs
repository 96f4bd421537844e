//! The lanes as asynchronous byte channels, and the gate that silences one between two epochs.
//!
//! A lane outlives the HTTP/2 connections that run over it: each epoch gets a [`LaneIo`] with a gate of its own. Once the
//! gate's reads are closed, not a byte of the next epoch's handshake can vanish into the old connection; once its writes
//! are closed, nothing of the old one can follow.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    os::fd::OwnedFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

/// One lane, for as long as the guest lives.
#[derive(Clone)]
pub struct Lane {
    fd: Rc<AsyncFd<OwnedFd>>,
}

/// What an epoch may still do on a lane.
#[derive(Debug)]
pub struct Gate {
    reads: Cell<bool>,
    writes: Cell<bool>,
    write_blocked: Cell<bool>,
}

/// A lane as one epoch uses it.
pub struct LaneIo {
    lane: Lane,
    gate: Rc<Gate>,
}

impl Lane {
    /// Takes over a descriptor: a socket or a virtio port.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { fd: Rc::new(crate::sys::watched(fd)?) })
    }

    /// The lane for a new epoch, and the gate to end it with.
    pub fn open(&self) -> (LaneIo, Rc<Gate>) {
        let gate = Rc::new(Gate { reads: Cell::new(true), writes: Cell::new(true), write_blocked: Cell::new(false) });
        (LaneIo { lane: self.clone(), gate: gate.clone() }, gate)
    }
}

impl Gate {
    /// No byte is read through this gate from now on.
    pub fn close_reads(&self) {
        self.reads.set(false);
    }

    /// No byte passes in either direction from now on.
    pub fn close(&self) {
        self.reads.set(false);
        self.writes.set(false);
    }

    /// Whether the last write had to wait; asking forgets it.
    pub fn take_write_blocked(&self) -> bool {
        self.write_blocked.replace(false)
    }
}

impl LaneIo {
    fn poll_write_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&AsyncFd<OwnedFd>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if !self.gate.writes.get() {
                return Poll::Pending;
            }
            let Poll::Ready(ready) = self.lane.fd.poll_write_ready(context) else {
                self.gate.write_blocked.set(true);
                return Poll::Pending;
            };
            match ready?.try_io(&write) {
                Ok(Ok(count)) => return Poll::Ready(Ok(count)),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncRead for LaneIo {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.gate.reads.get() {
                return Poll::Pending;
            }
            let mut ready = std::task::ready!(self.lane.fd.poll_read_ready(context))?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd, buffer.initialize_unfilled())?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for LaneIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |fd| Ok(rustix::io::write(fd, data)?))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |fd| Ok(rustix::io::writev(fd, pieces)?))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The lane goes on with the next epoch.
        Poll::Ready(Ok(()))
    }
}
