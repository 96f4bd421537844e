//! A log as the bytes of its batches: for readers of all of it.

use bytes::{Bytes, BytesMut};
use holm_api::{LOG_BATCHES, batches};
use holm_domain::{
    OrgId, RunId,
    log::Batch,
    run::{Run, RunState},
};
use holm_store::Segment;

use super::{damaged, read_on, readable};
use crate::{
    app::App,
    http::follow::{Source, Step},
    problem::Failure,
};

/// How many bytes of batches one look reads.
const READ_BYTES: usize = 256 * 1024;

/// A log that is read from a position on.
#[derive(Debug)]
pub struct BatchSource {
    org: OrgId,
    run: RunId,
    after: u64,
    /// Up to which sequence is read; nothing where the log is followed to its end.
    upto: Option<u64>,
}

impl BatchSource {
    /// Reads the log of `run` after the sequence `after`, up to `upto` or to its end.
    pub fn new(org: OrgId, run: RunId, after: u64, upto: Option<u64>) -> Self {
        Self { org, run, after, upto }
    }

    fn end(&self) -> Step {
        Step::End(batches::end(self.after))
    }

    fn end_of(&self, run: Run) -> Result<Step, Failure> {
        batches::end_of(&run.into(), self.after).map(Step::End).map_err(Failure::internal)
    }
}

impl Source for BatchSource {
    const MEDIA_TYPE: &'static str = LOG_BATCHES;
    const ALIVE: &'static [u8] = batches::ALIVE;

    async fn step(&mut self, app: &App) -> Result<Step, Failure> {
        if self.upto.is_some_and(|upto| self.after >= upto) {
            return Ok(self.end());
        }
        // The state first: nothing is appended once a run has ended, so what is read afterwards is all of it.
        let run = readable(app, self.org, self.run).await?;
        let segments = read_on(app, &run, self.after, READ_BYTES).await?;
        let Some(last) = segments.last() else {
            return match run.state {
                RunState::Ended => self.end_of(run),
                _ if self.upto.is_some() => Ok(self.end()),
                _ => Ok(Step::Quiet),
            };
        };
        let (after, last_seq) = (self.after, last.last_seq);
        self.after = last_seq;
        joined(segments, after).map(Step::New).map_err(|error| damaged(self.run, error))
    }
}

/// The batches with entries after `after`, one after the other.
fn joined(segments: Vec<Segment>, after: u64) -> Result<Bytes, holm_domain::log::BatchError> {
    let mut pieces: Vec<Bytes> = segments.into_iter().map(|segment| segment.bytes).collect();
    if let Some(first) = pieces.first_mut() {
        while !first.is_empty() {
            let (batch, rest) = Batch::parse(first)?;
            if batch.last_seq() > after {
                break;
            }
            *first = first.slice_ref(rest);
        }
    }
    if let [one] = pieces.as_mut_slice() {
        return Ok(std::mem::take(one));
    }
    let mut bytes = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use crate::config::ServeLimits;

    #[test]
    fn every_run_that_can_be_made_can_be_told_at_the_end_of_its_log() {
        let made_by = ServeLimits::default().body_bytes_max;
        assert!(holm_api::batches::RUN_BYTES_MAX >= 2 * made_by);
    }
}
