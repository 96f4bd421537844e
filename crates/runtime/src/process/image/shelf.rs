//! What is kept of images, and for how long.
//!
//! Least recently used images go first, and none whose lock somebody holds. What is removed is renamed before, so that a
//! crash in the middle never leaves part of an image under its digest.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
    time::SystemTime,
};

use super::{Images, lock::Lock};
use crate::{Context, Error, StepReport, crash::effect};

/// The most digests of archives that are remembered.
const KNOWN_MAX: usize = 1_024;

/// How much of the budget an image takes; nothing if there is none, or not a whole one.
pub fn size_of(dir: &Path, digest: &str) -> Option<u64> {
    let folder = dir.join(digest);
    let size = fs::read_to_string(folder.join("bytes")).ok()?.parse().ok()?;
    folder.join("root").is_dir().then_some(size)
}

/// Removes a folder with everything in it, if it is there.
pub fn remove(path: &Path) -> Result<(), Error> {
    match effect("image.remove", || fs::remove_dir_all(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
    .context(|| format!("removing {}", path.display()))
}

/// Removes what is there under a digest, whole or not. The caller owns its lock.
pub fn discard(dir: &Path, digest: &str) -> Result<(), Error> {
    let (folder, gone) = (dir.join(digest), dir.join(format!("gone-{digest}")));
    remove(&gone)?;
    match effect("image.withdraw", || fs::rename(&folder, &gone)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.context(|| format!("renaming {}", folder.display()))?,
    }
    remove(&gone)
}

/// What was found under one digest.
struct Found {
    digest: String,
    used: SystemTime,
    size: Option<u64>,
}

impl Images {
    /// Removes what nobody finishes, and images beyond the budget that nobody uses. What failed is tried again next time.
    pub fn tidy(&self) -> Vec<StepReport> {
        let mut reports = Vec::new();
        if !self.dir.exists() {
            return reports;
        }
        let mut note = |step: String, result: Result<(), Error>| {
            reports.push(StepReport { step, error: result.err().map(|error| error.to_string()) });
        };
        let found = match self.found() {
            Ok(found) => found,
            Err(error) => {
                note(format!("images in {}", self.dir.display()), Err(error));
                return reports;
            }
        };
        let mut count = found.iter().filter(|found| found.size.is_some()).count();
        let mut bytes = found.iter().filter_map(|found| found.size).fold(0u64, u64::saturating_add);
        for Found { digest, size, .. } in found {
            let is_over = count > self.budget.count || bytes > self.budget.bytes;
            match self.clear(&digest, size.is_some() && !is_over) {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(size) = size {
                        (count, bytes) = (count - 1, bytes.saturating_sub(size));
                        note(format!("image {digest}"), Ok(()));
                    }
                }
                Err(error) => note(format!("image {digest}"), Err(error)),
            }
        }
        if let Err(error) = self.forget() {
            note("digests of archives".to_owned(), Err(error));
        }
        reports
    }

    /// Every digest of which there is anything, the one that was used longest ago first.
    fn found(&self) -> Result<Vec<Found>, Error> {
        let list = || -> io::Result<Vec<Found>> {
            let mut digests = std::collections::BTreeSet::new();
            for entry in fs::read_dir(&self.dir)? {
                digests.extend(entry?.file_name().to_str().and_then(digest_of).map(str::to_owned));
            }
            let found = digests.into_iter().map(|digest| {
                let lock = fs::metadata(self.dir.join(format!("{digest}.lock")));
                let used = lock.and_then(|lock| lock.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                Found { used, size: size_of(&self.dir, &digest), digest }
            });
            Ok(found.collect())
        };
        let mut found = list().context(|| format!("looking into {}", self.dir.display()))?;
        found.sort_by_key(|found| found.used);
        Ok(found)
    }

    /// Removes what is half made or half removed under a digest, and all of it unless it is to stay; whether it did.
    fn clear(&self, digest: &str, stays: bool) -> Result<bool, Error> {
        let halves = ["unfinished", "gone"].map(|what| self.dir.join(format!("{what}-{digest}")));
        if stays && !halves.iter().any(|half| half.exists()) {
            return Ok(false);
        }
        let mut lock = Lock::open(&self.dir, digest)?;
        if !lock.try_own()? {
            return Ok(false);
        }
        halves.iter().try_for_each(|half| remove(half))?;
        if stays {
            return Ok(false);
        }
        discard(&self.dir, digest)?;
        lock.remove()?;
        Ok(true)
    }

    fn forget(&self) -> Result<(), Error> {
        let known = self.dir.join("known");
        let list = || -> io::Result<()> {
            let mut files = Vec::new();
            for entry in fs::read_dir(&known)? {
                let entry = entry?;
                files.push((entry.metadata()?.modified()?, entry.path()));
            }
            files.sort();
            // No effect: each is gone or not, and either is right.
            files.iter().rev().skip(KNOWN_MAX).try_for_each(|(_, path)| fs::remove_file(path))
        };
        match list() {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
        .context(|| format!("tidying {}", known.display()))
    }
}

/// The digest that a name in the folder is about.
fn digest_of(name: &str) -> Option<&str> {
    let name = name.strip_prefix("unfinished-").or_else(|| name.strip_prefix("gone-")).unwrap_or(name);
    let digest = name.strip_suffix(".lock").unwrap_or(name);
    is_digest(digest).then_some(digest)
}

/// Whether a text is a digest in hexadecimal.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
