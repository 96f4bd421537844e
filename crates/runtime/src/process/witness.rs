//! A witness of two sandboxes of one run that live at once, for tests; in builds with debug assertions alone, in others
//! nothing is left of it.
//!
//! [`FOLDER`] in the environment of an agent names a folder. Before there is any process of a sandbox, the launcher locks the
//! file in it that is named after the run (flock(2)); where somebody has the lock, it says so in the file [`OVERLAPS`], which
//! must be there, and goes on. The lock belongs to an open file description that two hold: the process that becomes the
//! guest, until it does; and a *keeper*, until everything in the sandbox has died. The guest would let go of it too early,
//! for a process closes its files before the kernel ends what else is in its pid namespace, and the workload could let go of
//! it whenever it likes. The keeper belongs to no control group of the sandbox, and outlives a shim that is killed.

use std::{
    fs::File,
    io::Write as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{CWD, FlockOperation, Mode, OFlags, flock, openat},
    io::Errno,
};

use super::sys;
use crate::{Context, Descriptor, Error, inherited, passing};

/// The variable of the agent's environment.
const FOLDER: &str = "HOLM_TEST_WITNESS";
/// The file to which each start is added that found the lock taken, a line each.
const OVERLAPS: &str = "overlaps";
/// What a keeper calls itself: its command line is that of the shim.
const NAME: &std::ffi::CStr = c"witness";
/// How the name of the descriptor of the folder begins; the run follows.
const DESCRIPTOR: &str = "witness.";

/// The folder of witnesses for the launcher of a run, where a test wants one.
pub fn folder(run: impl std::fmt::Display) -> Result<Option<Descriptor>, Error> {
    let Some(path) = std::env::var_os(FOLDER).filter(|_| cfg!(debug_assertions)) else { return Ok(None) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, &path, flags, Mode::empty());
    let fd = fd.context(|| format!("opening the folder {} that {FOLDER} names", path.display()))?;
    Ok(Some(Descriptor { name: format!("{DESCRIPTOR}{run}"), fd }))
}

/// What the launcher holds of the witness: the lock, and the way to the keeper.
pub struct Witness {
    // The process that becomes the guest has it from its parent.
    _lock: File,
    keeper: UnixStream,
}

/// Locks the file of the run and starts the keeper, where a folder was handed over; nothing where the lock is taken. To be
/// called by a process with one thread, before it joins the sandbox's groups.
pub fn take(label: &str, parts: &mut Vec<Descriptor>) -> Result<Option<Witness>, Error> {
    let at = parts.iter().position(|part| part.name.starts_with(DESCRIPTOR));
    let Some(Descriptor { name, fd: folder }) = at.map(|at| parts.swap_remove(at)) else { return Ok(None) };
    let run = name.trim_start_matches(DESCRIPTOR);
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
    let lock =
        openat(&folder, run, flags, Mode::from_raw_mode(0o644)).context(|| format!("opening the witness of {run}"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            tell(&folder, label).context(|| "telling of an overlap".to_owned())?;
            return Ok(None);
        }
        Err(errno) => return Err(errno).context(|| format!("locking the witness of {run}")),
    }
    let (keeper, launcher) = UnixStream::pair().context(|| "making a socket".to_owned())?;
    // SAFETY: this process has one thread, so no lock is held by another; the child never returns from here.
    #[allow(unsafe_code)]
    let forked = unsafe { sys::fork() }.context(|| "starting the keeper of a witness".to_owned())?;
    match forked {
        Some(_) => Ok(Some(Witness { _lock: lock.into(), keeper: launcher })),
        None => sys::exit_now(if keep(&lock, &keeper).is_ok() { 0 } else { 1 }),
    }
}

/// One write, so that lines of several do not mix.
fn tell(folder: &OwnedFd, label: &str) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    let overlaps = openat(folder, OVERLAPS, flags, Mode::empty())?;
    File::from(overlaps).write_all(format!("{label} was started while its run was alive elsewhere\n").as_bytes())
}

impl Witness {
    /// Has the keeper hold the lock until everything in the sandbox has died whose first process this is.
    pub fn watch(&self, guest: BorrowedFd<'_>) -> Result<(), Error> {
        let fd = guest.try_clone_to_owned().context(|| "duplicating a descriptor".to_owned())?;
        let guest = [Descriptor { name: "guest".to_owned(), fd }];
        passing::send(&self.keeper, &(), &guest).map_err(|error| Error::Malformed(error.to_string()))
    }
}

/// The whole life of a keeper. Where no guest comes, the launcher has ended without one.
fn keep(lock: &OwnedFd, launcher: &UnixStream) -> Result<(), passing::Error> {
    // Locks of the place and of the image are among what it has from the shim, and ends whose closing others wait for.
    inherited::close_all_but(&[lock.as_fd(), launcher.as_fd()])?;
    rustix::thread::set_name(NAME)?;
    let ((), guests) = passing::receive(launcher)?;
    for guest in &guests {
        // The first process of a pid namespace has ended when all others in it have.
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&guest.fd, PollFlags::IN)], None))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn part(folder: &Path) -> Descriptor {
        let fd = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Descriptor { name: format!("{DESCRIPTOR}run_1"), fd }
    }

    #[test]
    fn a_start_that_finds_the_lock_taken_says_so_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let missing = take("holm.a.run_1.1", &mut Vec::new()).unwrap();
        assert!(missing.is_none(), "nobody asked for a witness");
        let held = File::create(folder.path().join("run_1")).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        let mut parts = vec![part(folder.path())];
        assert!(take("holm.a.run_1.2", &mut parts).is_err(), "there is no file to tell it in");
        fs::write(folder.path().join(OVERLAPS), "").unwrap();
        let mut parts = vec![part(folder.path())];
        assert!(take("holm.a.run_1.2", &mut parts).unwrap().is_none());
        assert!(parts.is_empty(), "nobody else is handed the folder");
        let told = fs::read_to_string(folder.path().join(OVERLAPS)).unwrap();
        assert_eq!(told, "holm.a.run_1.2 was started while its run was alive elsewhere\n");
    }
}
