//! How a log lies in a blob: parts of some batches each. Batches that were written packed lie as they are; others are
//! packed part by part, each a frame of Zstandard (RFC 8878) of its own.
//!
//! A reader fetches and unpacks the parts that it needs and no others. What always holds: the index says how long a part
//! is before and after, so unpacking never takes more memory than was put in; a part is checked batch by batch when it is
//! read, so an object that was changed is told by its name, whatever was changed in it.

use bytes::{Bytes, BytesMut};
use holm_domain::log::{Batch, BatchError};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::{LOG_APPEND_BYTES_MAX, Segment};
use crate::{BlobKey, Error, Result};

/// A part ends with the batch that brings it to this length, in bytes before packing.
const PART_BYTES: usize = 64 * 1024;
/// The fastest of the levels that are meant for use: the way to the disk is not to wait for the processor.
const LEVEL: i32 = 1;

/// Consecutive batches within a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// The length of the batches, in bytes.
    pub(super) bytes: u64,
    /// The length of their frame in the blob, in bytes; nothing where they lie in it as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packed: Option<u64>,
}

/// What goes into a blob, and how it is divided.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) parts: Vec<Part>,
    pub(super) blob: Bytes,
}

impl Part {
    /// How many bytes of the blob it takes.
    pub(super) fn stored(&self) -> u64 {
        self.packed.unwrap_or(self.bytes)
    }

    /// Whether it is as long as a part can be: a longer one was not written by Holm.
    pub(super) fn is_bounded(&self) -> bool {
        self.bytes <= LOG_APPEND_BYTES_MAX as u64 && self.stored() <= LOG_APPEND_BYTES_MAX as u64
    }
}

/// Divides whole batches that follow one another and packs each part.
pub(super) async fn pack(batches: Bytes) -> Result<Packed> {
    off_thread(move || pack_now(batches)).await?
}

/// Unpacks parts that lie one after the other in `stored`, and checks each.
pub(super) async fn unpack(key: &BlobKey, parts: Vec<Part>, stored: Bytes) -> Result<Vec<Segment>> {
    let key = key.clone();
    off_thread(move || unpack_now(&key, &parts, stored)).await?
}

/// Packing is work for the processor: other tasks do not wait for it.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(|error| Error::unavailable("pack a log", error))
}

/// Where each part ends, with its sequences, and whether it is worth packing. Batches that are packed lie in parts of their
/// own.
fn divide(batches: &[u8]) -> Result<Vec<(Part, bool)>, BatchError> {
    let mut parts: Vec<(Part, bool)> = Vec::new();
    let mut rest = batches;
    while !rest.is_empty() {
        let (batch, after) = Batch::parse(rest)?;
        let bytes = (rest.len() - after.len()) as u64;
        match parts.last_mut() {
            Some((part, is_plain)) if part.bytes < PART_BYTES as u64 && *is_plain != batch.is_packed() => {
                part.last_seq = batch.last_seq();
                part.bytes += bytes;
            }
            _ => {
                let (first_seq, last_seq) = (batch.first_seq(), batch.last_seq());
                parts.push((Part { first_seq, last_seq, bytes, packed: None }, !batch.is_packed()));
            }
        }
        rest = after;
    }
    Ok(parts)
}

fn pack_now(batches: Bytes) -> Result<Packed> {
    let invalid = |problem: String| Error::invalid("a log append", problem);
    let mut divided = divide(&batches).map_err(|error| invalid(error.to_string()))?;
    if divided.iter().all(|(_, is_plain)| !is_plain) {
        return Ok(packed(divided, batches));
    }
    let mut packer = zstd::bulk::Compressor::new(LEVEL).map_err(|error| Error::unavailable("pack a log", error))?;
    let mut blob = BytesMut::with_capacity(batches.len() / 4);
    let mut rest = &batches[..];
    for (part, is_plain) in &mut divided {
        let (raw, after) = rest.split_at(usize::try_from(part.bytes).unwrap_or(usize::MAX).min(rest.len()));
        rest = after;
        if *is_plain {
            let frame = packer.compress(raw).map_err(|error| Error::unavailable("pack a log", error))?;
            // What does not shrink lies as it is.
            if frame.len() < raw.len() {
                part.packed = Some(frame.len() as u64);
                blob.extend_from_slice(&frame);
                continue;
            }
        }
        blob.extend_from_slice(raw);
    }
    Ok(packed(divided, blob.freeze()))
}

fn packed(divided: Vec<(Part, bool)>, blob: Bytes) -> Packed {
    Packed { parts: divided.into_iter().map(|(part, _)| part).collect(), blob }
}

fn unpack_now(key: &BlobKey, parts: &[Part], mut stored: Bytes) -> Result<Vec<Segment>> {
    let unpacking = |error| Error::unavailable("unpack a log", error);
    let mut unpacker = zstd::bulk::Decompressor::new().map_err(unpacking)?;
    let mut segments = Vec::with_capacity(parts.len());
    for part in parts {
        let corrupt = |problem: String| {
            let Part { first_seq, last_seq, .. } = part;
            Error::corrupt("blobs", key.as_str(), format!("the entries {first_seq} to {last_seq}: {problem}"))
        };
        let length = usize::try_from(part.stored()).unwrap_or(usize::MAX);
        if !part.is_bounded() || length > stored.len() {
            return Err(corrupt("they are longer than can be".to_owned()));
        }
        let frame = stored.split_to(length);
        let bytes = match part.packed {
            None => frame,
            Some(_) => {
                let room = usize::try_from(part.bytes).unwrap_or(usize::MAX);
                Bytes::from(unpacker.decompress(&frame, room).map_err(|error| corrupt(error.to_string()))?)
            }
        };
        check(part, &bytes).map_err(corrupt)?;
        segments.push(Segment { first_seq: part.first_seq, last_seq: part.last_seq, bytes });
    }
    Ok(segments)
}

/// Whether the batches are those that were put in.
fn check(part: &Part, bytes: &[u8]) -> Result<(), String> {
    let (mut rest, mut next) = (bytes, part.first_seq);
    while !rest.is_empty() {
        let (batch, after) = Batch::parse(rest).map_err(|error| error.to_string())?;
        if batch.first_seq() != next {
            return Err(format!("the batch of {} stands where that of {next} must be", batch.first_seq()));
        }
        (rest, next) = (after, batch.last_seq() + 1);
    }
    if next == part.last_seq + 1 { Ok(()) } else { Err(format!("they end before {next}")) }
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        OrgId, RunId, UnixMicros,
        log::{BatchBuilder, Stream},
    };

    use super::*;

    /// Batches of `each` bytes; random ones do not shrink.
    fn batches(count: u64, each: usize, random: bool) -> Bytes {
        let mut builder = BatchBuilder::new(1);
        let (mut bytes, mut state) = (Vec::new(), 1u64);
        for _ in 0..count {
            let noise = (0..each).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if random { (state >> 33) as u8 } else { b'x' }
            });
            assert!(builder.push(UnixMicros(1), Stream::Stdout, false, &noise.collect::<Vec<u8>>()));
            let Ok::<(), ()>(()) = builder.finish(|batch| {
                bytes.extend_from_slice(batch);
                Ok(())
            }) else {
                panic!("writing to memory fails")
            };
        }
        Bytes::from(bytes)
    }

    fn key() -> BlobKey {
        let id = uuid::Uuid::from_u128(1);
        BlobKey::log_segment(OrgId::from_uuid(id), RunId::from_uuid(id), 1, b"x")
    }

    #[test]
    fn what_was_packed_comes_back_and_takes_less_room() {
        for (random, count) in [(false, 300), (true, 300), (false, 1)] {
            let bytes = batches(count, 4_000, random);
            let Packed { parts, blob } = pack_now(bytes.clone()).unwrap();
            assert_eq!(parts.iter().map(Part::stored).sum::<u64>(), blob.len() as u64);
            assert!(random || blob.len() * 20 < bytes.len(), "{} of {}", blob.len(), bytes.len());
            assert!(blob.len() <= bytes.len());
            assert!(parts.iter().all(|part| part.bytes < (PART_BYTES + 4_100) as u64));
            let segments = unpack_now(&key(), &parts, blob).unwrap();
            let joined: Vec<u8> = segments.iter().flat_map(|segment| segment.bytes.to_vec()).collect();
            assert!(joined == bytes, "as it was");
        }
    }

    #[test]
    fn what_comes_packed_is_left_as_it_is() {
        let packed = batches(300, 50_000, false);
        let bytes = Bytes::from([&packed[..], &batches(40, 4_000, false)].concat());
        let Packed { parts, blob } = pack_now(bytes.clone()).unwrap();
        assert!(blob.starts_with(&packed), "not touched");
        assert_eq!(parts.iter().map(|part| part.packed.is_some()).collect::<Vec<_>>(), [false, true, true, true]);
        assert!(blob.len() < packed.len() + 4_000);
    }

    #[test]
    fn no_changed_byte_goes_unseen_and_the_object_is_named() {
        for random in [false, true] {
            let Packed { parts, blob } = pack_now(batches(20, 100, random)).unwrap();
            for at in 0..blob.len() {
                let mut changed = blob.to_vec();
                changed[at] ^= 0x55;
                let told = match unpack_now(&key(), &parts, changed.into()) {
                    Err(Error::Corrupt { table: "blobs", key, .. }) => key,
                    // A frame has bits that carry nothing; then nothing is changed.
                    Ok(segments) => {
                        assert!(segments[0].bytes == batches(20, 100, random), "byte {at}");
                        continue;
                    }
                    other => panic!("byte {at}: {other:?}"),
                };
                assert_eq!(told, key().to_string());
            }
        }
    }

    #[test]
    fn a_frame_that_would_become_huge_is_not_unpacked() {
        let frame = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let part = Part { first_seq: 1, last_seq: 1, bytes: 1_000, packed: Some(frame.len() as u64) };
        assert!(matches!(unpack_now(&key(), &[part], frame.clone().into()), Err(Error::Corrupt { .. })));
        let lie = Part { bytes: 64 << 20, ..part };
        assert!(matches!(unpack_now(&key(), &[lie], frame.into()), Err(Error::Corrupt { .. })));
    }
}
