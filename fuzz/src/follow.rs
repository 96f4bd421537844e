//! Streams of the server's as its client reads them: frames of batches, and server-sent events.
//!
//! The first bytes say which, and into which pieces the rest is cut. What must hold: cuts make no difference; frames that
//! came out, written again, are the bytes that went in; no event is longer than may be, or has what was not sent.

use holm_api::{
    batches::{ALIVE, Frame, FrameReader, end, end_of},
    client::sse::{EVENT_BYTES_MAX, SseEvent, SseReader},
};

use crate::{
    batches::{batch, seal},
    input::Input,
};

/// Seeds: streams as a server sends them.
pub fn seeds() -> Vec<Vec<u8>> {
    let last = end(4);
    let frames = [&batch(1, &[b"a\n", b"b\n", b"c"]), ALIVE, &batch(4, &[b"d\n"]), &last[..]].concat();
    let events = ": alive\n\nevent: log\nid: 7\ndata: {\"seq\":7}\n\nretry: 1\r\nevent: end\r\ndata: a\r\ndata: b\r\n\r\ndata\r\r";
    vec![[b"\x00\x05", &frames[..]].concat(), [b"\x01\x05", events.as_bytes()].concat()]
}

/// Reads a stream whole and in pieces.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (is_events, cut) = (input.byte() & 1 != 0, usize::from(input.byte()) + 1);
    let mut bytes = input.rest().to_vec();
    if is_events {
        let whole = events(&bytes, bytes.len().max(1));
        assert_eq!(events(&bytes, cut), whole);
        let (events, _) = whole;
        for SseEvent { name, data, id } in events {
            assert!(
                data.len() <= EVENT_BYTES_MAX && name.len() + data.len() + id.map_or(0, |id| id.len()) <= bytes.len()
            );
        }
    } else {
        seal(&mut bytes);
        let whole = frames(&bytes, bytes.len().max(1));
        assert_eq!(frames(&bytes, cut), whole);
        assert!(bytes.starts_with(&whole.0), "what came out is what went in");
    }
}

/// The frames as they are written, and whether the stream was refused where they end.
fn frames(bytes: &[u8], cut: usize) -> (Vec<u8>, bool) {
    let mut reader = FrameReader::default();
    let mut written = Vec::new();
    for piece in bytes.chunks(cut) {
        reader.push(piece);
        loop {
            match reader.pull() {
                Ok(Some(frame)) => written.extend(encoded(&frame, &bytes[written.len()..])),
                Ok(None) => break,
                Err(_) => return (written, true),
            }
        }
    }
    (written, false)
}

/// A frame as it is written; the run at the end of a log as it was, because JSON has many forms.
fn encoded(frame: &Frame, given: &[u8]) -> Vec<u8> {
    match frame {
        Frame::Alive => ALIVE.to_vec(),
        Frame::End(seq, None) => end(*seq).to_vec(),
        Frame::End(seq, Some(run)) => {
            let again = end_of(run, *seq).expect("JSON");
            let mut reader = FrameReader::default();
            reader.push(&again);
            assert_eq!(reader.pull().expect("what was written"), Some(frame.clone()));
            let length =
                given.get(12..16).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
            given[..16 + length.expect("it has a length") as usize].to_vec()
        }
        Frame::Batch(read) => {
            let mut seq = read.first_seq();
            for entry in read.entries() {
                assert_eq!(entry.seq, seq);
                seq += 1;
            }
            assert_eq!(seq, read.last_seq() + 1);
            assert_eq!(read.clone().behind(read.last_seq()).entries().count(), 0);
            given[..holm_domain::log::Batch::peek_len(given).expect("a batch")].to_vec()
        }
    }
}

fn events(bytes: &[u8], cut: usize) -> (Vec<SseEvent>, bool) {
    let mut reader = SseReader::default();
    let mut events = Vec::new();
    for piece in bytes.chunks(cut) {
        reader.push(piece);
        loop {
            match reader.pull() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(_) => return (events, true),
            }
        }
    }
    (events, false)
}
