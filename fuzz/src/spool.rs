//! A spool with anything in it, as the agent reads it.
//!
//! The input is: whether checksums are made right first, the sequence to begin at, how much is read at a time, and files,
//! each the sequence in its name and what is in it. What must hold: what comes out lies in a file as it came out, without
//! a gap and never more at a time than may; a reader that says that nothing is new has passed nothing over; who begins
//! later reads the same from there.

use std::{collections::BTreeMap, path::Path};

use holm_domain::log::{BATCH_BYTES_MAX, Batch, HEAD_BYTES, parse_all};
use holm_shim::{
    protocol::SPOOL_DIR_NAME,
    spool::reader::{self, Chunk, Reader},
};

use crate::{
    batches::{batch, seal},
    input::{Input, piece},
    place,
};

type Files = BTreeMap<u64, Vec<u8>>;

/// Seeds: spools as a shim leaves them, and one with a file missing.
pub fn seeds() -> Vec<Vec<u8>> {
    let (one, two) = (batch(1, &[b"a\n", b"b\n"]), batch(3, &[b"c\n"]));
    let (three, torn) = (batch(4, &[b"d\n", b"e", b"f"]), &batch(7, &[b"g\n"])[..30]);
    let both = [&one[..], &two].concat();
    let last = [&three[..], torn].concat();
    let spool = |from: u8, files: &[(u8, &[u8])]| -> Vec<u8> {
        let files = files.iter().flat_map(|(first, bytes)| [&[*first][..], &piece(bytes)].concat());
        [1, from, 0].into_iter().chain(files).collect()
    };
    vec![
        spool(1, &[(1, &both), (4, &last)]),
        spool(3, &[(1, &both), (4, &three)]),
        spool(1, &[(1, &one), (4, &three)]),
        spool(2, &[(3, &two)]),
        spool(9, &[(1, &both)]),
    ]
}

/// Has the agent read the spool.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (is_sealed, from) = (input.byte() & 1 != 0, u64::from(input.byte()));
    let bytes_max = usize::from(input.byte()) * 8;
    let mut files = Files::new();
    while !input.is_empty() {
        let (first, mut bytes) = (u64::from(input.byte()), input.piece().to_vec());
        if is_sealed {
            seal(&mut bytes);
        }
        files.insert(first, bytes);
    }
    place::with(|dir| {
        write(&dir.join(SPOOL_DIR_NAME), &files);
        read(dir, from, bytes_max, &files);
    });
}

fn write(spool: &Path, files: &Files) {
    std::fs::create_dir_all(spool).expect("a folder");
    for entry in std::fs::read_dir(spool).expect("a folder") {
        std::fs::remove_file(entry.expect("a file").path()).expect("a file");
    }
    for (first, bytes) in files {
        std::fs::write(spool.join(format!("{first:020}.log")), bytes).expect("a file");
    }
}

/// What a reader told from a sequence on: batches, and whether it ended with an error.
#[derive(Debug, PartialEq)]
struct Told {
    bytes: Vec<u8>,
    next_seq: u64,
    is_refused: bool,
}

fn read(dir: &Path, from: u64, bytes_max: usize, files: &Files) {
    assert_eq!(reader::first_seq(dir).expect("a folder"), files.keys().next().copied());
    let mut reader = Reader::new(dir, from);
    let (mut chunks, mut next_seq) = (Vec::new(), from);
    let is_refused = loop {
        match reader.read(bytes_max) {
            Ok(chunk) if chunk.bytes.is_empty() => break false,
            Ok(chunk) => {
                assert!(chunk.bytes.len() <= bytes_max.max(HEAD_BYTES + BATCH_BYTES_MAX));
                next_seq = check_chunk(&chunk, next_seq, files);
                assert_eq!(reader.next_seq(), next_seq);
                chunks.push(chunk);
            }
            Err(_) => break true,
        }
    };
    if !is_refused {
        nothing_is_passed_over(next_seq, files);
    }
    // Somebody who begins where a piece ended reads what follows it, and perhaps more: what is wrong may lie before.
    for (index, chunk) in chunks.iter().enumerate() {
        let bytes: Vec<u8> = chunks[index + 1..].iter().flat_map(|chunk| chunk.bytes.clone()).collect();
        let again = told(dir, chunk.next_seq, bytes_max);
        if is_refused {
            assert!(again.bytes.starts_with(&bytes), "from {}", chunk.next_seq);
        } else {
            assert_eq!(again, Told { bytes, next_seq, is_refused }, "from {}", chunk.next_seq);
        }
    }
}

fn told(dir: &Path, from: u64, bytes_max: usize) -> Told {
    let mut reader = Reader::new(dir, from);
    let mut bytes = Vec::new();
    loop {
        match reader.read(bytes_max) {
            Ok(chunk) if chunk.bytes.is_empty() => {
                return Told { bytes, next_seq: reader.next_seq(), is_refused: false };
            }
            Ok(chunk) => bytes.extend(chunk.bytes),
            Err(_) => return Told { bytes, next_seq: reader.next_seq(), is_refused: true },
        }
    }
}

/// Checks what was read from `next_seq` on; returns the sequence after it.
fn check_chunk(chunk: &Chunk, next_seq: u64, files: &Files) -> u64 {
    let batches = parse_all(&chunk.bytes).expect("whole batches");
    assert_eq!(chunk.first_seq, batches[0].first_seq());
    let (mut rest, mut wanted) = (&chunk.bytes[..], next_seq);
    for (index, batch) in batches.iter().enumerate() {
        let begins = if index == 0 { batch.first_seq() <= wanted } else { batch.first_seq() == wanted };
        assert!(begins && batch.last_seq() >= wanted, "{wanted} was to follow, and {} did", batch.first_seq());
        wanted = batch.last_seq() + 1;
        let (whole, after) = rest.split_at(Batch::peek_len(rest).expect("a batch"));
        let is_there = files.values().any(|bytes| bytes.windows(whole.len()).any(|window| window == whole));
        assert!(is_there, "a batch was made up");
        rest = after;
    }
    assert_eq!(chunk.next_seq, wanted);
    wanted
}

/// Checks that nothing lies in the files that should have been read, or told as an error.
fn nothing_is_passed_over(next_seq: u64, files: &Files) {
    assert!(files.range(next_seq + 1..).next().is_none(), "the spool goes on beyond {next_seq}");
    let Some((_, bytes)) = files.range(..=next_seq).next_back() else { return };
    let mut rest = &bytes[..];
    while let Ok((batch, after)) = Batch::parse(rest) {
        assert!(batch.last_seq() < next_seq, "{} lies there and was not read", batch.first_seq());
        rest = after;
    }
}
