//! The one reader of tar archives that come from others: root file systems, and what a run changed in its work dir.
//!
//! The archive is hostile. What always holds: nothing is kept in memory that has no limit ([`Limits`]); a number that is
//! negative or too large, a name with a NUL byte or `..`, a description that contradicts itself and an archive that is cut
//! off are errors, never guesses; no more bytes come out of an entry than were announced and counted beforehand.
//!
//! It reads ustar, pax (POSIX.1-2017, pax, "Extended Header") and GNU archives. Deliberately left out: sparse files in pax
//! form and multi-volume archives, which are refused; what an entry may do where it is unpacked, which is its reader's
//! business; and seeking, so that a source can take a digest of every byte that counts.

mod header;
mod name;
mod pax;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

pub use name::{Name, shown};

use header::{Block, Segment};

/// The unit of a tar archive, in bytes.
pub(crate) const BLOCK_BYTES: usize = 512;
const COPY_BYTES: usize = 256 * 1024;

/// How much of an archive is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most entries; pieces that describe all that follow count as well.
    pub entries: u64,
    /// The most bytes of all files together, holes of sparse files included.
    pub bytes: u64,
    /// The longest path or target of a link, in bytes.
    pub path_bytes: usize,
    /// The most names in a path.
    pub depth: usize,
    /// The longest piece that describes an entry (long names, pax records, the map of a sparse file), in bytes.
    pub description_bytes: u64,
}

/// Why an archive is not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The source does not give its bytes.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
    /// What should be the head of an entry is none.
    #[error("it is damaged or no tar archive: {0}")]
    Damaged(&'static str),
    /// It ends before its end.
    #[error("it is cut off, or empty")]
    CutOff,
    /// It has too many entries.
    #[error("it has more than {0} entries")]
    Entries(u64),
    /// Its files are too large.
    #[error("it unpacks to more than {0} bytes")]
    Bytes(u64),
    /// One entry cannot be taken.
    #[error("`{path}` {problem}")]
    Entry {
        /// Its path, shown.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What was in the archive could not be written.
    #[error("`{path}` cannot be written: {error}")]
    Write {
        /// The path of the entry, shown.
        path: String,
        /// Why.
        error: io::Error,
    },
}

impl Problem {
    /// What is wrong with the entry at a path.
    pub fn of(path: &[u8], problem: impl Into<String>) -> Self {
        Self::Entry { path: shown(path), problem: problem.into() }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::CutOff } else { Self::Read(error) }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link with its target, as it is written: it has at least one byte and none that is NUL.
    Symlink(Vec<u8>),
    /// One more name for an earlier entry.
    HardLink(Name),
    /// A named pipe.
    Fifo,
    /// A character device with its major and minor number.
    CharDevice(u64, u64),
    /// A block device.
    BlockDevice,
    /// Records for all entries that follow; they say nothing that matters here.
    Remark,
    /// Something with this type flag that POSIX leaves to whoever writes the archive.
    Other(u8),
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
    /// Permission and special bits, nothing above 0o7777.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// How many bytes the file has, holes included; 0 for everything else.
    pub size: u64,
    /// Extended attributes and access control lists, as the keys and values of the pax records say them.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The parts of a sparse file that are no holes.
    segments: Option<Vec<Segment>>,
}

impl Entry {
    /// Whether the file has holes.
    pub fn is_sparse(&self) -> bool {
        self.segments.is_some()
    }
}

/// Reads an archive, entry by entry.
pub struct Reader<R> {
    source: R,
    limits: Limits,
    entries: u64,
    bytes: u64,
    /// What is left of the data of the last entry, and what fills it up to a block.
    data: u64,
    padding: u64,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// A reader at the beginning of an archive.
    pub fn new(source: R, limits: Limits) -> Self {
        Self { source, limits, entries: 0, bytes: 0, data: 0, padding: 0, is_over: false }
    }

    /// The source, which is somewhere in the archive.
    pub fn into_source(self) -> R {
        self.source
    }

    /// The next entry; nothing at the end of the archive. What was not read of the entry before is passed over.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Problem> {
        let mut described = header::Description::default();
        loop {
            self.skip()?;
            let Some(block) = self.block()? else {
                return if described.is_empty() { Ok(None) } else { Err(Problem::CutOff) };
            };
            let size = block.size()?;
            match block.flag() {
                b'L' | b'K' | b'x' => {
                    let body = self.body(&block, size)?;
                    described.take(&block, body)?;
                }
                b'g' => {
                    self.count()?;
                    let body = self.body(&block, size)?;
                    let records = pax::records(&body).map_err(|problem| Problem::of(&block.path(), problem))?;
                    pax::check_global(&records).map_err(|problem| Problem::of(&block.path(), problem))?;
                }
                _ => {
                    self.count()?;
                    return self.entry(&block, size, described).map(Some);
                }
            }
        }
    }

    /// Copies the data of the last entry into a new file, and leaves the holes out. Tells how many bytes were written.
    pub fn copy(&mut self, entry: &Entry, file: &mut File) -> Result<u64, Problem> {
        let write = |error: io::Error| Problem::Write { path: entry.name.to_string(), error };
        let whole = [Segment { offset: 0, length: entry.size }];
        let mut buffer = vec![0; usize::try_from(entry.size).unwrap_or(COPY_BYTES).min(COPY_BYTES)];
        let mut copied = 0;
        for segment in entry.segments.as_deref().unwrap_or(&whole) {
            if entry.is_sparse() {
                file.seek(SeekFrom::Start(segment.offset)).map_err(write)?;
            }
            let mut left = segment.length;
            while left > 0 {
                let most = buffer.len();
                let piece = &mut buffer[..usize::try_from(left).unwrap_or(most).min(most)];
                self.read_data(piece)?;
                io::Write::write_all(file, piece).map_err(write)?;
                left -= piece.len() as u64;
                copied += piece.len() as u64;
            }
        }
        if entry.is_sparse() {
            file.set_len(entry.size).map_err(write)?;
        }
        Ok(copied)
    }

    fn entry(&mut self, block: &Block, size: u64, described: header::Description) -> Result<Entry, Problem> {
        let size = described.size()?.unwrap_or(size);
        (self.data, self.padding) = (size, padding(size));
        let segments = if block.flag() == b'S' { Some(self.sparse(block, size)?) } else { None };
        let apparent = match &segments {
            Some(_) => block.real_size()?,
            None => size,
        };
        let entry = described.entry(block, apparent, segments, &self.limits)?;
        self.bytes = self.bytes.checked_add(entry.size).ok_or(Problem::Bytes(self.limits.bytes))?;
        if self.bytes > self.limits.bytes {
            return Err(Problem::Bytes(self.limits.bytes));
        }
        Ok(entry)
    }

    /// The map of a sparse file in the old GNU form: in the head, and in blocks that follow it.
    fn sparse(&mut self, block: &Block, size: u64) -> Result<Vec<Segment>, Problem> {
        let mut segments = block.segments()?;
        let mut goes_on = block.is_extended()?;
        let mut described = 0;
        while goes_on {
            described += BLOCK_BYTES as u64;
            if described > self.limits.description_bytes {
                return Err(self.too_long(block));
            }
            let mut more = [0; BLOCK_BYTES];
            self.source.read_exact(&mut more)?;
            goes_on =
                header::more_segments(&more, &mut segments).map_err(|problem| Problem::of(&block.path(), problem))?;
        }
        header::check_segments(&segments, size, block.real_size()?)
            .map_err(|problem| Problem::of(&block.path(), problem))?;
        Ok(segments)
    }

    fn count(&mut self) -> Result<(), Problem> {
        self.entries += 1;
        if self.entries > self.limits.entries { Err(Problem::Entries(self.limits.entries)) } else { Ok(()) }
    }

    fn too_long(&self, block: &Block) -> Problem {
        let most = self.limits.description_bytes;
        Problem::of(&block.path(), format!("is described by something longer than {most} bytes"))
    }

    /// The whole of a piece that describes an entry.
    fn body(&mut self, block: &Block, size: u64) -> Result<Vec<u8>, Problem> {
        if size > self.limits.description_bytes {
            return Err(self.too_long(block));
        }
        (self.data, self.padding) = (size, padding(size));
        let mut body = vec![0; size as usize];
        self.read_data(&mut body)?;
        Ok(body)
    }

    fn read_data(&mut self, piece: &mut [u8]) -> Result<(), Problem> {
        let length = piece.len() as u64;
        self.data = self.data.checked_sub(length).ok_or(Problem::Damaged("an entry has less data than it says"))?;
        Ok(self.source.read_exact(piece)?)
    }

    fn skip(&mut self) -> Result<(), Problem> {
        let mut left = self.data.checked_add(self.padding).ok_or(Problem::CutOff)?;
        let mut buffer = [0; 16 * 1024];
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
            self.source.read_exact(&mut buffer[..piece])?;
            left -= piece as u64;
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// The next head; nothing at the block of zeros that ends an archive. Without that one the archive is cut off.
    fn block(&mut self) -> Result<Option<Block>, Problem> {
        if self.is_over {
            return Ok(None);
        }
        let mut bytes = [0; BLOCK_BYTES];
        self.source.read_exact(&mut bytes)?;
        if bytes == [0; BLOCK_BYTES] {
            self.is_over = true;
            return Ok(None);
        }
        Block::new(&bytes).map(Some)
    }
}

fn padding(size: u64) -> u64 {
    let rest = size % BLOCK_BYTES as u64;
    if rest == 0 { 0 } else { BLOCK_BYTES as u64 - rest }
}
