//! Images from tar archives: unpacked once, under the digest of the archive.
//!
//! What always holds: an image stands under its digest only when it is whole and on the disk, and is never changed
//! afterwards; the bytes that were unpacked are the bytes that the digest was taken of; whoever uses an image or makes it
//! holds its lock, which goes to the shim and lasts as long as that, so nothing in use is ever removed. What is half made
//! is not an image, and is removed by whoever made it or, after a crash, by the next pass ([`Images::tidy`]). The images of
//! the host ([`super::host_root`]) stand beside them under digests of what they show.
//!
//! | in the folder | is |
//! |---|---|
//! | `DIGEST/root`, `DIGEST/bytes` | an image, and what it takes of the budget |
//! | `DIGEST.lock` | shared by users, exclusive for makers and removers; its time is that of the last use |
//! | `unfinished-DIGEST`, `gone-DIGEST` | on its way in, or out |
//! | `known/KEY` | the digest of an archive that was read before |

mod digest;
mod lock;
mod shelf;
#[cfg(test)]
mod tests;
mod unpack;

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::syncfs;

use super::lend::Lent;
use crate::{Context, Error, Stop, archive::Limits, crash::effect};
use lock::Lock;

/// How much of an archive is taken.
pub const LIMITS: Limits = Limits {
    entries: 2_000_000,
    bytes: 64 * 1024 * 1024 * 1024,
    path_bytes: 4_096,
    depth: 256,
    description_bytes: 1024 * 1024,
};
/// How long it may take until an image is ready, the wait for others that make the same one included.
pub const READY_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Beginnings of compressed files, which are no archives yet.
const COMPRESSED: &[(&str, &[u8])] =
    &[("gzip", &[0x1f, 0x8b]), ("xz", &[0xfd, b'7', b'z']), ("zstd", &[0x28, 0xb5, 0x2f, 0xfd]), ("bzip2", b"BZh")];

/// How much of unpacked images is kept when no sandbox uses them. A new image may exceed it until the next pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The most bytes of all images together.
    pub bytes: u64,
    /// The most images.
    pub count: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: 64 * 1024 * 1024 * 1024, count: 64 }
    }
}

/// An image that is ready.
#[derive(Debug)]
pub struct Image {
    /// Its root folder.
    pub root: PathBuf,
    /// `sha256:` and the digest of the archive in hexadecimal.
    pub digest: String,
    /// As long as it is open anywhere, the image stays.
    pub lock: OwnedFd,
}

/// The unpacked images of an agent.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
    budget: Budget,
    limits: Limits,
}

/// Whether somebody still waits for the image.
pub struct Watch<'a> {
    stop: &'a Stop,
    until: Instant,
}

impl Watch<'_> {
    /// An error once nobody does. Its kind is none that is tried again.
    fn check(&self) -> io::Result<()> {
        if self.stop.is_stopped() {
            return Err(io::Error::other("it was stopped"));
        }
        if Instant::now() < self.until {
            return Ok(());
        }
        let problem = format!("it was not unpacked within {} s", READY_WITHIN.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, problem))
    }
}

impl Images {
    /// The images in a folder, which is made when it is needed.
    pub fn new(dir: &Path, budget: Budget) -> Self {
        Self { dir: dir.to_owned(), budget, limits: LIMITS }
    }

    /// The image of an archive, unpacked if it was not yet. `owners`: whether owners and set-id bits are kept.
    pub fn get(&self, archive: &Lent, owners: bool, stop: &Stop) -> Result<Image, Error> {
        let watch = Watch { stop, until: Instant::now() + READY_WITHIN };
        let result = self.get_watched(archive, owners, &watch);
        result.map_err(|error| match error {
            _ if stop.is_stopped() => Error::Stopped,
            Error::Image(problem) => Error::Image(format!("{}: {problem}", archive.path.display())),
            other => other,
        })
    }

    fn get_watched(&self, archive: &Lent, owners: bool, watch: &Watch<'_>) -> Result<Image, Error> {
        let dir = self.open_dir()?;
        let mut file = File::open(format!("/proc/self/fd/{}", archive.fd.as_raw_fd())).map_err(image)?;
        let digest = digest::digest(&dir.join("known"), &mut file, watch).map_err(image)?;
        self.get_made(&dir, &digest, watch, |unfinished| {
            refuse_compressed(&mut file)?;
            self.fill(unfinished, &digest, &mut file, owners, watch)?;
            // Contents before the name: a power cut leaves all or nothing.
            let dir_file = File::open(&dir).context(|| format!("opening {}", dir.display()))?;
            syncfs(&dir_file).context(|| format!("writing {} to the disk", unfinished.display()))
        })
    }

    /// The image of a digest that no power cut outlives, filled by `fill` if it is not there yet: `fill` gets its root folder,
    /// and returns the bytes that it takes.
    pub fn get_passing(
        &self,
        digest: &str,
        stop: &Stop,
        fill: impl Fn(&Path) -> io::Result<u64>,
    ) -> Result<Image, Error> {
        let watch = Watch { stop, until: Instant::now() + READY_WITHIN };
        let dir = self.open_dir()?;
        self.get_made(&dir, digest, &watch, |unfinished| {
            let root = make_root(unfinished)?;
            let bytes = fill(&root).context(|| format!("making {}", root.display()))?;
            write_size(unfinished, bytes)
        })
    }

    fn get_made(
        &self,
        dir: &Path,
        digest: &str,
        watch: &Watch<'_>,
        mut fill: impl FnMut(&Path) -> Result<(), Error>,
    ) -> Result<Image, Error> {
        let mut lock = Lock::open(dir, digest)?;
        let is_there = || shelf::size_of(dir, digest).is_some();
        loop {
            lock.share(watch)?;
            if is_there() {
                lock.touch()?;
                let root = dir.join(digest).join("root");
                return Ok(Image { root, digest: format!("sha256:{digest}"), lock: lock.into() });
            }
            // Another one may make it while this one waits, and use it from then on for as long as it likes.
            if lock.own(watch, is_there)? && !is_there() {
                make(dir, digest, watch, &mut fill)?;
            }
        }
    }

    fn open_dir(&self) -> Result<PathBuf, Error> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let made = builder.create(&self.dir).and_then(|()| builder.create(self.dir.join("known")));
        made.context(|| format!("making {}", self.dir.display()))?;
        self.dir.canonicalize().context(|| format!("resolving {}", self.dir.display()))
    }

    fn fill(
        &self,
        unfinished: &Path,
        digest: &str,
        file: &mut File,
        owners: bool,
        watch: &Watch<'_>,
    ) -> Result<(), Error> {
        let root = make_root(unfinished)?;
        let unpacked = unpack::unpack(&root, file, &self.limits, owners, watch);
        let unpacked = unpacked.map_err(|problem| Error::Image(problem.to_string()))?;
        if unpacked.digest != digest {
            return Err(Error::Image("it was changed while it was unpacked".to_owned()));
        }
        write_size(unfinished, unpacked.bytes)
    }
}

/// Makes the image of `digest`, whose lock the caller owns: whole, or not at all.
fn make(
    dir: &Path,
    digest: &str,
    watch: &Watch<'_>,
    fill: &mut impl FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let [unfinished, folder] = [format!("unfinished-{digest}"), digest.to_owned()].map(|name| dir.join(name));
    shelf::remove(&unfinished)?;
    shelf::discard(dir, digest)?;
    let made = effect("image.fill", || fill(&unfinished)).and_then(|()| {
        watch.check().map_err(image)?;
        let kept = effect("image.keep", || fs::rename(&unfinished, &folder));
        kept.context(|| format!("keeping {}", folder.display()))?;
        // The name before anybody relies on it.
        let dir_file = File::open(dir).context(|| format!("opening {}", dir.display()))?;
        dir_file.sync_all().context(|| format!("writing {} to the disk", dir.display()))
    });
    if made.is_err() {
        shelf::remove(&unfinished)?;
    }
    made
}

fn make_root(unfinished: &Path) -> Result<PathBuf, Error> {
    let root = unfinished.join("root");
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(&root).context(|| format!("making {}", root.display()))?;
    Ok(root)
}

/// What it takes of the budget.
fn write_size(unfinished: &Path, bytes: u64) -> Result<(), Error> {
    let size = unfinished.join("bytes");
    // Effect: `image.fill`.
    fs::write(&size, bytes.to_string()).context(|| format!("writing {}", size.display()))
}

fn image(error: io::Error) -> Error {
    Error::Image(error.to_string())
}

fn refuse_compressed(file: &mut File) -> Result<(), Error> {
    let mut start = Vec::new();
    file.rewind().and_then(|()| file.take(8).read_to_end(&mut start)).and_then(|_| file.rewind()).map_err(image)?;
    match COMPRESSED.iter().find(|(_, magic)| start.starts_with(magic)) {
        Some((kind, _)) => Err(Error::Image(format!("it is compressed with {kind}; give the archive itself"))),
        None => Ok(()),
    }
}
