//! Tar archives that come from others.
//!
//! The first byte says whether checksums are made right first. What must hold: names lead nowhere but down, everything keeps
//! to its limits, a file has exactly the bytes that stand in the archive, and whether they are taken changes nothing of
//! what follows.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Seek as _},
    rc::Rc,
};

use holm_runtime::archive::{Entry, Kind, Limits, Name, Problem, Reader};
use tar::{Builder, EntryType, Header};

use crate::input::Input;

const LIMITS: Limits = Limits { entries: 50, bytes: 1 << 20, path_bytes: 256, depth: 8, description_bytes: 4_096 };
const BLOCK_BYTES: usize = 512;

/// Seeds: archives as tools write them.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut plain = Builder::new(Vec::new());
    let mut add = |kind: EntryType, name: &str, link: &str, data: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(1);
        header.set_gid(1);
        header.set_size(data.len() as u64);
        header.set_path(name).expect("a name");
        if !link.is_empty() {
            header.set_link_name(link).expect("a name");
        }
        header.set_cksum();
        plain.append(&header, data).expect("memory takes all");
    };
    add(EntryType::Directory, "dir/", "", b"");
    add(EntryType::Regular, "dir/file", "", b"content");
    add(EntryType::Symlink, "link", "../x", b"");
    add(EntryType::Link, "hard", "dir/file", b"");
    add(EntryType::Fifo, "fifo", "", b"");
    add(EntryType::XHeader, "pax", "", b"18 path=long/name\n12 uid=1000\n29 SCHILY.xattr.user.a=value\n");
    add(EntryType::Regular, "short", "", b"abc");
    let plain = plain.into_inner().expect("memory takes all");
    let mut long = Builder::new(Vec::new());
    let mut header = Header::new_ustar();
    header.set_size(3);
    long.append_data(&mut header, "n/".repeat(80) + "end", &b"abc"[..]).expect("memory takes all");
    let long = long.into_inner().expect("memory takes all");
    [plain, long, sparse()].map(|bytes| [b"\x01", &bytes[..]].concat()).into()
}

/// A file with a hole, in the old GNU form.
fn sparse() -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("sparse").expect("a name");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(512);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    gnu.sparse[0].offset.copy_from_slice(b"00000001000\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000001000\0");
    gnu.realsize.copy_from_slice(b"00000002000\0");
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, &[7; 512][..]).expect("memory takes all");
    builder.into_inner().expect("memory takes all")
}

/// Gives every head a checksum that is right, as far as sizes say where heads are.
fn seal(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + BLOCK_BYTES) {
        at += BLOCK_BYTES;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let header = Header::from_byte_slice(block);
        let size = header.entry_size().unwrap_or(0);
        let sum: u64 = block[..148].iter().chain(&block[156..]).map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let Ok(data) = usize::try_from(size.div_ceil(BLOCK_BYTES as u64)) else { return };
        at = data.saturating_mul(BLOCK_BYTES).saturating_add(at).min(bytes.len());
    }
}

/// Bytes, of which it is known how many were read.
struct Source<'a> {
    bytes: &'a [u8],
    read: Rc<Cell<usize>>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.read.set(self.read.get() + read);
        Ok(read)
    }
}

/// Reads an archive with and without its files.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let is_sealed = input.byte() & 1 != 0;
    let mut bytes = input.rest().to_vec();
    if is_sealed {
        seal(&mut bytes);
    }
    let (listed, problem) = read(&bytes, |_, _| ());
    let (copied, again) = read(&bytes, |reader, entry| copy(reader, entry, &bytes));
    let before_end = copied.len() < listed.len() && again.is_some();
    assert!(copied == listed && problem == again || before_end, "{problem:?}, and with its files {again:?}");
    assert!(listed.len() as u64 <= LIMITS.entries);
    assert!(listed.iter().map(|entry| entry.size).sum::<u64>() <= LIMITS.bytes);
    listed.iter().for_each(check_entry);
}

fn read(
    bytes: &[u8],
    with: impl Fn(&mut (Reader<Source<'_>>, Rc<Cell<usize>>), &Entry),
) -> (Vec<Entry>, Option<String>) {
    let count = Rc::new(Cell::new(0));
    let source = Source { bytes, read: Rc::clone(&count) };
    let mut reader = (Reader::new(source, LIMITS), count);
    let mut entries = Vec::new();
    loop {
        match reader.0.next_entry() {
            Ok(None) => return (entries, None),
            Ok(Some(entry)) => {
                with(&mut reader, &entry);
                entries.push(entry);
            }
            Err(problem) => return (entries, Some(problem.to_string())),
        }
    }
}

/// Takes the data of a file, if the archive has all of it.
fn copy((reader, count): &mut (Reader<Source<'_>>, Rc<Cell<usize>>), entry: &Entry, bytes: &[u8]) {
    if entry.kind != Kind::File {
        return;
    }
    thread_local! {
        static FILE: File = tempfile::tempfile().expect("a file");
    }
    FILE.with(|mut file| {
        file.set_len(0).and_then(|()| file.rewind()).expect("a file");
        let mut target = file.try_clone().expect("a file");
        match reader.copy(entry, &mut target) {
            Err(problem) => assert!(matches!(problem, Problem::CutOff), "{problem}"),
            Ok(copied) => {
                assert!(copied <= entry.size && file.metadata().expect("a file").len() == entry.size);
                let data = &bytes[count.get() - copied as usize..count.get()];
                let mut content = Vec::new();
                file.rewind().and_then(|()| file.read_to_end(&mut content)).expect("a file");
                if entry.is_sparse() {
                    let zeros = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0).count();
                    assert_eq!(content.len() - zeros(&content), data.len() - zeros(data), "holes are zeros");
                } else {
                    assert_eq!(content, data);
                }
            }
        }
    });
}

fn check_entry(entry: &Entry) {
    check_name(&entry.name);
    assert!(entry.mode <= 0o7777);
    assert!(entry.kind == Kind::File || entry.size == 0, "{entry:?}");
    let attributes: usize = entry.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(attributes as u64 <= LIMITS.description_bytes);
    match &entry.kind {
        Kind::HardLink(name) => check_name(name),
        Kind::Symlink(target) => {
            assert!(!target.is_empty() && target.len() <= LIMITS.path_bytes && !target.contains(&0), "{entry:?}");
        }
        _ => {}
    }
}

fn check_name(name: &Name) {
    assert!(name.names.len() <= LIMITS.depth && name.path().len() <= LIMITS.path_bytes, "{name:?}");
    for part in &name.names {
        let is_plain = !part.is_empty() && part != b"." && part != b".." && !part.contains(&0) && !part.contains(&b'/');
        assert!(is_plain, "{name:?}");
    }
    assert!(!name.to_string().chars().any(char::is_control));
}
