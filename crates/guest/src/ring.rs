//! The output of one process: what was written and not yet acknowledged, with offsets.
//!
//! Both streams share one count of offsets. The ring never forgets a byte that was not acknowledged; when it is full,
//! [`Ring::room`] is 0 and the process has to wait.

use std::{collections::VecDeque, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};
use holm_wire::guest_api::{FRAME_BYTES_MAX, OutputFrame, OutputStream, RING_BYTES};

/// How often the streams may alternate in a full ring; it bounds what the bookkeeping costs.
const RUNS_MAX: usize = 8 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Ring {
    /// The offset of the first byte that is kept.
    base: u64,
    data: VecDeque<u8>,
    /// Pieces of one stream each, from `base` on.
    runs: VecDeque<(OutputStream, usize)>,
}

impl Ring {
    /// The offset after the last byte.
    pub fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }

    /// Whether `offset` can be read from.
    pub fn holds(&self, offset: u64) -> bool {
        (self.base..=self.end()).contains(&offset)
    }

    /// How many bytes wait to be acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.data.len()
    }

    /// How many bytes may be put in.
    pub fn room(&self) -> usize {
        if self.runs.len() >= RUNS_MAX { 0 } else { RING_BYTES.saturating_sub(self.data.len()) }
    }

    /// Appends what a process wrote; no more than [`Ring::room`].
    pub fn put(&mut self, stream: OutputStream, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        if bytes.is_empty() {
            return;
        }
        self.data.extend(bytes);
        match self.runs.back_mut() {
            Some((last, length)) if *last == stream => *length += bytes.len(),
            _ => self.runs.push_back((stream, bytes.len())),
        }
    }

    /// Forgets what lies below `offset`; says whether the offset is one of this ring.
    pub fn acknowledge(&mut self, offset: u64) -> bool {
        if offset > self.end() {
            return false;
        }
        let mut count = usize::try_from(offset.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.base += count as u64;
        self.data.drain(..count);
        while count > 0 {
            let Some((_, length)) = self.runs.front_mut() else { break };
            let taken = count.min(*length);
            *length -= taken;
            count -= taken;
            if *length == 0 {
                self.runs.pop_front();
            }
        }
        true
    }

    /// The encoded frames from `offset` on, at most about two frames' worth, and the offset after them.
    pub fn frames_from(&self, offset: u64) -> (Bytes, u64) {
        let mut skip = usize::try_from(offset.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let mut at = 0;
        let mut encoded = BytesMut::new();
        let mut next = offset;
        for &(stream, length) in &self.runs {
            let (run_start, run_end) = (at, at + length);
            at = run_end;
            if skip >= run_end {
                continue;
            }
            let start = run_start.max(skip);
            let count = (run_end - start).min(FRAME_BYTES_MAX);
            if let Ok(head) = OutputFrame::head(stream, count) {
                encoded.reserve(head.len() + count);
                encoded.put_slice(&head);
                pieces(&self.data, start..start + count).iter().for_each(|piece| encoded.put_slice(piece));
            }
            next += count as u64;
            skip = start + count;
            if encoded.len() >= FRAME_BYTES_MAX || skip < run_end {
                break;
            }
        }
        (encoded.freeze(), next)
    }
}

/// What of `data` lies in `range`, in at most two pieces.
fn pieces(data: &VecDeque<u8>, Range { start, end }: Range<usize>) -> [&[u8]; 2] {
    let (front, back) = data.as_slices();
    let middle = front.len();
    [
        front.get(start..end.min(middle)).unwrap_or_default(),
        back.get(start.saturating_sub(middle)..end.saturating_sub(middle)).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use holm_wire::guest_api::FrameDecoder;

    use super::*;

    fn collect(ring: &Ring, mut from: u64) -> Vec<(OutputStream, Vec<u8>)> {
        let mut decoder = FrameDecoder::default();
        let mut out = Vec::new();
        loop {
            let (bytes, next) = ring.frames_from(from);
            if next == from {
                assert!(bytes.is_empty());
                return out;
            }
            decoder.put(bytes);
            while let Some(frame) = decoder.take().unwrap() {
                out.push((frame.stream, frame.data.to_vec()));
            }
            from = next;
        }
    }

    #[test]
    fn keeps_order_and_resumes_at_any_offset() {
        let mut ring = Ring::default();
        ring.put(OutputStream::Stdout, b"abc");
        ring.put(OutputStream::Stderr, b"de");
        ring.put(OutputStream::Stdout, b"f");
        assert_eq!(ring.end(), 6);
        assert_eq!(collect(&ring, 0).concat_bytes(), b"abcdef");
        assert!(ring.acknowledge(4));
        assert!(!ring.holds(3));
        assert_eq!(
            collect(&ring, 4),
            vec![(OutputStream::Stderr, b"e".to_vec()), (OutputStream::Stdout, b"f".to_vec())]
        );
        assert!(!ring.acknowledge(7));
        assert!(ring.acknowledge(6));
        assert_eq!(ring.room(), RING_BYTES);
    }

    #[test]
    fn is_full_at_its_limits_and_loses_nothing() {
        let mut ring = Ring::default();
        ring.put(OutputStream::Stdout, &vec![7; RING_BYTES]);
        assert_eq!(ring.room(), 0);
        assert_eq!(collect(&ring, 0).concat_bytes().len(), RING_BYTES);
        assert!(ring.acknowledge(10));
        assert_eq!(ring.room(), 10);

        let mut ring = Ring::default();
        for turn in 0..RUNS_MAX {
            let stream = if turn % 2 == 0 { OutputStream::Stdout } else { OutputStream::Stderr };
            ring.put(stream, b"x");
        }
        assert_eq!(ring.room(), 0, "alternating single bytes are bounded as well");
    }

    trait ConcatBytes {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl ConcatBytes for Vec<(OutputStream, Vec<u8>)> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|(_, data)| data.clone()).collect()
        }
    }
}
