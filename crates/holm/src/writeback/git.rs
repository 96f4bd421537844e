//! Repositories of git: whoever writes into one decides what the next `git status` of the user executes.
//!
//! Two kinds are recognised: what is called `.git`, by any name that git or a file system takes for it, and what looks to
//! git like a repository without being called so (a bare one, gitrepository-layout(5)).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use holm_runtime::below::open_below;
use rustix::{
    fs::{AtFlags, Dir, FileType, OFlags, ResolveFlags, statat},
    io::Errno,
};

use super::plan::{Refusal, What, open_dir, refuse};

/// Characters that HFS+ leaves out of names.
const IGNORED: [std::ops::RangeInclusive<char>; 4] =
    ['\u{200c}'..='\u{200f}', '\u{202a}'..='\u{202e}', '\u{206a}'..='\u{206f}', '\u{feff}'..='\u{feff}'];

/// Whether a name is, or on some file system leads to, a `.git`: in any case, with what HFS+ leaves out, with what NTFS
/// and FAT cut off at the end, as their short name, or before a backslash or the colon of a stream.
pub fn is_dot_git(name: &[u8]) -> bool {
    name.split(|byte| *byte == b'\\').any(|part| {
        let part = part.split(|byte| *byte == b':').next().unwrap_or_default();
        let end = part.iter().rposition(|byte| !matches!(byte, b' ' | b'.')).map_or(0, |last| last + 1);
        let part = &part[..end];
        part.eq_ignore_ascii_case(b".git") || part.eq_ignore_ascii_case(b"git~1") || is_dot_git_on_hfs(part)
    })
}

fn is_dot_git_on_hfs(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    let kept = name.chars().filter(|c| !IGNORED.iter().any(|range| range.contains(c)));
    kept.map(|c| c.to_ascii_lowercase()).eq(".git".chars())
}

/// Parts by which git takes a directory for a repository.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    head: bool,
    objects: bool,
    refs: bool,
    common: bool,
}

impl Parts {
    fn add(&mut self, name: &[u8]) {
        // Some file systems do not tell upper from lower case.
        self.head |= name.eq_ignore_ascii_case(b"HEAD");
        self.objects |= name.eq_ignore_ascii_case(b"objects");
        self.refs |= name.eq_ignore_ascii_case(b"refs");
        self.common |= name.eq_ignore_ascii_case(b"commondir");
    }

    fn are_a_repository(self) -> bool {
        self.head && (self.common || self.objects && self.refs)
    }
}

/// Refuses changes anywhere in what is a repository, or would become one. What the archive deletes counts as being there.
pub fn check_repositories(
    root: &OwnedFd,
    changes: &BTreeMap<PathBuf, What>,
    dirs_max: usize,
    mut refused: impl FnMut(Refusal),
) -> anyhow::Result<()> {
    let mut made: BTreeMap<&Path, Parts> = BTreeMap::new();
    for (path, what) in changes {
        for dir in path.ancestors().skip(1) {
            // Where one is known, so are those above it.
            if made.contains_key(dir) {
                break;
            }
            made.insert(dir, Parts::default());
        }
        if let (Some(parts), Some(name)) = (path.parent().and_then(|parent| made.get_mut(parent)), path.file_name())
            && !matches!(what, What::Delete)
        {
            parts.add(name.as_bytes());
        }
        anyhow::ensure!(
            made.len() <= dirs_max,
            "the archive is refused, and nothing was written: it has more than {dirs_max} directories"
        );
    }
    let mut repositories = BTreeSet::new();
    for (dir, parts) in made {
        match with_host(root, dir, parts) {
            Ok(parts) if parts.are_a_repository() => {
                repositories.insert(dir);
            }
            Ok(_) => {}
            Err(error) => refused(refuse(dir, format!("cannot be looked into: {error}"))),
        }
    }
    for dir in repositories {
        let path = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        refused(refuse(path, "is a git repository, or would become one, and has changes in it"));
    }
    Ok(())
}

/// What the host has of the parts.
fn with_host(root: &OwnedFd, dir: &Path, mut parts: Parts) -> rustix::io::Result<Parts> {
    let dir = match open_dir(root, dir) {
        Ok(dir) => dir,
        // What is no directory is refused elsewhere, or replaced.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(parts),
        Err(error) => return Err(error),
    };
    for name in ["HEAD", "objects", "refs", "commondir"] {
        match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => parts.add(name.as_bytes()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parts)
}

/// Refuses to delete a directory in which a repository lies, or that is one.
pub fn check_none_below(dir: &OwnedFd, name: &OsStr, shown: &Path, entries_max: usize) -> Result<(), Refusal> {
    let unreadable = |error: Errno| refuse(shown, format!("cannot be looked into: {error}"));
    let mut waiting = vec![(Rc::new(rustix::io::dup(dir.as_fd()).map_err(unreadable)?), name.to_owned())];
    let mut seen = 0;
    while let Some((parent, name)) = waiting.pop() {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = Rc::new(open_below(&*parent, name.as_os_str(), flags, resolve).map_err(unreadable)?);
        let mut parts = Parts::default();
        for entry in Dir::read_from(&*opened).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let child = entry.file_name().to_bytes();
            if matches!(child, b"." | b"..") {
                continue;
            }
            seen += 1;
            if seen > entries_max {
                return Err(refuse(shown, format!("has more than {entries_max} entries below")));
            }
            parts.add(child);
            if is_dot_git(child) {
                return Err(refuse(shown, "would be deleted, and has a `.git` below"));
            }
            if is_directory(&opened, OsStr::from_bytes(child)).map_err(unreadable)? {
                waiting.push((opened.clone(), OsString::from(OsStr::from_bytes(child))));
            }
        }
        if parts.are_a_repository() {
            return Err(refuse(shown, "would be deleted, and is or has a git repository"));
        }
    }
    Ok(())
}

fn is_directory(dir: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        // It went meanwhile.
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_of_dot_git_are_known() {
        for name in [
            ".git",
            ".GIT",
            ".gIt",
            "git~1",
            "GIT~1",
            ".git.",
            ".git ",
            ".git. .",
            ".git::$INDEX_ALLOCATION",
            ".git:x",
            ".git\\hooks",
            "a\\.git",
            "git~1 ",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".gi\u{206f}T",
        ] {
            assert!(is_dot_git(name.as_bytes()), "{name:?}");
        }
        for name in ["git", ".gitignore", ".github", ".gitmodules", "x.git", "git~2", "..git", ".git~1", "", ".", " "] {
            assert!(!is_dot_git(name.as_bytes()), "{name:?}");
        }
        assert!(!is_dot_git(b".g\xffit"));
    }
}
