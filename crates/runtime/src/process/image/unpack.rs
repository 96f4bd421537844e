//! Unpacks an archive into a folder that nobody else knows of yet.
//!
//! Every name is resolved within that folder (RESOLVE_IN_ROOT): neither `..` nor a link of the archive leads out. Left out
//! are devices, because a sandbox has its own and could not use these, and extended attributes with file capabilities and
//! access control lists among them. What the archive says about owners and set-id bits is kept for a privileged agent only,
//! whose folders no user of the host may enter.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fchmod, fchown, linkat, mkdirat,
        openat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};
use sha2::{Digest, Sha256};

use super::{Watch, digest::hexadecimal};
use crate::{
    archive::{Entry, Kind, Limits, Name, Problem, Reader},
    below::open_below,
};

/// The largest owner: one that the workload has.
const OWNER_MAX: u64 = 65_535;
/// What an entry takes besides its bytes, roughly.
const ENTRY_BYTES: u64 = 4_096;
const BUFFER_BYTES: usize = 64 * 1024;

/// What came out of an archive.
#[derive(Debug)]
pub struct Unpacked {
    /// The digest of all bytes of the archive, as they were read for this.
    pub digest: String,
    /// How much it takes on the disk, roughly.
    pub bytes: u64,
}

/// The archive, with the digest of what was read of it.
struct Source<'a> {
    file: &'a mut File,
    hash: Sha256,
    watch: &'a Watch<'a>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watch.check()?;
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

type Archive<'a> = Reader<BufReader<Source<'a>>>;

/// Unpacks `file`, from its beginning, into the folder `root`.
pub fn unpack(
    root: &Path,
    file: &mut File,
    limits: &Limits,
    owners: bool,
    watch: &Watch<'_>,
) -> Result<Unpacked, Problem> {
    let root = File::open(root).map_err(Problem::Read)?.into();
    let source = Source { file, hash: Sha256::new(), watch };
    let mut archive = Reader::new(BufReader::with_capacity(BUFFER_BYTES, source), *limits);
    let mut unpacker =
        Unpacker { root, owners, entries_max: limits.entries, entries: 0, bytes: 0, devices: 0, attributes: 0 };
    let mut is_empty = true;
    while let Some(entry) = archive.next_entry()? {
        is_empty = false;
        watch.check().map_err(Problem::Read)?;
        unpacker.entry(&entry, &mut archive)?;
    }
    if is_empty {
        return Err(Problem::Damaged("it is empty"));
    }
    let Unpacker { devices, attributes, bytes, entries, .. } = unpacker;
    if devices > 0 || attributes > 0 {
        tracing::info!(devices, attributes, "devices and extended attributes of an archive were left out");
    }
    let mut rest = archive.into_source();
    io::copy(&mut rest, &mut io::sink()).map_err(Problem::Read)?;
    let bytes = bytes.saturating_add(entries.saturating_mul(ENTRY_BYTES));
    Ok(Unpacked { digest: hexadecimal(rest.into_inner().hash), bytes })
}

struct Unpacker {
    root: OwnedFd,
    owners: bool,
    /// The most files and folders; folders that the archive does not name count as well.
    entries_max: u64,
    entries: u64,
    bytes: u64,
    devices: u64,
    attributes: u64,
}

/// Owner and mode of an entry, as far as they are kept.
struct Attributes {
    owner: Option<(Uid, Gid)>,
    mode: Mode,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, archive: &mut Archive<'_>) -> Result<(), Problem> {
        let refuse = |problem: &str| Problem::of(&entry.name.path(), problem);
        let attributes = self.attributes(entry)?;
        self.attributes += entry.attributes.len() as u64;
        let Some((name, parent)) = entry.name.names.split_last() else {
            return match entry.kind {
                Kind::Folder => dress(&self.root, &attributes).map_err(|error| written(entry, error)),
                Kind::Remark => Ok(()),
                _ => Err(refuse("is the root and no folder")),
            };
        };
        match &entry.kind {
            Kind::CharDevice(..) | Kind::BlockDevice => {
                self.devices += 1;
                return Ok(());
            }
            Kind::Remark => return Ok(()),
            Kind::Other(flag) => {
                return Err(refuse(&format!("is of a kind that is not taken (`{}`)", flag.escape_ascii())));
            }
            _ => {}
        }
        let parent = self.parent(parent).map_err(|error| written(entry, error))?;
        self.count().map_err(|error| written(entry, error))?;
        let made = match &entry.kind {
            Kind::File => return self.file(&parent, name, entry, &attributes, archive),
            Kind::Folder => folder(&parent, name, &attributes),
            Kind::Symlink(target) => clear(&parent, name)
                .and_then(|()| Ok(symlinkat(target.as_slice(), &parent, name.as_slice())?))
                .and_then(|()| own(&parent, name, &attributes)),
            Kind::HardLink(target) => self.hard_link(&parent, name, target),
            _ => clear(&parent, name).and_then(|()| fifo(&parent, name, &attributes)),
        };
        made.map_err(|error| written(entry, error))
    }

    fn attributes(&self, entry: &Entry) -> Result<Attributes, Problem> {
        let mode = entry.mode;
        if !self.owners {
            // Without owners, bits that lend them would lend those of the agent's user. The agent has to read it all.
            let needed = if entry.kind == Kind::Folder { 0o700 } else { 0o400 };
            return Ok(Attributes { owner: None, mode: Mode::from_raw_mode(mode & 0o1777 | needed) });
        }
        let (uid, gid) = (entry.uid, entry.gid);
        if uid > OWNER_MAX || gid > OWNER_MAX {
            return Err(Problem::of(
                &entry.name.path(),
                format!("has the owner {uid}:{gid}, which is above {OWNER_MAX}"),
            ));
        }
        let owner = Some((Uid::from_raw(uid as u32), Gid::from_raw(gid as u32)));
        Ok(Attributes { owner, mode: Mode::from_raw_mode(mode) })
    }

    fn count(&mut self) -> io::Result<()> {
        self.entries += 1;
        match self.entries > self.entries_max {
            true => Err(io::Error::other(format!("there are more than {} files and folders", self.entries_max))),
            false => Ok(()),
        }
    }

    fn open(&self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let path = if names.is_empty() { b".".to_vec() } else { names.join(&b'/') };
        Ok(open_below(&self.root, path.as_slice(), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::IN_ROOT)?)
    }

    /// The folder of these names, made where it is missing.
    fn parent(&mut self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        match self.open(names) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut at = self.open(&[])?;
        for depth in 1..=names.len() {
            match mkdirat(&at, names[depth - 1].as_slice(), Mode::from_raw_mode(0o755)) {
                Ok(()) => self.count()?,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            at = self.open(&names[..depth])?;
        }
        Ok(at)
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        attributes: &Attributes,
        archive: &mut Archive<'_>,
    ) -> Result<(), Problem> {
        let create = || -> io::Result<File> {
            clear(parent, name)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?.into())
        };
        let mut file = create().map_err(|error| written(entry, error))?;
        self.bytes += archive.copy(entry, &mut file)?;
        dress(&file, attributes).map_err(|error| written(entry, error))
    }

    fn hard_link(&self, parent: &OwnedFd, name: &[u8], target: &Name) -> io::Result<()> {
        let Some((target_name, target_parent)) = target.names.split_last() else {
            return Err(io::Error::other("it is a link to the root"));
        };
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), format!("it is a link to `{target}`, which is not there"))
            }
            _ => error,
        };
        let from = self.open(target_parent).map_err(missing)?;
        let is_itself = statat(&from, target_name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| missing(errno.into()))
            .map(|there| {
                statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|here| (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
            })?;
        if is_itself {
            return Ok(());
        }
        clear(parent, name)?;
        // Not following a symbolic link at the end: the link gets a second name instead.
        Ok(linkat(&from, target_name.as_slice(), parent, name, AtFlags::empty())?)
    }
}

fn written(entry: &Entry, error: io::Error) -> Problem {
    Problem::Write { path: entry.name.to_string(), error }
}

/// A folder, in place of whatever else an earlier entry put there.
fn folder(parent: &OwnedFd, name: &[u8], attributes: &Attributes) -> io::Result<()> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if !FileType::from_raw_mode(there.st_mode).is_dir() {
                unlinkat(parent, name, AtFlags::empty())?;
                mkdirat(parent, name, Mode::RWXU)?;
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    dress(&open_below(parent, name, OFlags::RDONLY | OFlags::DIRECTORY, resolve)?, attributes)
}

fn fifo(parent: &OwnedFd, name: &[u8], attributes: &Attributes) -> io::Result<()> {
    rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR, 0)?;
    own(parent, name, attributes)?;
    // It was made a moment ago in a folder that nobody else knows of: it is no link.
    Ok(chmodat(parent, name, attributes.mode, AtFlags::empty())?)
}

/// Gives what is open its owner and its mode. The mode comes last: a change of owner clears set-id bits.
fn dress(file: impl std::os::fd::AsFd, attributes: &Attributes) -> io::Result<()> {
    if let Some((uid, gid)) = attributes.owner {
        fchown(&file, Some(uid), Some(gid))?;
    }
    // What is opened with O_PATH has no mode to set; the root is opened for reading.
    Ok(fchmod(file, attributes.mode)?)
}

fn own(parent: &OwnedFd, name: &[u8], attributes: &Attributes) -> io::Result<()> {
    match attributes.owner {
        Some((uid, gid)) => Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?),
        None => Ok(()),
    }
}

/// Removes what an earlier entry put under a name, unless it is a folder.
fn clear(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Err(io::Error::other("an earlier entry made a folder there")),
        Err(errno) => Err(errno.into()),
    }
}
