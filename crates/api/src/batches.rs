//! A log as a stream of its batches, as bytes: nothing is taken apart on the way.
//!
//! The stream is a row of frames: a batch ([`holm_domain::log`]); `HLBK`, which says that the server is alive; `HLBE` and
//! a sequence (8 bytes, little-endian), which says that everything that was asked for has been sent, up to that sequence.
//! A stream that ends without that was cut off. The first batch may begin before, and the last may go on behind, what was
//! asked for.

use bytes::{Buf as _, Bytes, BytesMut};
use holm_domain::log::{Batch, BatchError, Entry, HEAD_BYTES};

/// Says that the server is alive.
pub const ALIVE: &[u8] = b"HLBK";
const END: &[u8] = b"HLBE";
const END_BYTES: usize = 12;

/// The last frame of a stream that was sent up to the sequence `last_seq`.
pub fn end(last_seq: u64) -> Bytes {
    [END, &last_seq.to_le_bytes()].concat().into()
}

/// A whole batch that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// Only entries with a larger sequence are of interest.
    after: u64,
    first_seq: u64,
    last_seq: u64,
    bytes: Bytes,
}

impl LogBatch {
    /// The sequence of its first entry.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The sequence of its last entry.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Its entries after those that the reader has seen, in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        // It was checked when it was made.
        let batch = Batch::parse(&self.bytes).ok();
        batch.into_iter().flat_map(|(batch, _)| batch.entries()).filter(|entry| entry.seq > self.after)
    }

    /// The same without the entries up to `after`.
    pub fn behind(self, after: u64) -> Self {
        Self { after: self.after.max(after), ..self }
    }
}

/// What a stream is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A batch.
    Batch(LogBatch),
    /// The server is alive.
    Alive,
    /// Everything that was asked for was sent, up to this sequence.
    End(u64),
}

/// Reads frames from bytes as they come; what is held is one batch and the piece pushed last.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    /// Takes a piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole frame, if what was pushed has one.
    pub fn pull(&mut self) -> Result<Option<Frame>, BatchError> {
        if self.buffer.starts_with(ALIVE) {
            self.buffer.advance(ALIVE.len());
            return Ok(Some(Frame::Alive));
        }
        if self.buffer.starts_with(END) {
            let Some(frame) = self.buffer.first_chunk::<END_BYTES>() else { return Ok(None) };
            let seq = frame.last_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            self.buffer.advance(END_BYTES);
            return Ok(Some(Frame::End(seq)));
        }
        if self.buffer.len() < HEAD_BYTES {
            return Ok(None);
        }
        let length = Batch::peek_len(&self.buffer)?;
        if self.buffer.len() < length {
            return Ok(None);
        }
        let bytes = self.buffer.split_to(length).freeze();
        let (batch, _) = Batch::parse(&bytes)?;
        let (first_seq, last_seq) = (batch.first_seq(), batch.last_seq());
        Ok(Some(Frame::Batch(LogBatch { after: 0, first_seq, last_seq, bytes })))
    }
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        UnixMicros,
        log::{BatchBuilder, Stream},
    };
    use proptest::prelude::*;

    use super::*;

    fn batch(first: u64, count: u64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(first);
        for seq in first..first + count {
            assert!(builder.push(UnixMicros(1), Stream::Stdout, false, format!("{seq}\n").as_bytes()));
        }
        let mut bytes = Vec::new();
        builder.finish(|made| std::io::Write::write_all(&mut bytes, made)).unwrap();
        bytes
    }

    fn told(frame: &Frame) -> String {
        match frame {
            Frame::Alive => "alive".to_owned(),
            Frame::End(seq) => format!("end {seq}"),
            Frame::Batch(batch) => batch.entries().map(|entry| entry.seq.to_string()).collect::<Vec<_>>().join(","),
        }
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(cuts in prop::collection::vec(0usize..200, 0..12)) {
            let stream = [&batch(1, 3), ALIVE, &batch(4, 1), ALIVE, ALIVE, &end(4)[..]].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let (mut reader, mut seen) = (FrameReader::default(), Vec::new());
            for pair in cuts.windows(2) {
                reader.push(&stream[pair[0]..pair[1]]);
                while let Some(frame) = reader.pull().map_err(|error| TestCaseError::fail(error.to_string()))? {
                    seen.push(told(&frame));
                }
            }
            prop_assert_eq!(seen, ["1,2,3", "alive", "4", "alive", "alive", "end 4"]);
        }

        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>) {
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.pull() {}
        }
    }

    #[test]
    fn what_was_seen_is_left_out_and_what_was_changed_is_refused() {
        let mut reader = FrameReader::default();
        reader.push(&batch(5, 4));
        let Ok(Some(Frame::Batch(read))) = reader.pull() else { panic!("a batch") };
        assert_eq!(told(&Frame::Batch(read.behind(6))), "7,8");
        let mut changed = batch(1, 1);
        *changed.last_mut().unwrap() ^= 1;
        reader.push(&changed);
        assert_eq!(reader.pull(), Err(BatchError::Checksum));
    }
}
