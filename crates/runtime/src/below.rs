//! The one way to open a path below a folder whose content others may change: openat2(2).

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::{Errno, Result},
    path::Arg,
};

/// How often the kernel is asked again when a rename elsewhere made it uncertain whether the path stays below.
const ATTEMPTS_MAX: usize = 64;

/// Opens what is there at `path` as `resolve` allows, never by magic links. `dir` is where a relative path begins.
pub fn open_below(dir: impl AsFd, path: impl Arg + Copy, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
    let (flags, resolve) = (flags | OFlags::CLOEXEC, resolve | ResolveFlags::NO_MAGICLINKS);
    for _ in 0..ATTEMPTS_MAX {
        match openat2(&dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::{
        fs::File,
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    #[test]
    fn magic_links_are_never_followed() {
        let all = open_below(CWD, "/proc/self/root", OFlags::PATH, ResolveFlags::empty());
        assert_eq!(all.unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn renames_elsewhere_do_not_make_it_fail() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/b", "c", "d"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        symlink("../c", dir.path().join("a/up")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(&root, "c", &root, "d", RenameFlags::EXCHANGE).unwrap();
                }
            });
            for _ in 0..20_000 {
                let opened = open_below(&root, "a/up", OFlags::PATH, ResolveFlags::BENEATH);
                if let Err(error) = opened {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{error}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
