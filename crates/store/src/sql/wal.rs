//! The write-ahead log beside a file of SQLite (sqlite.org/fileformat2.html, 4), read before SQLite reads it.
//!
//! SQLite takes the first frame that is not whole for the end of the log, and leaves out what follows without a word: that is
//! how a transaction looks that a power cut has torn. Damage looks the same, and then what follows was acknowledged.
//!
//! What tells them apart: each commit lies on the disk before the frame after it is written (`synchronous=FULL`), so a frame
//! whose checksum goes on from a commit bears witness that all up to that commit was whole once. The checksum goes on from the
//! one that is stored in the frame before, so damage to a frame hides no more than that frame and the next. The head is on the
//! disk before any frame is, so where there is anything behind a head, that was whole once. And the file of a database has its
//! first page before there is a log beside it; where it has none, SQLite removes the log.
//!
//! What always holds: a log that SQLite wrote is never called damaged, whole or cut off anywhere, with its last transaction
//! torn in any way, with frames of an earlier generation or of a transaction that was given up behind its end, or while
//! somebody writes it. Of a log that is damaged nothing is opened, so nothing of it is lost.
//!
//! Left out: damage behind which there is no such witness, which no log can tell from a power cut. If it is shorter than a
//! page, that is one in the last four transactions. Programs that write with less than `synchronous=FULL` bear false witness.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    thread,
};

use tokio::sync::oneshot;

use super::places::{SqliteFiles, if_there};
use crate::{Error, Result};

const READING: &str = "read the write-ahead log of the database";
const HEAD_BYTES: usize = 32;
const FRAME_HEAD_BYTES: usize = 24;
/// With the lowest bit the checksums are made of big-endian words.
const MAGIC: u32 = 0x377f_0682;
const PAGE_BYTES_MIN: u32 = 512;
/// The largest page of a SQLite file, in bytes; of its write-ahead log one is held at a time, and what is read at once.
const PAGE_BYTES_MAX: u32 = 65_536;
/// So many bytes are read at once.
const READ_BYTES: usize = 1024 * 1024;
/// From how many bytes on a write-ahead log is said to be read: that takes a while.
const TOLD_FROM_BYTES: u64 = 256 * 1024 * 1024;
/// How often a write-ahead log is read that seems to be damaged, each time in another way: somebody writes it meanwhile.
const LOOKS_MAX: u32 = 8;

/// Refuses a file of SQLite whose write-ahead log is damaged where more was stored later, or that is gone while its log is
/// not. It may be in use, and need not be there. No lock is taken, and no descriptor of the file itself is opened, so none of
/// the locks of this process is let go.
pub(super) async fn examine(database: &str) -> Result<()> {
    let database = PathBuf::from(database);
    let (tell, told) = oneshot::channel();
    // A thread of its own, as SQLite has: a disk that hangs keeps nobody who does not wait for it.
    let spawned = thread::Builder::new().spawn(move || drop(tell.send(look(&database))));
    spawned.map_err(|error| Error::unavailable(READING, error))?;
    told.await.map_err(|error| Error::unavailable(READING, error))?
}

fn look(database: &Path) -> Result<()> {
    let unavailable = |error| Error::unavailable(READING, error);
    let SqliteFiles { database, log: path, .. } = SqliteFiles::at(database).map_err(unavailable)?;
    let Some(mut log) = if_there(File::open(&path)).map_err(unavailable)? else { return Ok(()) };
    let bytes = log.metadata().map_err(unavailable)?.len();
    if bytes > 0 && is_gone(&database).map_err(unavailable)? {
        let problem = format!(
            "it is gone or empty, and its log `{}` is not, which SQLite would remove without a word",
            path.display()
        );
        let way_out = "restore both from a copy, or move the log away to begin with nothing";
        return Err(Error::Damaged { problem, way_out });
    }
    if bytes >= TOLD_FROM_BYTES {
        tracing::info!(log = %path.display(), bytes, "the write-ahead log of the database is read before it is opened");
    }
    let Some(at) = damage(&mut log).map_err(unavailable)? else { return Ok(()) };
    let problem = format!(
        "its log `{}` is broken at byte {at}, and SQLite would leave out what was stored after that",
        path.display()
    );
    Err(Error::damaged(problem))
}

/// Whether the file of a database that has a log is not there, or without its first page.
fn is_gone(database: &Path) -> io::Result<bool> {
    Ok(if_there(database.metadata())?.is_none_or(|file| file.len() == 0))
}

type Head = [u8; HEAD_BYTES];

/// Where a log is damaged. Whoever writes it while it is read makes it look so, but never twice at one place under one head:
/// what is found behind the place was written after the place was whole, and stays so until there is a new head.
fn damage(log: &mut (impl Read + Seek)) -> io::Result<Option<u64>> {
    let mut before = None;
    for _ in 0..LOOKS_MAX {
        let Some(head) = head(log)? else { return Ok(None) };
        let Some(at) = broken_at(log, &head)? else { return Ok(None) };
        if before == Some((head, at)) && self::head(log)? == Some(head) {
            return Ok(Some(at));
        }
        before = Some((head, at));
    }
    Err(io::Error::other("another program writes it so often that it cannot be judged: end that program"))
}

/// The head of a log, if it is long enough to have one.
fn head(log: &mut (impl Read + Seek)) -> io::Result<Option<Head>> {
    log.seek(SeekFrom::Start(0))?;
    let mut head = [0; HEAD_BYTES];
    Ok(is_filled(log, &mut head)?.then_some(head))
}

/// Whether there was enough left to fill `bytes`.
fn is_filled(log: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The byte at which the first part of a log begins that is not whole, if there is a witness that it was.
fn broken_at(log: &mut (impl Read + Seek), head: &Head) -> io::Result<Option<u64>> {
    if let Some(format) = Format::of(head) {
        return broken_frame_at(&mut Frames::new(log, format)?, head);
    }
    Ok(has_more(log)?.then_some(0))
}

/// Whether there is more than a head. Room that a file system gave and nobody filled is zeros.
fn has_more(log: &mut (impl Read + Seek)) -> io::Result<bool> {
    log.seek(SeekFrom::Start(HEAD_BYTES as u64))?;
    let mut log = BufReader::with_capacity(READ_BYTES, log);
    loop {
        let bytes = log.fill_buf()?;
        if bytes.is_empty() || bytes.iter().any(|byte| *byte != 0) {
            return Ok(!bytes.is_empty());
        }
        let length = bytes.len();
        log.consume(length);
    }
}

/// The first frame that is not whole, if a later one goes on from a later commit.
fn broken_frame_at(frames: &mut Frames<impl Read>, head: &Head) -> io::Result<Option<u64>> {
    let (salts, mut sum) = (pair(head, 16), pair(head, 24));
    let (mut broken, mut has_committed) = (None, false);
    while frames.read()? {
        // Those with other salts are of an earlier generation.
        let is_whole = frames.salts() == salts && frames.follows(sum);
        if is_whole && has_committed && broken.is_some() {
            return Ok(broken);
        }
        if !is_whole {
            broken.get_or_insert(frames.at);
        }
        has_committed = is_whole && frames.commits();
        sum = frames.sum();
    }
    Ok(None)
}

/// How a log is written.
#[derive(Debug, Clone, Copy)]
struct Format {
    is_big_endian: bool,
    page_bytes: u32,
}

impl Format {
    /// What a head says, if that is whole.
    fn of(head: &Head) -> Option<Self> {
        let (magic, page_bytes) = (number(head, 0), number(head, 8));
        let format = Self { is_big_endian: magic & 1 == 1, page_bytes };
        let has_pages = page_bytes.is_power_of_two() && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes);
        let is_whole = magic & !1 == MAGIC && has_pages && format.sum([0, 0], &head[..24]) == pair(head, 24);
        is_whole.then_some(format)
    }

    /// The checksum of a multiple of 8 bytes (4.2), which goes on from another.
    fn sum(self, start: [u32; 2], bytes: &[u8]) -> [u32; 2] {
        let word = |bytes| if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        let (words, _) = bytes.as_chunks();
        let (pairs, _) = words.as_chunks();
        pairs.iter().fold(start, |[a, b], [first, second]| {
            let a = a.wrapping_add(word(*first)).wrapping_add(b);
            [a, b.wrapping_add(word(*second)).wrapping_add(a)]
        })
    }
}

/// The frames of a log, one at a time.
struct Frames<R> {
    log: R,
    format: Format,
    /// Where the one that was read begins.
    at: u64,
    /// Where the next one begins.
    next_at: u64,
    bytes: Vec<u8>,
}

impl<'a, R: Read + Seek> Frames<BufReader<&'a mut R>> {
    fn new(log: &'a mut R, format: Format) -> io::Result<Self> {
        let at = log.seek(SeekFrom::Start(HEAD_BYTES as u64))?;
        let bytes = vec![0; FRAME_HEAD_BYTES + format.page_bytes as usize];
        Ok(Self { log: BufReader::with_capacity(READ_BYTES, log), format, at, next_at: at, bytes })
    }
}

impl<R: Read> Frames<R> {
    /// Reads the next one, if all of it is there.
    fn read(&mut self) -> io::Result<bool> {
        self.at = self.next_at;
        self.next_at += self.bytes.len() as u64;
        is_filled(&mut self.log, &mut self.bytes)
    }

    /// Whether it is the last of its transaction.
    fn commits(&self) -> bool {
        number(&self.bytes, 4) != 0
    }

    fn salts(&self) -> [u32; 2] {
        pair(&self.bytes, 8)
    }

    /// The checksum that is stored in it.
    fn sum(&self) -> [u32; 2] {
        pair(&self.bytes, 16)
    }

    /// Whether it is whole, and the next after one with the checksum `before`.
    fn follows(&self, before: [u32; 2]) -> bool {
        let sum = self.format.sum(before, &self.bytes[..8]);
        number(&self.bytes, 0) != 0 && self.format.sum(sum, &self.bytes[FRAME_HEAD_BYTES..]) == self.sum()
    }
}

/// Numbers are big-endian, whatever the words of checksums are.
fn number(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn pair(bytes: &[u8], at: usize) -> [u32; 2] {
    [number(bytes, at), number(bytes, at + 4)]
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
