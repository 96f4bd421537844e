//! What a server sends, watched frame by frame: each stream is answered once, no frame is of a kind that HTTP/2 does not
//! know, and no data is padded.
//!
//! h2 keeps every informational answer (1xx) until somebody asks for it, and has no bound for them. What always holds here:
//! behind the first head of a stream no other is let through but the one that ends it, whether anybody asks or not. What a
//! head says is not looked at. h2 passes over frames of unknown kinds, however many there are, while the buffers in which
//! they came are kept for the data beside them; here the first one breaks the lane. So does the first frame of data that is
//! padded: padding fills such a buffer and takes nothing of the stream's window, for h2 gives it back at once.

use std::{
    collections::BTreeSet,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const FRAME_HEAD_BYTES: usize = 9;
/// Of how many streams it is remembered that they were answered; of more, those that were opened first are forgotten.
const STREAMS_MAX: usize = 1_024;
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
/// The last kind that there is (RFC 9113 §6).
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const PADDED: u8 = 0x8;

/// A lane that breaks when a stream is answered twice, a frame is of an unknown kind, or data is padded.
pub struct OneHead<Io> {
    io: Io,
    frames: Frames,
}

impl<Io> OneHead<Io> {
    pub(super) fn new(io: Io) -> Self {
        Self { io, frames: Frames::default() }
    }
}

/// Why a lane breaks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Breach {
    #[error("stream {0} was answered more than once")]
    AnsweredTwice(u32),
    #[error("a frame is of kind {0:#x}, and the last that there is is {CONTINUATION:#x}")]
    UnknownKind(u8),
    #[error("data of stream {0} is padded")]
    Padded(u32),
}

/// Where in a row of frames the bytes have come to, and what of it counts.
#[derive(Default)]
struct Frames {
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    payload_bytes_left: usize,
    answered: BTreeSet<u32>,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Breach> {
        while !bytes.is_empty() {
            let skipped = self.payload_bytes_left.min(bytes.len());
            self.payload_bytes_left -= skipped;
            let taken = (FRAME_HEAD_BYTES - self.head_bytes).min(bytes.len() - skipped);
            self.head[self.head_bytes..][..taken].copy_from_slice(&bytes[skipped..][..taken]);
            self.head_bytes += taken;
            bytes = &bytes[skipped + taken..];
            if self.head_bytes == FRAME_HEAD_BYTES {
                self.head_bytes = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    /// Takes note of a frame whose head is there (RFC 9113 §4.1).
    fn begin(&mut self) -> Result<(), Breach> {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.payload_bytes_left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let stream = u32::from_be_bytes(stream) & !(1 << 31);
        match kind {
            DATA if flags & PADDED != 0 => return Err(Breach::Padded(stream)),
            RST_STREAM => {
                self.answered.remove(&stream);
            }
            DATA | HEADERS if flags & END_STREAM != 0 => {
                self.answered.remove(&stream);
            }
            HEADERS if !self.answered.insert(stream) => return Err(Breach::AnsweredTwice(stream)),
            _ if kind > CONTINUATION => return Err(Breach::UnknownKind(kind)),
            _ => {}
        }
        if self.answered.len() > STREAMS_MAX {
            self.answered.pop_first();
        }
        Ok(())
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for OneHead<Io> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = into.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(context, into))?;
        let read = &into.filled()[before..];
        Poll::Ready(this.frames.pass(read).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for OneHead<Io> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 0x6;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn pass(row: &[Vec<u8>], piece_bytes: usize) -> Result<(), Breach> {
        let mut frames = Frames::default();
        row.concat().chunks(piece_bytes).try_for_each(|piece| frames.pass(piece))
    }

    #[test]
    fn one_head_and_one_end_pass_wherever_the_bytes_are_cut() {
        let row = [
            frame(HEADERS, 0, 1, b"first"),
            frame(HEADERS, 0, 3, b""),
            // What looks like a head within a payload is none.
            frame(DATA, 0, 1, &frame(HEADERS, 0, 1, b"")),
            frame(HEADERS, END_STREAM, 1, b"trailers"),
            frame(DATA, END_STREAM, 3, b"end"),
            frame(HEADERS, 0, 5, b""),
            frame(RST_STREAM, 0, 5, &[0; 4]),
            frame(HEADERS, END_STREAM, 7, b"all"),
            frame(PING, 0, 0, &[0; 8]),
        ];
        let twice = [&row[..2], &[frame(HEADERS, 0, 3, b"")]].concat();
        for piece_bytes in 1..40 {
            assert_eq!(pass(&row, piece_bytes), Ok(()), "{piece_bytes}");
            assert_eq!(pass(&twice, piece_bytes), Err(Breach::AnsweredTwice(3)), "{piece_bytes}");
        }
    }

    #[test]
    fn a_frame_of_an_unknown_kind_breaks_the_lane() {
        let row = [frame(HEADERS, 0, 1, b"first"), frame(CONTINUATION, 0, 1, b"rest"), frame(0xa, 0, 1, b"junk")];
        for piece_bytes in 1..40 {
            assert_eq!(pass(&row[..2], piece_bytes), Ok(()), "{piece_bytes}");
            assert_eq!(pass(&row, piece_bytes), Err(Breach::UnknownKind(0xa)), "{piece_bytes}");
        }
    }

    #[test]
    fn padded_data_breaks_the_lane_and_a_padded_head_does_not() {
        let row = [frame(HEADERS, PADDED, 1, b"\x01first\0"), frame(DATA, PADDED | END_STREAM, 1, b"\x01x\0")];
        for piece_bytes in 1..40 {
            assert_eq!(pass(&row[..1], piece_bytes), Ok(()), "{piece_bytes}");
            assert_eq!(pass(&row, piece_bytes), Err(Breach::Padded(1)), "{piece_bytes}");
        }
    }

    #[test]
    fn no_more_streams_are_remembered_than_there_is_room_for() {
        let mut frames = Frames::default();
        let streams = 2 * u32::try_from(STREAMS_MAX).unwrap();
        (1..=streams).for_each(|stream| frames.pass(&frame(HEADERS, 0, stream, b"")).unwrap());
        assert_eq!(frames.answered.len(), STREAMS_MAX);
        assert_eq!(frames.pass(&frame(HEADERS, 0, streams, b"")), Err(Breach::AnsweredTwice(streams)));
    }
}
