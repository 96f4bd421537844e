//! Bodies: read whole with a limit, or streamed with flow control in both directions.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::Error;

/// How many bytes a pump moves before it lets other tasks run; without a bound one bulk copy starves small requests.
pub const PUMP_BYTES_MAX: usize = 128 * 1024;

/// A body that comes in.
pub struct Incoming {
    stream: RecvStream,
    unreleased_bytes: usize,
    taken_since_yield: usize,
}

impl Incoming {
    /// Takes over a body as h2 delivers it.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, unreleased_bytes: 0, taken_since_yield: 0 }
    }

    /// The next piece, or nothing at the end. Asking for it says that the piece before has been dealt with: only then is its
    /// credit given back to the sender.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.taken_since_yield >= PUMP_BYTES_MAX {
            self.taken_since_yield = 0;
            tokio::task::yield_now().await;
        }
        loop {
            let released = std::mem::take(&mut self.unreleased_bytes);
            if released > 0 && !self.stream.is_end_stream() {
                self.stream.flow_control().release_capacity(released)?;
            }
            match self.stream.data().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error.into()),
                // Empty frames are legal and mean nothing.
                Some(Ok(data)) if data.is_empty() => tokio::task::yield_now().await,
                Some(Ok(data)) => {
                    self.unreleased_bytes = data.len();
                    self.taken_since_yield += data.len();
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads a body to its end, unless it is larger than `bytes_max`.
pub async fn read_whole(stream: RecvStream, bytes_max: usize) -> Result<Bytes, Error> {
    let mut incoming = Incoming::new(stream);
    let mut whole = Vec::new();
    while let Some(piece) = incoming.next().await? {
        if whole.len() + piece.len() > bytes_max {
            return Err(Error::TooLarge(bytes_max));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

/// A body that goes out. Dropped before [`Outgoing::finish`], it is reset, so that the reader cannot take it for whole.
pub struct Outgoing {
    stream: SendStream<Bytes>,
    finished: bool,
}

impl Outgoing {
    /// Takes over a body as h2 wants it.
    pub fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, finished: false }
    }

    /// A body that was ended with its head.
    pub(super) fn ended(stream: SendStream<Bytes>) -> Self {
        Self { stream, finished: true }
    }

    /// Hands over a piece, as fast as the reader takes it.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), Error> {
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            let granted = std::future::poll_fn(|context| self.stream.poll_capacity(context)).await;
            let granted = granted.ok_or(Error::BodyRefused)??;
            if granted > 0 {
                let piece = data.split_to(granted.min(data.len()));
                self.stream.send_data(piece, false)?;
            }
        }
        Ok(())
    }

    /// Ends the body.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.finished = true;
        self.stream.reserve_capacity(0);
        Ok(self.stream.send_data(Bytes::new(), true)?)
    }

    /// Completes when the other side has reset the stream: it wants no more.
    pub async fn refused(&mut self) {
        // An error means that the connection is gone, which is a refusal as well.
        let _ = std::future::poll_fn(|context| self.stream.poll_reset(context)).await;
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
