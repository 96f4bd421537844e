//! Paths of the host that runs may see.
//!
//! A path is resolved once, with the agent's own rights; what it leads to must lie beneath a folder that the agent lends, with
//! all symbolic links followed. From then on the file that was checked is used and never the name again, or the name together
//! with a check that it still leads to that file.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD, OFlags, ResolveFlags, accessat, readlink};

use super::{
    Lend,
    guard::{Shown, View},
    tree,
};
use crate::{Context, Error, below::open_below};

/// A path that was checked.
#[derive(Debug)]
pub struct Lent {
    /// Opened without rights to its content.
    pub fd: OwnedFd,
    /// Where it really lies: no component is a symbolic link.
    pub path: PathBuf,
    /// Device and inode.
    pub identity: (u64, u64),
    /// Whether it is a folder.
    pub directory: bool,
    /// What is not shown of it, by relative paths: what is guarded ([`super::guard`]).
    pub masks: Vec<PathBuf>,
}

/// What may be lent, and what is not whatever is.
#[derive(Debug, Clone, Copy)]
pub struct Lending<'a> {
    /// What the agent lends.
    pub lends: &'a [Lend],
    /// Where what is guarded lies.
    pub view: &'a View,
}

/// Checks that `path` leads to something beneath what is lent, for writing where `write`, and to nothing that is guarded.
pub fn lend(Lending { lends, view }: Lending<'_>, path: &Path, write: bool, shown: Shown) -> Result<Lent, Error> {
    let refused = |problem: String| Error::HostPath { path: path.to_owned(), problem };
    let opened = open_below(CWD, path, OFlags::PATH, ResolveFlags::empty());
    let fd = opened.map_err(|errno| refused(explain(errno)))?;
    let real = real_path(&fd).context(|| format!("resolving {}", path.display()))?;
    let beneath = |lend: &&Lend| {
        let prefix = lend.prefix.canonicalize();
        prefix.is_ok_and(|prefix| real.starts_with(prefix))
    };
    let lending: Vec<&Lend> = lends.iter().filter(beneath).collect();
    if lending.is_empty() {
        let prefixes: Vec<String> = lends.iter().map(|lend| lend.prefix.display().to_string()).collect();
        let list = if prefixes.is_empty() { "nothing".to_owned() } else { prefixes.join(", ") };
        return Err(refused(format!("this agent lends {list}, and it lies at {}", real.display())));
    }
    if write && !lending.iter().any(|lend| lend.write) {
        return Err(refused("this agent lends it for reading only; add `:ro`".to_owned()));
    }
    let masks = view.masks(&fd, &real, shown)?;
    let stat = rustix::fs::fstat(&fd).context(|| format!("looking at {}", path.display()))?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    if !kind.is_dir() && !kind.is_file() {
        return Err(refused("it is neither a folder nor a regular file".to_owned()));
    }
    let wanted = Access::READ_OK | if kind.is_dir() { Access::EXEC_OK } else { Access::empty() };
    let wanted = if write { wanted | Access::WRITE_OK } else { wanted };
    accessat(CWD, &real, wanted, AtFlags::EACCESS).map_err(|errno| refused(explain(errno)))?;
    let identity = tree::identity(&fd).context(|| format!("looking at {}", path.display()))?;
    Ok(Lent { fd, path: real, identity, directory: kind.is_dir(), masks })
}

/// A folder for the lower layer of an overlay; refuses what is none.
pub fn lend_layer(lending: Lending<'_>, path: &Path) -> Result<Lent, Error> {
    let lent = lend(lending, path, false, Shown::Layer)?;
    if !lent.directory {
        return Err(Error::HostPath { path: path.to_owned(), problem: "it is not a folder".to_owned() });
    }
    Ok(lent)
}

fn explain(errno: rustix::io::Errno) -> String {
    match errno {
        rustix::io::Errno::NOENT => "it does not exist".to_owned(),
        rustix::io::Errno::ACCESS => "the agent's user may not read it".to_owned(),
        rustix::io::Errno::LOOP => "it leads through too many or through magic links".to_owned(),
        other => io::Error::from(other).to_string(),
    }
}

/// The path of what was opened, as the kernel knows it.
fn real_path(fd: &OwnedFd) -> io::Result<PathBuf> {
    let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    let path = PathBuf::from(OsString::from_vec(link.into_bytes()));
    // Opening it again must lead to the same file: the name of a removed file is no path.
    if tree::identity(tree::open_exact(&path)?)? != tree::identity(fd)? {
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::guard::Guards;
    use std::os::unix::fs::symlink;

    fn lends(prefix: &Path, write: bool) -> Vec<Lend> {
        vec![Lend { prefix: prefix.to_owned(), write }]
    }

    fn lend(lends: &[Lend], path: &Path, write: bool) -> Result<Lent, Error> {
        let view = Guards::new(&[]).look().unwrap();
        super::lend(Lending { lends, view: &view }, path, write, Shown::Tree)
    }

    fn problem(result: Result<Lent, Error>) -> String {
        match result {
            Err(Error::HostPath { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_lies_beneath_is_lent() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("in-not"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(inside.join("file"), "").unwrap();
        symlink(&outside, inside.join("out")).unwrap();
        symlink("file", inside.join("link")).unwrap();
        symlink("/proc/self/root", inside.join("magic")).unwrap();
        let lends = lends(&inside, false);
        assert!(lend(&lends, &inside, false).unwrap().directory);
        let link = lend(&lends, &inside.join("link"), false).unwrap();
        assert!(link.path.ends_with("in/file") && !link.directory);
        assert!(problem(lend(&lends, &inside.join("out"), false)).contains("in-not"));
        assert!(problem(lend(&lends, &outside, false)).contains("this agent lends"));
        assert!(problem(lend(&lends, &inside.join("magic/etc"), false)).contains("magic"));
        assert!(problem(lend(&lends, &inside.join("nothing"), false)).contains("does not exist"));
        assert!(problem(lend(&lends, &inside, true)).contains(":ro"));
        let view = Guards::new(&[]).look().unwrap();
        let lending = Lending { lends: &lends, view: &view };
        assert!(problem(lend_layer(lending, &inside.join("file"))).contains("not a folder"));
        assert!(problem(lend(&[], &inside, false)).contains("lends nothing"));
    }

    #[test]
    fn writing_is_lent_where_it_was_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(lend(&lends(dir.path(), true), dir.path(), true).is_ok());
    }
}
