//! A log as a stream of its batches, as bytes: nothing is taken apart on the way.
//!
//! The stream is a row of frames: a batch ([`holm_domain::log`]); `HLBK`, which says that the server is alive; `HLBE`, which
//! says that everything that was asked for has been sent, up to a sequence (8 bytes, little-endian); or `HLBR`, which says
//! the same of the whole log of a run that has ended, and then tells the run (a length of 4 bytes, and as much JSON). A
//! stream without one of the two was cut off. The first batch may begin before, and the last may go on behind, what was
//! asked for.

use bytes::{Buf as _, Bytes, BytesMut};
use holm_domain::log::{Batch, BatchError, Entries, Entry, HEAD_BYTES};

use crate::runs::RunView;

/// Says that the server is alive.
pub const ALIVE: &[u8] = b"HLBK";
const END: &[u8] = b"HLBE";
const END_BYTES: usize = 12;
const END_OF_RUN: &[u8] = b"HLBR";
const END_OF_RUN_HEAD_BYTES: usize = 16;
/// The longest description of a run that a reader takes, in bytes: twice what a request may have by which one is made.
pub const RUN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The last frame of a stream that was sent up to the sequence `last_seq`.
pub fn end(last_seq: u64) -> Bytes {
    [END, &last_seq.to_le_bytes()].concat().into()
}

/// The last frame of the whole log of a run that has ended.
pub fn end_of(run: &RunView, last_seq: u64) -> serde_json::Result<Bytes> {
    let run = serde_json::to_vec(run)?;
    // A length that does not fit is one that no reader takes.
    let length = u32::try_from(run.len()).unwrap_or(u32::MAX);
    Ok([END_OF_RUN, &last_seq.to_le_bytes(), &length.to_le_bytes(), &run].concat().into())
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

/// A whole batch that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// Only entries with a larger sequence are of interest.
    after: u64,
    entries: Entries<'static>,
}

impl LogBatch {
    /// The sequence of its first entry.
    pub fn first_seq(&self) -> u64 {
        self.entries.first_seq()
    }

    /// The sequence of its last entry.
    pub fn last_seq(&self) -> u64 {
        self.entries.last_seq()
    }

    /// Its entries after those that the reader has seen, in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.entries.iter().filter(|entry| entry.seq > self.after)
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
    /// Everything that was asked for was sent, up to this sequence; the run, if that is told.
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
            let Some(frame) = self.buffer.first_chunk::<END_BYTES>() else { return Ok(None) };
            let seq = frame.last_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            self.buffer.advance(END_BYTES);
            return Ok(Some(Frame::End(seq, None)));
        }
        if self.buffer.starts_with(END_OF_RUN) {
            return self.pull_end_of_run();
        }
        if self.buffer.len() < HEAD_BYTES {
            return Ok(None);
        }
        let length = Batch::peek_len(&self.buffer)?;
        if self.buffer.len() < length {
            return Ok(None);
        }
        let entries = Batch::parse(&self.buffer)?.0.read()?.into_owned();
        self.buffer.advance(length);
        Ok(Some(Frame::Batch(LogBatch { after: 0, entries })))
    }

    fn pull_end_of_run(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((mut head, rest)) = self.buffer.split_at_checked(END_OF_RUN_HEAD_BYTES) else { return Ok(None) };
        head.advance(END_OF_RUN.len());
        let (seq, length) = (head.get_u64_le(), head.get_u32_le() as usize);
        if length > RUN_BYTES_MAX {
            return Err(FrameError::RunTooLong(length));
        }
        let Some(run) = rest.get(..length) else { return Ok(None) };
        let run = serde_json::from_slice(run)?;
        self.buffer.advance(END_OF_RUN_HEAD_BYTES + length);
        Ok(Some(Frame::End(seq, Some(run))))
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

    fn ended_run() -> RunView {
        let ids = ["run", "org", "prj"].map(|kind| format!("{kind}_00000000000000000000000001"));
        let run = serde_json::json!({
            "id": ids[0], "org": ids[1], "project": ids[2], "state": "ended", "fence": 1, "attempt": 1, "queued_at": 1,
            "ended_at": 2, "outcome": {"kind": "succeeded", "exit": {"code": 0}},
            "spec": {"root": {"kind": "host"}, "argv": ["true"]},
        });
        serde_json::from_value(run).unwrap()
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
        fn cuts_make_no_difference(cuts in prop::collection::vec(0usize..10_000, 0..12)) {
            let whole = end_of(&ended_run(), 4).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let stream = [&batch(1, 3), ALIVE, &batch(4, 1), ALIVE, &end(4), &whole[..]].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % stream.len()).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let (mut reader, mut seen) = (FrameReader::default(), Vec::new());
            for pair in cuts.windows(2) {
                reader.push(&stream[pair[0]..pair[1]]);
                while let Some(frame) = reader.pull().map_err(|error| TestCaseError::fail(error.to_string()))? {
                    seen.push(told(&frame));
                }
            }
            prop_assert_eq!(seen, ["1,2,3", "alive", "4", "alive", "end 4 false", "end 4 true"]);
        }

        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>) {
            let mut reader = FrameReader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.pull() {}
        }
    }

    #[test]
    fn a_run_that_is_too_long_is_refused_before_it_is_read() {
        let mut reader = FrameReader::default();
        reader.push(&[END_OF_RUN, &4u64.to_le_bytes(), &(RUN_BYTES_MAX as u32 + 1).to_le_bytes()].concat());
        assert!(matches!(reader.pull(), Err(FrameError::RunTooLong(_))));
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
