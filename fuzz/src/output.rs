//! Frames of output as the guest sends them.
//!
//! The first byte says into which pieces the bytes are cut. What must hold: however they are cut, the same frames come out,
//! which written again are the bytes that were taken; what is no frame is an error, and an end within one is told.

use bytes::Bytes;
use holm_wire::guest_api::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, FrameDecoder, OutputFrame, OutputStream};

use crate::input::Input;

/// Seeds: frames of both streams, whole and cut off.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut bytes = vec![3];
    for (stream, data) in
        [(OutputStream::Stdout, &b"one\n"[..]), (OutputStream::Stderr, b"two"), (OutputStream::Stdout, b"x")]
    {
        bytes.extend(OutputFrame::head(stream, data.len()).expect("a length"));
        bytes.extend(data);
    }
    vec![bytes[..bytes.len() - 1].to_vec(), bytes]
}

/// Decodes the bytes in pieces.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let cut = usize::from(input.byte()) + 1;
    let bytes = input.rest();
    let mut decoder = FrameDecoder::default();
    let (mut taken, mut refused) = (Vec::new(), false);
    'pieces: for piece in bytes.chunks(cut) {
        decoder.put(Bytes::copy_from_slice(piece));
        loop {
            match decoder.take() {
                Ok(Some(frame)) => taken.extend(encoded(&frame)),
                Ok(None) => break,
                Err(_) => {
                    refused = true;
                    break 'pieces;
                }
            }
        }
    }
    assert!(bytes.starts_with(&taken), "what was taken is what was given");
    let rest = &bytes[taken.len()..];
    assert_eq!(refused, is_refused(rest), "{:?}", &rest[..rest.len().min(8)]);
    if !refused {
        assert!(whole(rest).is_none(), "a whole frame was left");
        assert_eq!(decoder.end().is_ok(), rest.is_empty());
    }
}

pub(crate) fn encoded(frame: &OutputFrame) -> Vec<u8> {
    let head = OutputFrame::head(frame.stream, frame.data.len()).expect("a frame that was decoded has a length");
    [&head[..], &frame.data].concat()
}

fn head(bytes: &[u8]) -> Option<(u8, usize)> {
    let [stream, a, b, c, d] = *bytes.first_chunk::<FRAME_HEAD_BYTES>()?;
    Some((stream, u32::from_le_bytes([a, b, c, d]) as usize))
}

fn is_refused(bytes: &[u8]) -> bool {
    head(bytes).is_some_and(|(stream, length)| !(1..=2).contains(&stream) || length == 0 || length > FRAME_BYTES_MAX)
}

/// The length of the whole frame at the front of `bytes`.
pub(crate) fn whole(bytes: &[u8]) -> Option<usize> {
    let (_, length) = head(bytes).filter(|_| !is_refused(bytes))?;
    (bytes.len() >= FRAME_HEAD_BYTES + length).then_some(FRAME_HEAD_BYTES + length)
}
