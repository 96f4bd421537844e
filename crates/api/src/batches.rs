//! A log as a stream of its batches, as bytes: nothing is taken apart on the way.
//!
//! The stream is a row of frames: a batch ([`holm_domain::log`]); `HLBK`, which says that the server is alive; `HLBE`, which
//! says that everything that was asked for has been sent, up to a sequence (8 bytes, little-endian), with the run as it
//! ended (a length of 4 bytes, and as much JSON; nothing if it goes on). A stream that ends without that was cut off. The
//! first batch may begin before, and the last may go on behind, what was asked for.

use bytes::{Buf as _, Bytes, BytesMut};
use holm_domain::log::{Batch, BatchError, Entry, HEAD_BYTES};

use crate::runs::RunView;

/// Says that the server is alive.
pub const ALIVE: &[u8] = b"HLBK";
const END: &[u8] = b"HLBE";
const END_HEAD_BYTES: usize = 16;
/// The longest description of a run that a reader takes, in bytes; far more than the limits of its parts allow.
const RUN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The last frame of a stream that was sent up to the sequence `last_seq`, with the run if it has ended.
pub fn end(last_seq: u64, run: Option<&RunView>) -> serde_json::Result<Bytes> {
    let run = run.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    // A length that does not fit is one that no reader takes.
    let length = u32::try_from(run.len()).unwrap_or(u32::MAX);
    Ok([END, &last_seq.to_le_bytes(), &length.to_le_bytes(), &run].concat().into())
}

/// Why bytes are no stream of frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A batch is not as it was made.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The description of the run at the end is too long.
    #[error("the run at the end of the log has {0} bytes; at most {RUN_BYTES_MAX} are read")]
    RunTooLong(usize),
    /// The description of the run at the end is no run.
    #[error("the run at the end of the log: {0}")]
    Run(#[from] serde_json::Error),
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
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// A batch.
    Batch(LogBatch),
    /// The server is alive.
    Alive,
    /// Everything that was asked for was sent, up to this sequence; the run, if it has ended.
    End(u64, Option<Box<RunView>>),
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
    pub fn pull(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.starts_with(ALIVE) {
            self.buffer.advance(ALIVE.len());
            return Ok(Some(Frame::Alive));
        }
        if self.buffer.starts_with(END) {
            return self.pull_end();
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

    fn pull_end(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((mut head, rest)) = self.buffer.split_at_checked(END_HEAD_BYTES) else { return Ok(None) };
        head.advance(END.len());
        let (seq, length) = (head.get_u64_le(), head.get_u32_le() as usize);
        if length > RUN_BYTES_MAX {
            return Err(FrameError::RunTooLong(length));
        }
        let Some(run) = rest.get(..length) else { return Ok(None) };
        let run = (length > 0).then(|| serde_json::from_slice(run)).transpose()?;
        self.buffer.advance(END_HEAD_BYTES + length);
        Ok(Some(Frame::End(seq, run)))
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
            Frame::End(seq, run) => format!("end {seq} {}", run.is_some()),
            Frame::Batch(batch) => batch.entries().map(|entry| entry.seq.to_string()).collect::<Vec<_>>().join(","),
        }
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(cuts in prop::collection::vec(0usize..200, 0..12)) {
            let stream = [&batch(1, 3), ALIVE, &batch(4, 1), ALIVE, ALIVE, &end(4, None).unwrap()[..]].concat();
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
            prop_assert_eq!(seen, ["1,2,3", "alive", "4", "alive", "alive", "end 4 false"]);
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
        assert!(matches!(reader.pull(), Err(FrameError::Batch(BatchError::Checksum))));
    }
}
