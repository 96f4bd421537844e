//! Reads the output of one process to its end, whatever breaks in between.
//!
//! What always holds: the sink gets each byte once and in order; a stream that broke is taken up again at the offset that
//! was reached, also over another connection or in a new epoch; the guest is told to forget only what the sink took, and
//! is read no faster than the sink takes, so that output which nobody takes stays where it is made; a guest that makes no
//! progress over [`BREAKS_MAX`] streams is lost.

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use holm_wire::{
    guest_api::{FrameDecoder, OutputFrame, RING_BYTES},
    http2,
};

use super::{Guest, Lost};

/// How often a stream may break without a byte of progress.
pub const BREAKS_MAX: u32 = 3;
/// How much output is taken before the guest is told that it may forget it, in bytes: often enough that its ring is never
/// full of what was taken already.
const ACK_EVERY_BYTES: u64 = RING_BYTES as u64 / 4;

/// Why the output could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// The guest cannot be worked with any further.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The sink does not take any more.
    #[error("{0}")]
    Sink(E),
}

/// How far the output of a process was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    process: u32,
    offset: u64,
    acked: u64,
}

impl Position {
    /// The beginning of the output of a process.
    pub fn start(process: u32) -> Self {
        Self { process, offset: 0, acked: 0 }
    }

    /// The process whose output it is.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// How many bytes the sink took.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads to the end. It may be called again, with the same guest in a new epoch as well. A sink that fails has taken what
    /// it was given; one that is dropped while it waits must have taken nothing.
    pub async fn read_to_end<E>(
        &mut self,
        guest: &Guest,
        mut sink: impl AsyncFnMut(OutputFrame) -> Result<(), E>,
    ) -> Result<(), Error<E>> {
        let mut breaks = 0;
        loop {
            let before = self.offset;
            let broken = match self.read_stream(guest, &mut sink).await? {
                None => return Ok(()),
                Some(broken) => broken,
            };
            breaks = if self.offset > before { 1 } else { breaks + 1 };
            if breaks >= BREAKS_MAX || is_final(&broken) {
                return Err(Lost::new(format!("reading the output: {broken}")).into());
            }
            tracing::debug!(offset = self.offset, %broken, "the output stream broke and is taken up again");
        }
    }

    /// Reads one stream; returns how it broke, or nothing if it ended in order.
    async fn read_stream<E>(
        &mut self,
        guest: &Guest,
        sink: &mut impl AsyncFnMut(OutputFrame) -> Result<(), E>,
    ) -> Result<Option<http2::Error>, Error<E>> {
        let mut incoming = match guest.output_from(self.process, self.offset).await? {
            Ok(incoming) => incoming,
            Err(broken) => return Ok(Some(broken)),
        };
        let mut decoder = FrameDecoder::default();
        let malformed = |error| Lost::new(format!("reading the output: {error}"));
        // At most one at a time; whatever is waited for, it is waited for as well.
        let mut acks = FuturesUnordered::new();
        loop {
            let next = self.acking(&mut acks, incoming.next()).await?;
            let piece = match next {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    decoder.end().map_err(malformed)?;
                    return Ok(None);
                }
                Err(broken) => return Ok(Some(broken)),
            };
            decoder.put(piece);
            while let Some(frame) = decoder.take().map_err(malformed)? {
                let bytes = frame.data.len() as u64;
                let taken = self.acking(&mut acks, sink(frame)).await?;
                self.offset += bytes;
                taken.map_err(Error::Sink)?;
                if self.offset - self.acked >= ACK_EVERY_BYTES && acks.is_empty() {
                    let (process, offset) = (self.process, self.offset);
                    acks.push(async move { guest.ack(process, offset).await.map(|()| offset) });
                }
            }
        }
    }

    /// Waits for something, and meanwhile for acknowledgements; one that fails ends the wait.
    async fn acking<T>(
        &mut self,
        acks: &mut FuturesUnordered<impl Future<Output = Result<u64, Lost>>>,
        awaited: impl Future<Output = T>,
    ) -> Result<T, Lost> {
        tokio::pin!(awaited);
        loop {
            tokio::select! {
                biased;
                Some(acked) = acks.next() => self.acked = acked?,
                done = &mut awaited => return Ok(done),
            }
        }
    }
}

/// A connection that has gone does not come back by asking again, and a refusal is an answer.
fn is_final(broken: &http2::Error) -> bool {
    match broken {
        http2::Error::Protocol(error) => error.is_io() || error.is_go_away() || error.is_library(),
        _ => true,
    }
}
