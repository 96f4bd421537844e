//! What is never lent, whatever the agent lends: Holm's own folders, and those of the host through which it is ruled.
//!
//! Two paths are compared by where they lie on their file systems, as the table of mounts tells it, never by what they are
//! called: a second mount of a folder is the same folder, and a removable disk below /run is not /run. What is guarded is
//! opened once and held, so that it stays guarded when somebody moves it.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlink},
    io::Errno,
};

use super::mount_table::{Mount, Place, mount_of, mounts, place_on};
use crate::{Context, Error};

/// The kernel's own interfaces, and the folder in which services of a host keep their sockets.
const OF_THE_HOST: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// File systems that are interfaces of the kernel, wherever they are mounted.
const KERNEL_KINDS: &[&str] = &[
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
/// The folders and files that are guarded.
#[derive(Debug)]
pub struct Guards {
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    fd: Option<OwnedFd>,
}

/// The state of the host at one moment.
#[derive(Debug)]
pub struct View {
    mounts: Vec<Mount>,
    guarded: Vec<Guarded>,
}

#[derive(Debug)]
struct Guarded {
    /// How it is called.
    path: PathBuf,
    place: Place,
    directory: bool,
}

/// How what is lent is shown inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// With all that is mounted in it: parts can be masked.
    Tree,
    /// As the lower layer of an overlay, which shows one file system: nothing can be masked.
    Layer,
}

impl Guards {
    /// Guards `own`, Holm's folders and files, beside those of the host.
    pub fn new(own: &[PathBuf]) -> Self {
        let paths = own.iter().cloned().chain(OF_THE_HOST.map(PathBuf::from));
        Self { kept: Mutex::new(paths.map(|path| Kept { path, fd: None }).collect()) }
    }

    /// Where everything lies now.
    pub fn look(&self) -> Result<View, Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mounts = mounts()?;
        let mut guarded = Vec::new();
        for guard in kept.iter_mut() {
            let context = || format!("guarding {}", guard.path.display());
            if !guard.fd.as_ref().is_some_and(is_there) {
                guard.fd = open_guarded(&guard.path).context(context)?;
            }
            let Some(fd) = &guard.fd else { continue };
            let directory = FileType::from_raw_mode(fstat(fd).context(context)?.st_mode).is_dir();
            // What is out of reach of this process's root is nowhere where it could be lent.
            if let Some(place) = real_path(fd).and_then(|real| place(&mounts, fd, &real)).context(context)? {
                guarded.push(Guarded { path: guard.path.clone(), place, directory });
            }
        }
        Ok(View { guarded: without_covered(guarded), mounts })
    }
}

/// Files in a guarded folder need no guard of their own: they are masked with it.
fn without_covered(guarded: Vec<Guarded>) -> Vec<Guarded> {
    let folders: Vec<Place> = guarded.iter().filter(|one| one.directory).map(|one| one.place.clone()).collect();
    let is_covered = |one: &Guarded| !one.directory && folders.iter().any(|folder| one.place.is_in(folder));
    guarded.into_iter().filter(|one| !is_covered(one)).collect()
}

/// Whether it has not been removed. What was made anew under its name is another.
fn is_there(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| stat.st_nlink > 0)
}

/// Nothing where there is nothing, or nothing that a user without privileges can reach: a sandbox of his cannot either.
fn open_guarded(path: &Path) -> io::Result<Option<OwnedFd>> {
    match openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn real_path(fd: &OwnedFd) -> io::Result<PathBuf> {
    let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(link.into_bytes())))
}

impl View {
    /// Which parts of what was opened as `fd`, beneath `real`, are to be masked. An error if it may not be shown at all.
    pub fn masks(&self, fd: impl AsFd, real: &Path, shown: Shown) -> Result<Vec<PathBuf>, Error> {
        let mount = mount_of(&self.mounts, fd).context(|| format!("looking at {}", real.display()))?;
        let mount = mount.ok_or_else(|| refused(real, "it lies on no mount of the agent's".to_owned()))?;
        self.masks_on(mount, real, shown)
    }

    fn masks_on(&self, mount: &Mount, real: &Path, shown: Shown) -> Result<Vec<PathBuf>, Error> {
        let place = place_on(mount, real);
        let place = place.ok_or_else(|| refused(real, "it was moved while it was looked at".to_owned()))?;
        if is_kernels(mount) {
            let problem = format!("it is an interface of the kernel ({}), which is never lent", mount.kind);
            return Err(refused(real, problem));
        }
        if let Some(guarded) = self.guarded.iter().find(|guarded| place.is_in(&guarded.place)) {
            return Err(refused(real, format!("it lies in {}, which is never lent", guarded.path.display())));
        }
        let mut masks: Vec<PathBuf> = Vec::new();
        for (at, place, kernels) in self.parts(mount, place, real, shown) {
            masks.extend(kernels.then(|| at.clone()));
            for guarded in &self.guarded {
                let Some(hidden) = hidden(&at, &place, &guarded.place) else { continue };
                if shown == Shown::Layer || !guarded.directory {
                    return Err(refused(real, unmaskable(&guarded.path)));
                }
                masks.push(hidden);
            }
        }
        Ok(outermost(masks, real))
    }

    /// The pieces of file systems that are seen beneath `real`, each with where it is seen.
    fn parts(&self, own: &Mount, place: Place, real: &Path, shown: Shown) -> Vec<(PathBuf, Place, bool)> {
        let mut parts = vec![(real.to_owned(), place, false)];
        if shown == Shown::Tree {
            let below = |mount: &&Mount| mount.id != own.id && mount.at != real && mount.at.starts_with(real);
            parts.extend(self.mounts.iter().filter(below).map(|mount| {
                let place = Place { device: mount.device.clone(), path: mount.root.clone() };
                (mount.at.clone(), place, is_kernels(mount))
            }));
        }
        parts
    }
}

fn refused(path: &Path, problem: String) -> Error {
    Error::HostPath { path: path.to_owned(), problem }
}

fn unmaskable(inner: &Path) -> String {
    format!("it contains {}, which is never lent and cannot be masked here; give a folder beside it", inner.display())
}

/// Where something guarded is seen when `place` is seen at `at`.
fn hidden(at: &Path, place: &Place, guarded: &Place) -> Option<PathBuf> {
    if place.is_in(guarded) {
        return Some(at.to_owned());
    }
    guarded.is_in(place).then(|| at.join(guarded.path.strip_prefix(&place.path).unwrap_or(Path::new(""))))
}

/// Without those that lie in another; relative to `real`.
fn outermost(mut masks: Vec<PathBuf>, real: &Path) -> Vec<PathBuf> {
    masks.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for mask in masks {
        if !kept.last().is_some_and(|last| mask.starts_with(last)) {
            kept.push(mask);
        }
    }
    kept.iter().filter_map(|mask| mask.strip_prefix(real).ok().map(Path::to_owned)).collect()
}

fn is_kernels(mount: &Mount) -> bool {
    KERNEL_KINDS.contains(&mount.kind.as_str())
}

fn place(mounts: &[Mount], fd: &OwnedFd, real: &Path) -> io::Result<Option<Place>> {
    Ok(mount_of(mounts, fd)?.and_then(|mount| place_on(mount, real)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::process::mount_table::mount;

    const TABLE: &str = "\
30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 30 0:5 / /proc rw - proc proc rw
32 30 8:1 /var/lib/holm/server /mnt/again rw - ext4 /dev/sda1 rw
33 30 8:2 / /srv/a\\040disk rw - xfs /dev/sdb rw
34 33 0:9 / /srv/a\\040disk/chroot/proc rw - proc proc rw
35 30 0:7 / /run rw - tmpfs tmpfs rw
36 35 8:3 / /run/media/stick rw - vfat /dev/sdc rw";

    fn view(guarded: &[(&str, &str, &str)]) -> View {
        let guarded = guarded.iter().map(|(path, device, place)| Guarded {
            path: path.into(),
            place: Place { device: (*device).to_owned(), path: place.into() },
            directory: !path.ends_with("token"),
        });
        let guarded = guarded.collect();
        View { mounts: TABLE.lines().map(|line| mount(line.as_bytes()).unwrap()).collect(), guarded }
    }

    fn usual() -> View {
        view(&[
            ("/var/lib/holm", "8:1", "/var/lib/holm"),
            ("/run", "0:7", "/"),
            ("/etc/h/token", "8:1", "/etc/h/token"),
        ])
    }

    fn masks(id: u64, path: &str, shown: Shown) -> Result<Vec<String>, String> {
        let view = usual();
        let mount = view.mounts.iter().find(|mount| mount.id == id).unwrap();
        match view.masks_on(mount, Path::new(path), shown) {
            Ok(masks) => Ok(masks.iter().map(|mask| mask.display().to_string()).collect()),
            Err(Error::HostPath { problem, .. }) => Err(problem),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn what_lies_in_a_guarded_folder_is_refused_under_any_name() {
        let inside = "lies in /var/lib/holm";
        for (mount, path) in
            [(30, "/var/lib/holm"), (30, "/var/lib/holm/agent/x"), (32, "/mnt/again"), (32, "/mnt/again/db")]
        {
            assert!(masks(mount, path, Shown::Tree).unwrap_err().contains(inside), "{path}");
            assert!(masks(mount, path, Shown::Layer).unwrap_err().contains(inside), "{path}");
        }
        assert!(masks(31, "/proc/1/root", Shown::Tree).unwrap_err().contains("interface of the kernel (proc)"));
        assert!(masks(34, "/srv/a disk/chroot/proc", Shown::Tree).unwrap_err().contains("interface"));
        assert!(masks(35, "/run/docker", Shown::Tree).unwrap_err().contains("lies in /run"));
    }

    #[test]
    fn what_lies_beside_is_lent() {
        for (mount, path) in
            [(30, "/var/lib/holm-not"), (30, "/var/lib/other"), (36, "/run/media/stick"), (30, "/etc/hosts")]
        {
            assert_eq!(masks(mount, path, Shown::Tree), Ok(vec![]), "{path}");
            assert_eq!(masks(mount, path, Shown::Layer), Ok(vec![]), "{path}");
        }
    }

    #[test]
    fn a_tree_is_masked_wherever_a_guarded_folder_is_seen_in_it() {
        assert_eq!(masks(30, "/var", Shown::Tree), Ok(vec!["lib/holm".to_owned()]));
        assert_eq!(masks(30, "/mnt", Shown::Tree), Ok(vec!["again".to_owned()]));
        assert_eq!(masks(33, "/srv/a disk", Shown::Tree), Ok(vec!["chroot/proc".to_owned()]));
        let view = view(&[("/var/lib/holm", "8:1", "/var/lib/holm"), ("/run", "0:7", "/")]);
        let all = view.masks_on(&view.mounts[0], Path::new("/"), Shown::Tree).unwrap();
        let all: Vec<_> = all.iter().map(|mask| mask.to_str().unwrap()).collect();
        assert_eq!(all, ["mnt/again", "proc", "run", "srv/a disk/chroot/proc", "var/lib/holm"]);
    }

    #[test]
    fn what_cannot_be_masked_is_refused() {
        let problem = masks(30, "/var", Shown::Layer).unwrap_err();
        assert!(problem.contains("it contains /var/lib/holm") && problem.contains("beside"), "{problem}");
        // Another file system, which an overlay does not show.
        assert_eq!(masks(33, "/srv/a disk", Shown::Layer), Ok(vec![]));
        assert_eq!(masks(30, "/mnt", Shown::Layer), Ok(vec![]));
        // A file can be replaced under its mask.
        assert!(masks(30, "/etc", Shown::Tree).unwrap_err().contains("it contains /etc/h/token"));
    }

    #[test]
    fn a_file_in_a_guarded_folder_is_masked_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        for file in [home.join("token"), dir.path().join("token")] {
            fs::write(file, "").unwrap();
        }
        let masks = |guarded: &[PathBuf]| {
            let fd = openat(CWD, dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            Guards::new(guarded).look().unwrap().masks(&fd, &dir.path().canonicalize().unwrap(), Shown::Tree)
        };
        assert_eq!(masks(&[home.clone(), home.join("token")]).unwrap(), [PathBuf::from("home")]);
        assert!(masks(&[home, dir.path().join("token")]).is_err());
    }

    #[test]
    fn what_is_guarded_stays_so_when_it_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (parent, moved) = (dir.path().join("parent"), dir.path().join("moved"));
        fs::create_dir_all(parent.join("home")).unwrap();
        let guards = Guards::new(&[parent.join("home"), dir.path().join("not there")]);
        let masks = |of: &Path| {
            let fd = openat(CWD, of, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            guards.look().unwrap().masks(&fd, &of.canonicalize().unwrap(), Shown::Tree)
        };
        assert_eq!(masks(dir.path()).unwrap(), [PathBuf::from("parent/home")]);
        fs::rename(&parent, &moved).unwrap();
        assert_eq!(masks(dir.path()).unwrap(), [PathBuf::from("moved/home")]);
        assert!(masks(&moved.join("home")).is_err());
        fs::create_dir_all(dir.path().join("not there/yet")).unwrap();
        assert_eq!(masks(dir.path()).unwrap(), [PathBuf::from("moved/home"), PathBuf::from("not there")]);
        fs::remove_dir(moved.join("home")).unwrap();
        assert!(masks(&moved).unwrap().is_empty());
        fs::create_dir_all(parent.join("home")).unwrap();
        assert_eq!(masks(&parent).unwrap(), [PathBuf::from("home")], "made anew");
    }
}
