//! The codec of output frames.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use holm_wire::guest_api::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, FrameDecoder, FrameError, OutputFrame, OutputStream};
use proptest::prelude::*;

fn stream() -> impl Strategy<Value = OutputStream> {
    prop_oneof![Just(OutputStream::Stdout), Just(OutputStream::Stderr)]
}

proptest! {
    /// What was encoded comes out the same, however it was cut on its way.
    #[test]
    fn frames_survive_any_cut(
        frames in proptest::collection::vec((stream(), proptest::collection::vec(any::<u8>(), 1..300)), 0..20),
        cut in 1_usize..500,
    ) {
        let mut bytes = Vec::new();
        for (stream, data) in &frames {
            bytes.extend(OutputFrame::head(*stream, data.len()).unwrap());
            bytes.extend(data);
        }
        let mut decoder = FrameDecoder::default();
        let mut decoded = Vec::new();
        for piece in bytes.chunks(cut) {
            decoder.put(Bytes::copy_from_slice(piece));
            while let Some(frame) = decoder.take().unwrap() {
                decoded.push((frame.stream, frame.data.to_vec()));
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert_eq!(decoder.end(), Ok(()));
    }

    /// Any bytes are frames or an error; no frame is empty or beyond the limit.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut decoder = FrameDecoder::default();
        decoder.put(Bytes::copy_from_slice(&bytes));
        let mut taken = 0;
        while let Ok(Some(frame)) = decoder.take() {
            prop_assert!(!frame.data.is_empty() && frame.data.len() <= FRAME_BYTES_MAX);
            taken += FRAME_HEAD_BYTES + frame.data.len();
        }
        prop_assert!(taken <= bytes.len());
    }
}

#[test]
fn heads_beyond_the_limits_are_refused() {
    assert_eq!(OutputFrame::head(OutputStream::Stdout, 0), Err(FrameError::Length(0)));
    let beyond = FRAME_BYTES_MAX + 1;
    assert_eq!(OutputFrame::head(OutputStream::Stdout, beyond), Err(FrameError::Length(beyond as u32)));
    for (head, error) in [
        ([0, 1, 0, 0, 0], FrameError::UnknownStream(0)),
        ([3, 1, 0, 0, 0], FrameError::UnknownStream(3)),
        ([1, 0, 0, 0, 0], FrameError::Length(0)),
        ([2, 0xff, 0xff, 0xff, 0xff], FrameError::Length(u32::MAX)),
    ] {
        let mut decoder = FrameDecoder::default();
        decoder.put(Bytes::copy_from_slice(&head));
        assert_eq!(decoder.take(), Err(error));
    }
    let mut decoder = FrameDecoder::default();
    decoder.put(Bytes::from_static(&[1, 2, 0, 0, 0, b'x']));
    assert_eq!((decoder.take(), decoder.end()), (Ok(None), Err(FrameError::Truncated)));
}
