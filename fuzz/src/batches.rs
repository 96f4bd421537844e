//! Batches of log entries.
//!
//! The first byte says whether checksums are made right first. What must hold: a batch that is opened has the entries of
//! the one that its entries and notes make; they are numbered without a gap, none is empty, and each comes through JSON
//! unchanged.

use holm_api::logs::LogEntry;
use holm_domain::{
    UnixMicros,
    log::{BATCH_BYTES_MAX, Batch, BatchBuilder, ENTRY_BYTES_MAX, Entries, HEAD_BYTES, Line, Stream, parse_all},
};

use crate::input::Input;

const MAGIC: &[u8] = b"HLB3";

/// A batch of lines of both streams; one without its line feed goes on.
pub(crate) fn batch(first_seq: u64, lines: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(first_seq);
    for (line, stream) in lines.iter().zip([Stream::Stdout, Stream::Stderr].into_iter().cycle()) {
        assert!(builder.push(UnixMicros(1_700_000_000_000_000), stream, !line.ends_with(b"\n"), line));
    }
    finished(&mut builder)
}

fn finished(builder: &mut BatchBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.finish(|made| std::io::Write::write_all(&mut bytes, made)).expect("memory takes all");
    bytes
}

/// Gives everything that begins like a batch a checksum that is right.
pub(crate) fn seal(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(MAGIC.len()).position(|window| window == MAGIC) {
        at += found;
        let length = Batch::peek_len(&bytes[at..]).ok().filter(|length| *length <= bytes.len() - at);
        if let Some(length) = length {
            let mut sum = crc32fast::Hasher::new();
            sum.update(&bytes[at + MAGIC.len()..at + HEAD_BYTES - 4]);
            sum.update(&bytes[at + HEAD_BYTES..at + length]);
            let sum = sum.finalize();
            bytes[at + HEAD_BYTES - 4..at + HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
        }
        at += MAGIC.len();
    }
}

/// Seeds: one batch, several, one that is cut off, one that is packed.
pub fn seeds() -> Vec<Vec<u8>> {
    let one = batch(1, &[b"a\n", b"b\n", b"c\nd", b"\xff\x00"]);
    let two = batch(5, &[b"c\n"]);
    let end = batch(u64::MAX - 2, &[b"d\n", b"e\n"]);
    let cut = &two[..two.len() - 1];
    let mut noted = BatchBuilder::new(3);
    assert!(noted.push(UnixMicros(1), Stream::Stdout, false, b"a\n") && noted.note(UnixMicros(2), b"{}"));
    let noted = finished(&mut noted);
    let packed = batch(7, &[b"the same line\n".as_slice(); 400]);
    [one.clone(), [&one[..], &two].concat(), end, cut.to_vec(), noted, packed]
        .map(|bytes| [b"\x01", &bytes[..]].concat())
        .into()
}

/// Takes batches apart and puts them together again.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let is_sealed = input.byte() & 1 != 0;
    let mut bytes = input.rest().to_vec();
    if is_sealed {
        seal(&mut bytes);
    }
    let (mut rest, mut count) = (&bytes[..], 0);
    while let Ok((batch, after)) = Batch::parse(rest) {
        let whole = &rest[..rest.len() - after.len()];
        assert_eq!(Batch::peek_len(rest), Ok(whole.len()));
        assert!(whole.len() <= HEAD_BYTES + BATCH_BYTES_MAX);
        if let Ok(entries) = batch.read() {
            compare(&batch, &entries);
        }
        (rest, count) = (after, count + 1);
    }
    match parse_all(&bytes) {
        Ok(batches) => assert!(rest.is_empty() && batches.len() == count),
        Err(_) => assert!(!rest.is_empty()),
    }
}

/// Compares a batch with the one that its entries make.
fn compare(batch: &Batch<'_>, entries: &Entries<'_>) {
    let mut builder = BatchBuilder::new(batch.first_seq());
    for line in entries.lines() {
        let entry = match line {
            Line::Output(entry) => entry,
            Line::Note(note) if builder.note(note.at, note.data) => {
                assert_eq!(note.seq + 1, builder.next_seq());
                continue;
            }
            Line::Note(note) => return is_full(&builder, note.data),
        };
        assert_eq!(entry.seq, builder.next_seq());
        assert!((1..=ENTRY_BYTES_MAX).contains(&entry.data.len()));
        if !builder.push(entry.at, entry.stream, entry.partial, entry.data) {
            return is_full(&builder, entry.data);
        }
        let shown = LogEntry::from(entry.clone());
        assert_eq!(shown.bytes().as_deref(), Some(entry.data));
        let told = serde_json::to_string(&shown).expect("JSON");
        assert_eq!(serde_json::from_str::<LogEntry>(&told).expect("what was told"), shown);
    }
    assert_eq!(builder.next_seq(), batch.last_seq() + 1);
    let rebuilt = finished(&mut builder);
    let (again, _) = Batch::parse(&rebuilt).expect("what was written");
    assert_eq!(again.read().as_ref(), Ok(entries));
    assert_eq!(again.newest_at(), batch.newest_at());
}

/// Blocks that were divided in the shortest way take more when they are made one entry after the other.
fn is_full(builder: &BatchBuilder, data: &[u8]) {
    let room = (HEAD_BYTES + BATCH_BYTES_MAX).saturating_sub(builder.len());
    assert!(room < data.len() + 16, "a batch that is not full takes an entry");
}
