//! What a batch is made of comes back; what no builder makes is refused.

use proptest::prelude::*;

use super::*;

fn built(first: u64, entries: &[(Vec<u8>, bool, bool)]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(first);
    for (index, (data, stderr, partial)) in entries.iter().enumerate() {
        let stream = if *stderr { Stream::Stderr } else { Stream::Stdout };
        assert!(builder.push(UnixMicros(index as i64), stream, *partial, data));
    }
    let mut bytes = Vec::new();
    let Ok(()) = builder.finish(|batch| {
        bytes.extend_from_slice(batch);
        Ok::<_, std::convert::Infallible>(())
    });
    bytes
}

/// What follows the head changed, and the checksum with it.
fn forged(batch: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = batch.to_vec();
    change(&mut bytes);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[4..HEAD_BYTES - 4]);
    hasher.update(&bytes[HEAD_BYTES..]);
    let sum = hasher.finalize();
    bytes[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn read(bytes: &[u8]) -> Result<Entries<'_>, BatchError> {
    Batch::parse(bytes)?.0.read()
}

/// Lines and pieces of lines that shrink, and such that do not, with whether they are of standard error and go on.
fn entries() -> impl Strategy<Value = Vec<(Vec<u8>, bool, bool)>> {
    let repeated = (any::<u8>(), 0usize..3_000).prop_map(|(byte, length)| vec![byte; length]);
    let line = (prop_oneof![any::<Vec<u8>>(), repeated], any::<bool>()).prop_map(|(mut line, has_feed)| {
        line.retain(|byte| *byte != LINE_FEED);
        if has_feed || line.is_empty() {
            line.push(LINE_FEED);
        }
        line
    });
    prop::collection::vec((line, any::<bool>(), any::<bool>()), 1..20)
}

proptest! {
    #[test]
    fn written_and_read(first in 1u64..u64::MAX / 2, entries in entries()) {
        let bytes = built(first, &entries);
        prop_assert_eq!(Batch::peek_len(&bytes), Ok(bytes.len()));
        let (batch, rest) = Batch::parse(&bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(rest.is_empty());
        prop_assert_eq!(batch.last_seq(), first + entries.len() as u64 - 1);
        prop_assert_eq!(batch.newest_at(), UnixMicros(entries.len() as i64 - 1));
        let read = batch.read().map_err(|e| TestCaseError::fail(e.to_string()))?;
        for (index, (entry, (data, stderr, partial))) in read.iter().zip(&entries).enumerate() {
            prop_assert_eq!(entry.seq, first + index as u64);
            prop_assert_eq!(entry.data, data.as_slice());
            let goes_on = *partial && !data.ends_with(b"\n");
            prop_assert_eq!((entry.stream == Stream::Stderr, entry.partial), (*stderr, goes_on));
        }
        prop_assert_eq!(read.iter().count(), entries.len());
        prop_assert_eq!((read.first_seq(), read.last_seq()), (batch.first_seq(), batch.last_seq()));
    }

    #[test]
    fn notes_are_none_of_the_output(entries in entries(), notes in prop::collection::vec("[ -~]{1,80}", 20)) {
        let mut builder = BatchBuilder::new(1);
        let mut expected = Vec::new();
        for ((data, stderr, partial), note) in entries.iter().zip(&notes) {
            let stream = if *stderr { Stream::Stderr } else { Stream::Stdout };
            prop_assert!(builder.push(UnixMicros(7), stream, *partial, data));
            expected.push((builder.next_seq(), note.as_bytes()));
            prop_assert!(builder.note(UnixMicros(7), note.as_bytes()));
        }
        let mut bytes = Vec::new();
        builder.finish(|batch| std::io::Write::write_all(&mut bytes, batch)).unwrap();
        let read = read(&bytes).unwrap();
        let noted: Vec<_> = read.notes().map(|note| (note.seq, note.data)).collect();
        prop_assert_eq!(noted, expected);
        let output: Vec<_> = read.iter().map(|entry| entry.data).collect();
        prop_assert_eq!(output, entries.iter().map(|(data, ..)| &data[..]).collect::<Vec<_>>());
        prop_assert_eq!(read.last_seq(), 2 * entries.len() as u64);
    }

    /// Lines that come together are told apart as lines that come one by one.
    #[test]
    fn lines_of_one_time_are_one_block_or_many(text in "[ab\n]{1,200}", cuts in prop::collection::vec(any::<bool>(), 200), goes_on: bool) {
        let (mut builder, mut alone) = (BatchBuilder::new(1), BatchBuilder::new(1));
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let mut together = String::new();
        for (line, cut) in lines.iter().zip(cuts) {
            prop_assert!(alone.push(UnixMicros(7), Stream::Stdout, goes_on, line.as_bytes()));
            together.push_str(line);
            if cut {
                prop_assert!(builder.push(UnixMicros(7), Stream::Stdout, goes_on, together.as_bytes()));
                together.clear();
            }
        }
        prop_assert!(together.is_empty() || builder.push(UnixMicros(7), Stream::Stdout, goes_on, together.as_bytes()));
        prop_assert_eq!(builder.next_seq(), lines.len() as u64 + 1);
        let [builder, alone] = [builder, alone].map(|mut builder| {
            let mut bytes = Vec::new();
            builder.finish(|batch| std::io::Write::write_all(&mut bytes, batch)).unwrap();
            bytes
        });
        let [together, alone] = [read(&builder), read(&alone)].map(|read| read.map(|entries| {
            entries.iter().map(|entry| (entry.seq, entry.partial, entry.data.to_vec())).collect::<Vec<_>>()
        }));
        prop_assert_eq!(together.as_ref().map(Vec::len), Ok(lines.len()));
        prop_assert_eq!(together, alone);
    }

    #[test]
    fn a_flipped_bit_is_found(entries in entries(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = built(1, &entries);
        let index = at.index(bytes.len());
        bytes[index] ^= 1 << bit;
        prop_assert!(parse_all(&bytes).is_err());
    }

    #[test]
    fn forged_entries_never_panic_nor_take_more_memory_than_they_may(entries in entries(), at: prop::sample::Index, byte: u8) {
        let bytes = forged(&built(1, &entries), |bytes| {
            let index = at.index(bytes.len() - 4) + 4;
            bytes[index] = byte;
        });
        if let Ok(read) = read(&bytes) {
            let held: usize = read.iter().map(|entry| entry.data.len()).sum();
            prop_assert!(read.iter().all(|entry| !entry.data.is_empty()));
            prop_assert!(held <= BATCH_BYTES_MAX);
        }
    }

    #[test]
    fn rubbish_never_panics(bytes: Vec<u8>) {
        let _ = parse_all(&bytes);
    }
}

#[test]
fn lengths_are_limited() {
    let mut builder = BatchBuilder::new(1);
    assert!(!builder.push(UnixMicros(0), Stream::Stdout, false, &vec![0; ENTRY_BYTES_MAX + 1]));
    assert!(!builder.push(UnixMicros(0), Stream::Stdout, false, b""));
    while builder.push(UnixMicros(0), Stream::Stdout, false, &vec![0; ENTRY_BYTES_MAX]) {}
    assert!(builder.len() <= HEAD_BYTES + BATCH_BYTES_MAX);
    let mut builder = BatchBuilder::new(1);
    let feeds = vec![LINE_FEED; ENTRY_BYTES_MAX];
    while builder.count() < BATCH_ENTRIES_MAX {
        assert!(builder.push(UnixMicros(0), Stream::Stdout, false, &feeds));
    }
    assert!(!builder.push(UnixMicros(0), Stream::Stdout, false, b"one too many"));
    for lengths in [12..16, 24..28, 28..32] {
        let mut lie = built(1, &[(vec![1], false, false)]);
        lie[lengths].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Batch::parse(&lie), Err(BatchError::TooLong));
        assert_eq!(Batch::peek_len(&lie), Err(BatchError::TooLong));
    }
}

#[test]
fn what_shrinks_is_packed_and_what_does_not_is_left_as_it_is() {
    let lines = vec![(b"the same line again\n".to_vec(), false, false); 1_000];
    let packed = built(1, &lines);
    assert!(packed.len() < lines.len() * 5 && Batch::parse(&packed).unwrap().0.is_packed());
    assert_eq!(read(&packed).unwrap().iter().filter(|entry| entry.data == b"the same line again\n").count(), 1_000);
    // A generator of numbers (Marsaglia's xorshift) stands in for what is packed already.
    let mut state = 88_172_645_463_325_252_u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let noise = vec![(noise.take(ENTRY_BYTES_MAX / 8).flatten().collect(), false, true)];
    assert!(!Batch::parse(&built(1, &noise)).unwrap().0.is_packed());
    assert!(!Batch::parse(&built(1, &lines[..10])).unwrap().0.is_packed(), "short ones are packed together later");
}

#[test]
fn a_builder_goes_on_while_what_was_taken_is_packed() {
    let (mut builder, mut packer) = (BatchBuilder::new(1), Packer::default());
    assert!(builder.take(&mut Vec::new()).is_none());
    let long = b"the same again\n".repeat(400);
    assert!(builder.push(UnixMicros(1), Stream::Stdout, false, &long));
    let mut first = builder.take(&mut b"what lay here before".to_vec()).expect("a batch");
    assert!(builder.is_empty() && first.is_long());
    assert!(builder.push(UnixMicros(1), Stream::Stdout, false, b"two\n"));
    let mut second = builder.take(&mut Vec::new()).expect("a batch");
    assert_eq!((second.is_long(), builder.next_seq()), (false, 402));
    let bytes = [first.pack(&mut packer).to_vec(), second.pack(&mut packer).to_vec()].concat();
    let [one, two] = parse_all(&bytes).unwrap()[..] else { panic!("two batches") };
    assert_eq!((one.first_seq(), one.last_seq(), one.is_packed()), (1, 400, true));
    assert!(one.read().unwrap().iter().all(|entry| entry.data == b"the same again\n"));
    assert_eq!(
        two.read().unwrap().iter().map(|entry| (entry.seq, entry.data)).collect::<Vec<_>>(),
        [(401, &b"two\n"[..])]
    );
}

#[test]
fn entries_that_are_not_as_the_head_says_are_refused() {
    let lines = vec![(vec![b'x'; 100], false, false); 100];
    for batch in [built(1, &lines[..2]), built(1, &lines)] {
        let changed = |at: usize, byte: u8| read(&forged(&batch, |bytes| bytes[at] = byte)).map(drop);
        assert_eq!(changed(12, 0), Err(BatchError::Entries), "none");
        assert_eq!(changed(12, 1), Err(BatchError::Entries), "fewer");
        assert_eq!(changed(16, 200), Err(BatchError::Entries), "newer");
        assert_eq!(changed(25, batch[25] + 1), Err(BatchError::Packing), "longer");
    }
}

#[test]
fn a_time_is_written_where_it_changes_and_nowhere_else() {
    let mut builder = BatchBuilder::new(1);
    for at in [5, 5, 5, 4, 4] {
        assert!(builder.push(UnixMicros(at), Stream::Stdout, false, b"x"));
    }
    let mut bytes = Vec::new();
    builder.finish(|batch| std::io::Write::write_all(&mut bytes, batch)).unwrap();
    assert_eq!(bytes.len(), HEAD_BYTES + 5 * (BLOCK_HEAD_BYTES + 1) + 2 * TIME_BYTES);
    assert_eq!(read(&bytes).unwrap().iter().map(|entry| entry.at.0).collect::<Vec<_>>(), [5, 5, 5, 4, 4]);
    let again = HEAD_BYTES + 3 * (BLOCK_HEAD_BYTES + 1) + TIME_BYTES + BLOCK_HEAD_BYTES;
    assert_eq!(read(&forged(&bytes, |bytes| bytes[again] = 5)), Err(BatchError::Entries), "the time from before");
    assert_eq!(read(&forged(&bytes, |bytes| bytes[HEAD_BYTES] = 0)), Err(BatchError::Entries), "no time");
}

#[test]
fn a_flag_that_there_is_not_is_refused() {
    for bit in 0..8 {
        let bytes = forged(&built(1, &[(vec![1], false, false)]), |bytes| bytes[HEAD_BYTES] |= 1 << bit);
        assert_eq!(read(&bytes).map(drop), if bit < 4 { Ok(()) } else { Err(BatchError::Entries) });
    }
}

#[test]
fn a_note_is_one_line_by_itself() {
    let mut builder = BatchBuilder::new(1);
    assert!(!builder.note(UnixMicros(1), b"a\nb") && !builder.note(UnixMicros(1), b""));
    assert!(builder.note(UnixMicros(1), b"noted"));
    let mut bytes = Vec::new();
    builder.finish(|batch| std::io::Write::write_all(&mut bytes, batch)).unwrap();
    for (flags, data) in [
        (FLAG_NOTE | FLAG_TIME | FLAG_STDERR, b'n'),
        (FLAG_NOTE | FLAG_TIME | FLAG_PARTIAL, b'n'),
        (FLAG_NOTE | FLAG_TIME, LINE_FEED),
    ] {
        let forged = forged(&bytes, |bytes| {
            bytes[HEAD_BYTES] = flags;
            *bytes.last_mut().unwrap() = data;
        });
        assert_eq!(read(&forged).map(drop), Err(BatchError::Entries), "{flags}");
    }
}

#[test]
fn lines_that_fill_a_block_go_into_the_next() {
    let mut builder = BatchBuilder::new(1);
    let mut line = vec![b'x'; 1_000];
    line.push(LINE_FEED);
    for _ in 0..100 {
        assert!(builder.push(UnixMicros(1), Stream::Stdout, false, &line));
    }
    assert_eq!(builder.len(), HEAD_BYTES + 2 * BLOCK_HEAD_BYTES + TIME_BYTES + 100 * line.len());
    // The other stream, a piece of a line, and what follows a piece begin blocks of their own.
    for (stream, data) in [(Stream::Stderr, "e\n"), (Stream::Stderr, "piece"), (Stream::Stderr, "its end\n")] {
        assert!(builder.push(UnixMicros(1), stream, true, data.as_bytes()));
    }
    let mut bytes = Vec::new();
    builder.finish(|batch| std::io::Write::write_all(&mut bytes, batch)).unwrap();
    let entries = read(&bytes).unwrap();
    assert!(entries.iter().take(100).all(|entry| entry.data == line && entry.stream == Stream::Stdout));
    let rest: Vec<_> = entries.iter().skip(100).map(|entry| (entry.seq, entry.partial, entry.data)).collect();
    assert_eq!(rest, [(101, false, &b"e\n"[..]), (102, true, b"piece"), (103, false, b"its end\n")]);
}

#[test]
fn blocks_that_nobody_would_write_are_refused() {
    let batch = built(1, &[(b"ab".to_vec(), false, true)]);
    let first = HEAD_BYTES + BLOCK_HEAD_BYTES + TIME_BYTES;
    let refused = |change: fn(&mut Vec<u8>)| read(&forged(&batch, change)).map(drop);
    assert_eq!(refused(|_| ()), Ok(()));
    assert_eq!(batch.len(), first + 2);
    assert_eq!(
        refused(|bytes| *bytes.last_mut().unwrap() = LINE_FEED),
        Err(BatchError::Entries),
        "it goes on after its end"
    );
    assert_eq!(
        refused(|bytes| bytes[HEAD_BYTES + BLOCK_HEAD_BYTES + TIME_BYTES] = LINE_FEED),
        Err(BatchError::Entries),
        "more"
    );
    assert_eq!(refused(|bytes| bytes[HEAD_BYTES + 1] = 0), Err(BatchError::Entries), "empty");
}

#[test]
fn a_frame_that_unpacks_to_more_than_it_says_is_refused() {
    let batch = built(1, &vec![(vec![b'x'; 100], false, false); 100]);
    for length in [100_u32, 11_199, 11_201, BATCH_BYTES_MAX as u32] {
        let lie = forged(&batch, |bytes| bytes[24..28].copy_from_slice(&length.to_le_bytes()));
        assert!(read(&lie).is_err(), "{length}");
    }
}
