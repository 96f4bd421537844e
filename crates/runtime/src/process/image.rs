//! Images from tar archives: unpacked once, under the digest of the archive.
//!
//! The archive is hostile. Every name is resolved within the image's folder (RESOLVE_IN_ROOT): neither `..` nor a link of the
//! archive leads out. Devices, sockets and extended attributes are left out; entries and bytes have limits. An image appears
//! under its digest only when it is whole, and is never changed afterwards. What the archive says about owners and set-id
//! bits is kept for a privileged agent only, whose folders no user of the host may enter.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, flock,
        linkat, mkdirat, openat, openat2, symlinkat, unlinkat,
    },
    io::Errno,
};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::lend::Lent;
use crate::{Context, Error};

/// The most entries of an archive.
const ENTRIES_MAX: u64 = 4_000_000;
/// The most bytes that an archive may unpack to.
const BYTES_MAX: u64 = 256 * 1024 * 1024 * 1024;
/// The deepest path.
const DEPTH_MAX: usize = 256;
/// The largest owner: one that the workload has.
const OWNER_MAX: u64 = 65_535;
const COPY_BYTES: usize = 256 * 1024;
/// Beginnings of compressed files, which are no archives yet.
const COMPRESSED: &[(&str, &[u8])] =
    &[("gzip", &[0x1f, 0x8b]), ("xz", &[0xfd, b'7', b'z']), ("zstd", &[0x28, 0xb5, 0x2f, 0xfd]), ("bzip2", b"BZh")];

/// An image that is ready.
#[derive(Debug)]
pub struct Image {
    /// Its root folder.
    pub root: PathBuf,
    /// `sha256:` and the digest of the archive in hexadecimal.
    pub digest: String,
}

/// The image of an archive, unpacked if it was not yet. `owners`: whether owners and set-id bits are kept.
pub fn unpacked(images: &Path, archive: Lent, owners: bool) -> Result<Image, Error> {
    let name = archive.path.display().to_string();
    let image_error = |problem: String| Error::Image(format!("{name}: {problem}"));
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(images).context(|| format!("making {}", images.display()))?;
    let images = images.canonicalize().context(|| format!("resolving {}", images.display()))?;
    let mut file = File::open(format!("/proc/self/fd/{}", archive.fd.as_raw_fd()))
        .map_err(|error| image_error(error.to_string()))?;
    let _lock = lock(&images)?;
    let digest = digest(&images, &mut file).map_err(|error| image_error(error.to_string()))?;
    let folder = images.join(&digest);
    let root = folder.join("root");
    let digest = format!("sha256:{digest}");
    if folder.exists() {
        return Ok(Image { root, digest });
    }
    refuse_compressed(&mut file).map_err(image_error)?;
    // The lock is held, so what is there was left by an agent that ended in the middle.
    let unfinished = images.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context(|| format!("removing {}", unfinished.display()))?;
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(unfinished.join("root")).context(|| "making an image".to_owned())?;
    if let Err(error) = unpack_exactly(&unfinished.join("root"), &mut file, owners, &digest) {
        fs::remove_dir_all(&unfinished).context(|| format!("removing {}", unfinished.display()))?;
        return Err(image_error(error.to_string()));
    }
    fs::rename(&unfinished, &folder).context(|| format!("keeping {}", folder.display()))?;
    Ok(Image { root, digest })
}

/// Unpacks an archive, and checks that it is still the one with this digest.
fn unpack_exactly(root: &Path, file: &mut File, owners: bool, digest: &str) -> io::Result<()> {
    unpack(root, file.try_clone()?, owners)?;
    file.rewind()?;
    match digest.strip_prefix("sha256:") == Some(&hash(file)?) {
        true => Ok(()),
        false => Err(invalid("it was changed while it was unpacked".to_owned())),
    }
}

/// One archive at a time: a second run with the same image waits for the first one's and then finds it.
fn lock(images: &Path) -> Result<File, Error> {
    let path = images.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.context(|| format!("opening {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// The digest of an archive. It is remembered by what changes whenever a file does, so that a known one is not read again.
fn digest(images: &Path, file: &mut File) -> io::Result<String> {
    let meta = file.metadata()?;
    let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()].map(|time| time.to_string());
    let key = format!("{}-{}-{}-{}", meta.dev(), meta.ino(), meta.size(), times.join("-"));
    let known = images.join(format!("known-{key}"));
    let well_formed = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(digest) = fs::read_to_string(&known).ok().filter(well_formed) {
        return Ok(digest);
    }
    let digest = hash(file)?;
    file.rewind()?;
    // A file that changed while it was read has other times now, and is then not remembered.
    let after = file.metadata()?;
    if (after.mtime_nsec(), after.ctime_nsec(), after.size()) == (meta.mtime_nsec(), meta.ctime_nsec(), meta.size()) {
        fs::write(known, &digest)?;
    }
    Ok(digest)
}

fn hash(file: &mut File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn refuse_compressed(file: &mut File) -> Result<(), String> {
    let mut start = Vec::new();
    let read = file.take(8).read_to_end(&mut start).and_then(|_| file.rewind());
    read.map_err(|error| error.to_string())?;
    match COMPRESSED.iter().find(|(_, magic)| start.starts_with(magic)) {
        Some((kind, _)) => Err(format!("it is compressed with {kind}; give the archive itself")),
        None => Ok(()),
    }
}

fn unpack(root: &Path, archive: File, owners: bool) -> io::Result<()> {
    let root = File::open(root)?;
    let mut unpacker = Unpacker { root: root.into(), owners, bytes: 0, skipped: 0, folders: Vec::new() };
    let mut archive = Archive::new(archive);
    let mut count = 0;
    for entry in archive.entries()? {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(invalid(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        unpacker.entry(&mut entry).map_err(|error| io::Error::new(error.kind(), format!("`{path}`: {error}")))?;
    }
    if count == 0 {
        return Err(invalid("it is empty or no tar archive".to_owned()));
    }
    unpacker.finish()?;
    if unpacker.skipped > 0 {
        tracing::info!(skipped = unpacker.skipped, "devices and the like of an archive were left out");
    }
    Ok(())
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

struct Unpacker {
    root: OwnedFd,
    owners: bool,
    bytes: u64,
    skipped: u64,
    /// Folders and their modes, which are set last: a folder may be one that its owner cannot write to.
    folders: Vec<(Vec<u8>, u32)>,
}

/// Owner and mode of an entry, as far as they are kept.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Unpacker {
    fn entry(&mut self, entry: &mut Entry<'_, File>) -> io::Result<()> {
        let path = clean(&entry.path_bytes())?;
        let attributes = self.attributes(entry)?;
        let Some((name, parent)) = path.split_last() else {
            // The root itself.
            self.folders.push((b".".to_vec(), attributes.mode));
            return Ok(());
        };
        let parent = self.parent(parent)?;
        match entry.header().entry_type() {
            EntryType::Directory => self.folder(&parent, name, &path, &attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&parent, name, entry, &attributes)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| invalid("a link without a target".to_owned()))?;
                clear(&parent, name)?;
                symlinkat(&*target, &parent, name.as_slice())?;
                self.own(&parent, name, &attributes)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| invalid("a link without a target".to_owned()))?;
                self.hard_link(&parent, name, &clean(&target)?)
            }
            EntryType::Fifo => {
                clear(&parent, name)?;
                rustix::fs::mknodat(&parent, name.as_slice(), FileType::Fifo, Mode::from_raw_mode(attributes.mode), 0)?;
                self.own(&parent, name, &attributes)
            }
            _ => {
                self.skipped += 1;
                Ok(())
            }
        }
    }

    fn attributes(&self, entry: &Entry<'_, File>) -> io::Result<Attributes> {
        let mode = entry.header().mode()? & 0o7777;
        if !self.owners {
            // Without owners, bits that lend them would lend those of the agent's user. The agent has to read it all.
            return Ok(Attributes { uid: 0, gid: 0, mode: mode & 0o1777 | 0o400 });
        }
        let [uid, gid] = [entry.header().uid()?, entry.header().gid()?];
        if uid > OWNER_MAX || gid > OWNER_MAX {
            return Err(invalid(format!("its owner {uid}:{gid} is above {OWNER_MAX}")));
        }
        Ok(Attributes { uid: uid as u32, gid: gid as u32, mode })
    }

    fn open(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    /// The folder of these names, made where it is missing.
    fn parent(&self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let path = if names.is_empty() { b".".to_vec() } else { names.join(&b'/') };
        match self.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut at = self.open(b".")?;
        for depth in 1..=names.len() {
            let name = names[depth - 1].as_slice();
            match mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            at = self.open(&names[..depth].join(&b'/'))?;
        }
        Ok(at)
    }

    fn folder(&mut self, parent: &OwnedFd, name: &[u8], path: &[Vec<u8>], attributes: &Attributes) -> io::Result<()> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {}
            Ok(_) => {
                unlinkat(parent, name, AtFlags::empty())?;
                mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            }
            Err(_) => mkdirat(parent, name, Mode::from_raw_mode(0o755))?,
        }
        self.own(parent, name, attributes)?;
        self.folders.push((path.join(&b'/'), attributes.mode));
        Ok(())
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &mut Entry<'_, File>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        clear(parent, name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
        let left = BYTES_MAX.saturating_sub(self.bytes);
        let copied = io::copy(&mut entry.take(left.saturating_add(1)), &mut file)?;
        if copied > left {
            return Err(invalid(format!("it unpacks to more than {BYTES_MAX} bytes")));
        }
        self.bytes += copied;
        file.flush()?;
        if self.owners {
            fchown(&file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
        }
        // After the owner: a change of owner clears set-id bits.
        Ok(fchmod(&file, Mode::from_raw_mode(attributes.mode))?)
    }

    fn hard_link(&self, parent: &OwnedFd, name: &[u8], target: &[Vec<u8>]) -> io::Result<()> {
        let Some((target_name, target_parent)) = target.split_last() else {
            return Err(invalid("a link to the root".to_owned()));
        };
        let from = self.open(&if target_parent.is_empty() { b".".to_vec() } else { target_parent.join(&b'/') })?;
        clear(parent, name)?;
        // Not following a symbolic link at the end: the link gets a second name instead.
        Ok(linkat(&from, target_name.as_slice(), parent, name, AtFlags::empty())?)
    }

    fn own(&self, parent: &OwnedFd, name: &[u8], attributes: &Attributes) -> io::Result<()> {
        if !self.owners {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the modes of folders, the deepest first.
    fn finish(&mut self) -> io::Result<()> {
        let own_access = if self.owners { 0 } else { 0o700 };
        for (path, mode) in self.folders.drain(..).rev() {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match openat2(&self.root, path.as_slice(), flags, Mode::empty(), resolve) {
                Ok(folder) => fchmod(&folder, Mode::from_raw_mode(mode | own_access))?,
                // A later entry put something else in its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Removes what an earlier entry put under a name, unless it is a folder.
fn clear(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The names of a path; `.` and a leading `/` are dropped, `..` is refused.
fn clean(path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(invalid("it leads upwards".to_owned())),
            name if name.contains(&0) => return Err(invalid("its name has a NUL byte".to_owned())),
            name => names.push(name.to_vec()),
        }
    }
    if names.len() > DEPTH_MAX {
        return Err(invalid(format!("it is deeper than {DEPTH_MAX} folders")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{
        Lend,
        guard::{Guards, Shown},
        lend::{Lending, lend},
    };
    use tar::{Builder, Header};

    struct Case {
        dir: tempfile::TempDir,
        builder: Builder<Vec<u8>>,
    }

    impl Case {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), builder: Builder::new(Vec::new()) }
        }

        /// An entry whose name is written as it is; the library refuses hostile ones.
        fn add(&mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &str) -> &mut Self {
            let mut header = Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(content.len() as u64);
            header.set_cksum();
            self.builder.append(&header, content.as_bytes()).unwrap();
            self
        }

        fn unpack(self) -> (tempfile::TempDir, Result<Image, Error>) {
            let path = self.dir.path().join("image.tar");
            fs::write(&path, self.builder.into_inner().unwrap()).unwrap();
            let image = unpack_file(self.dir.path(), &path);
            (self.dir, image)
        }
    }

    fn unpack_file(dir: &Path, path: &Path) -> Result<Image, Error> {
        let lends = [Lend { prefix: dir.to_owned(), write: false }];
        let view = Guards::new(&[]).look().unwrap();
        let lending = Lending { lends: &lends, view: &view };
        unpacked(&dir.join("images"), lend(lending, path, false, Shown::Layer).unwrap(), false)
    }

    fn problem(image: Result<Image, Error>) -> String {
        image.unwrap_err().to_string()
    }

    #[test]
    fn files_links_and_modes_arrive() {
        let mut case = Case::new();
        case.add(EntryType::Directory, "closed/", "", 0o555, "");
        case.add(EntryType::Regular, "./closed/file", "", 0o4755, "hello");
        case.add(EntryType::Symlink, "link", "/closed", 0o777, "");
        case.add(EntryType::Regular, "link/through", "", 0o644, "by a link inside");
        case.add(EntryType::Link, "hard", "closed/file", 0o644, "");
        case.add(EntryType::Char, "device", "", 0o666, "");
        case.add(EntryType::Regular, "missing/folders/file", "", 0o644, "");
        let (dir, image) = case.unpack();
        let image = image.unwrap();
        let mode = |name: &str| image.root.join(name).symlink_metadata().unwrap().mode() & 0o7777;
        assert_eq!(fs::read_to_string(image.root.join("closed/file")).unwrap(), "hello");
        assert_eq!(mode("closed/file"), 0o755, "set-id bits are dropped without owners");
        assert_eq!(mode("closed"), 0o755);
        assert!(image.root.join("closed/through").exists() && image.root.join("missing/folders/file").exists());
        assert_eq!(fs::metadata(image.root.join("hard")).unwrap().nlink(), 2);
        assert!(!image.root.join("device").exists());
        let tar = fs::read(dir.path().join("image.tar")).unwrap();
        let digest: String = Sha256::digest(&tar).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(image.digest, format!("sha256:{digest}"));
        fs::write(image.root.join("marker"), "").unwrap();
        let again = unpack_file(dir.path(), &dir.path().join("image.tar")).unwrap();
        assert!(again.root.join("marker").exists(), "it was unpacked a second time");
    }

    #[test]
    fn nothing_leads_out() {
        for name in ["../escaped", "a/../../escaped"] {
            let mut case = Case::new();
            case.add(EntryType::Regular, name, "", 0o644, "x");
            let (dir, image) = case.unpack();
            assert!(problem(image).contains("leads upwards"));
            assert!(!dir.path().join("escaped").exists() && !dir.path().join("images/escaped").exists());
        }
        let outside = tempfile::tempdir().unwrap();
        let out = outside.path().to_str().unwrap();
        let mut case = Case::new();
        case.add(EntryType::Symlink, "out", out, 0o777, "");
        case.add(EntryType::Symlink, "up", "../../../../../../../../../..", 0o777, "");
        case.add(EntryType::Regular, "up/tmp/holm-escaped-by-a-link", "", 0o644, "x");
        case.add(EntryType::Regular, "/absolute", "", 0o644, "x");
        let (_dir, image) = case.unpack();
        let image = image.unwrap();
        assert!(image.root.join("absolute").exists() && image.root.join("tmp/holm-escaped-by-a-link").exists());
        assert!(!Path::new("/tmp/holm-escaped-by-a-link").exists());
        let mut case = Case::new();
        case.add(EntryType::Symlink, "out", out, 0o777, "");
        case.add(EntryType::Regular, "out/escaped", "", 0o644, "x");
        // The link leads to a path that does not exist within the image.
        assert!(case.unpack().1.is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let mut case = Case::new();
        case.add(EntryType::Link, "shadow", "/etc/shadow", 0o644, "");
        assert!(case.unpack().1.is_err());
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        for (content, expected) in [(&[0x1f, 0x8b, 8, 0][..], "gzip"), (b"", "empty"), (&[7; 2048], "")] {
            fs::write(&path, content).unwrap();
            let problem = problem(unpack_file(dir.path(), &path));
            assert!(problem.contains(expected), "{problem}");
        }
        let images: Vec<_> = fs::read_dir(dir.path().join("images")).unwrap().map(|e| e.unwrap().file_name()).collect();
        let other = |name: &str| name == "lock" || name.starts_with("known-");
        assert!(images.iter().all(|name| name.to_str().is_some_and(other)), "{images:?}");
    }
}
