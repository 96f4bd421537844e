//! Output on its way from the spool to the store.
//!
//! The server says what it has, and it is believed: an answer that is ahead makes us skip, one that is behind makes us go
//! back. What always holds: an entry is acknowledged to the shim only once the server said that it is stored (SPEC S1).

use std::{path::Path, time::Duration};

use bytes::Bytes;
use holm_shim::spool::reader::{self, Chunk, Reader};
use tokio::time::Instant;

use super::spawn_blocking;
use crate::control::ControlError;

/// How much one request carries, in bytes; a batch that is larger goes alone.
pub(crate) const REQUEST_BYTES: usize = 2 * 1024 * 1024;
/// How soon a request that did not carry so much, in bytes, is followed by another: each is a transaction.
const GATHERED_BYTES: usize = REQUEST_BYTES / 2;
const GATHERS_FOR: Duration = Duration::from_millis(40);
/// How often in a row the server may send us elsewhere before we give up.
const SEEKS_MAX: u32 = 16;

/// Why the output cannot be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Loss {
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] reader::Error),
    /// The server lacks entries that were deleted here because it had acknowledged them, or it sends us in circles.
    #[error("the store and the spool do not fit together at sequence {at}")]
    Mismatch {
        /// Where we were.
        at: u64,
    },
    /// The server will not have it.
    #[error(transparent)]
    Control(ControlError),
}

/// Reads a spool in the order in which the server wants it.
#[derive(Debug)]
pub(crate) struct LogSource {
    reader: Option<Reader>,
    next_seq: u64,
    seeks: u32,
    /// Whether the server has answered: before, the start of the spool is taken for what it lacks.
    is_aligned: bool,
    /// When the last piece was read, and its length in bytes.
    last: Option<(Instant, usize)>,
}

impl LogSource {
    /// The spool in the folder `dir`; its first entry has, or had, the sequence `first_seq`.
    pub(crate) fn new(dir: &Path, first_seq: u64) -> Self {
        Self { reader: Some(Reader::new(dir, first_seq)), next_seq: first_seq, seeks: 0, is_aligned: false, last: None }
    }

    /// The sequence of the next entry to be sent: all before it are stored.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether anything was sent.
    pub(crate) fn has_sent(&self) -> bool {
        self.is_aligned
    }

    /// Before when nothing is worth sending, unless the output has ended.
    pub(crate) fn due(&self) -> Option<Instant> {
        let (at, _) = self.last.filter(|(_, length)| *length < GATHERED_BYTES)?;
        Some(at + GATHERS_FOR)
    }

    /// Whether more lies in the spool, which goes up to the sequence `told`: a piece ends with the file in which it lies, too.
    /// Where the last look found nothing, what is told was acknowledged to an earlier agent.
    pub(crate) fn has_more(&self, told: u64) -> bool {
        self.last.is_some() && self.next_seq < told
    }

    /// What is to be sent next; nothing if there is nothing new.
    pub(crate) async fn read(&mut self) -> Result<Option<(u64, u64, Bytes)>, Loss> {
        let Some(mut reader) = self.reader.take() else { return Err(Loss::Mismatch { at: self.next_seq }) };
        let (wanted, is_aligned) = (self.next_seq, self.is_aligned);
        let task = spawn_blocking(move || {
            reader.seek(wanted);
            let chunk = match reader.read(REQUEST_BYTES) {
                // What lies before was acknowledged to an earlier agent, and is deleted.
                Err(reader::Error::Gap { found, .. }) if !is_aligned && found > wanted => {
                    reader.seek(found);
                    reader.read(REQUEST_BYTES)
                }
                result => result,
            };
            (reader, chunk)
        });
        let (reader, chunk) = task.await.map_err(|error| reader::Error::Io(std::io::Error::other(error)))?;
        self.reader = Some(reader);
        let Chunk { bytes, first_seq, next_seq } = chunk?;
        self.last = (!bytes.is_empty()).then(|| (Instant::now(), bytes.len()));
        Ok((!bytes.is_empty()).then(|| (first_seq, next_seq, Bytes::from(bytes))))
    }

    /// Takes in what the server answered to the entries from `first_seq` on.
    pub(crate) fn answered(&mut self, first_seq: u64, answer: Result<u64, ControlError>) -> Result<(), Loss> {
        match answer {
            Ok(next_seq) if next_seq > first_seq => self.seeks = 0,
            Ok(_) | Err(ControlError::LogGap { next_seq: Some(_) }) if self.seeks < SEEKS_MAX => self.seeks += 1,
            Ok(_) | Err(ControlError::LogGap { .. }) => return Err(Loss::Mismatch { at: first_seq }),
            Err(error) => return Err(Loss::Control(error)),
        }
        self.is_aligned = true;
        if let Ok(next_seq) | Err(ControlError::LogGap { next_seq: Some(next_seq) }) = answer {
            self.next_seq = next_seq;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spool_batch;

    fn gap(next_seq: Option<u64>) -> Result<u64, ControlError> {
        Err(ControlError::LogGap { next_seq })
    }

    #[tokio::test]
    async fn the_server_decides_where_to_go_on() {
        let temp = tempfile::tempdir().unwrap();
        spool_batch(temp.path(), 1, 1, &["a\n", "b\n"]);
        spool_batch(temp.path(), 1, 3, &["c\n"]);
        let mut source = LogSource::new(temp.path(), 1);
        let (first, next, _) = source.read().await.unwrap().unwrap();
        assert_eq!((first, next), (1, 4));
        source.answered(first, gap(Some(3))).unwrap();
        let (first, next, bytes) = source.read().await.unwrap().unwrap();
        assert_eq!((first, next), (3, 4), "skipped forward");
        assert_eq!(holm_domain::log::parse_all(&bytes).unwrap().len(), 1);
        source.answered(first, Ok(4)).unwrap();
        assert!(source.read().await.unwrap().is_none());
        source.answered(4, gap(Some(1))).unwrap();
        assert_eq!(source.read().await.unwrap().unwrap().0, 1, "went back");
    }

    #[tokio::test]
    async fn a_piece_that_ends_with_its_file_is_not_all() {
        let temp = tempfile::tempdir().unwrap();
        spool_batch(temp.path(), 1, 1, &["a\n"]);
        spool_batch(temp.path(), 2, 2, &["b\n"]);
        let mut source = LogSource::new(temp.path(), 1);
        assert!(!source.has_more(3), "nothing was looked at");
        for next in [2, 3] {
            let (first, ..) = source.read().await.unwrap().unwrap();
            source.answered(first, Ok(next)).unwrap();
            assert_eq!(source.has_more(3), next == 2);
        }
        assert!(source.read().await.unwrap().is_none());
        assert!(!source.has_more(9), "acknowledged to an earlier agent");
    }

    #[tokio::test]
    async fn a_spool_whose_start_was_acknowledged_to_an_earlier_agent_goes_on() {
        let temp = tempfile::tempdir().unwrap();
        spool_batch(temp.path(), 10, 10, &["j\n"]);
        let mut source = LogSource::new(temp.path(), 1);
        let (first, next, _) = source.read().await.unwrap().unwrap();
        assert_eq!((first, next), (10, 11));
        source.answered(first, gap(Some(4))).unwrap();
        assert!(matches!(source.read().await, Err(Loss::Spool(_))), "what the server lacks is not there");
    }

    #[test]
    fn an_answer_that_leads_nowhere_is_not_followed_for_ever() {
        for answer in [gap(Some(5)), Ok(5)] {
            let mut source = LogSource::new(Path::new("/nowhere"), 5);
            for _ in 0..SEEKS_MAX {
                source.answered(5, answer.clone()).unwrap();
            }
            assert!(matches!(source.answered(5, answer), Err(Loss::Mismatch { at: 5 })));
        }
        let mut source = LogSource::new(Path::new("/nowhere"), 5);
        assert!(matches!(source.answered(5, gap(None)), Err(Loss::Mismatch { .. })));
        let refused = Err(ControlError::StaleFence);
        assert!(matches!(source.answered(5, refused), Err(Loss::Control(ControlError::StaleFence))));
    }
}
