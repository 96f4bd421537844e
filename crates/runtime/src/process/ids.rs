//! User and group ids: the pool of places for a privileged agent, and the user namespaces that hold them.
//!
//! Place n owns 131,072 ids from `0x7000_0000 + n * 0x2_0000` on. The first is the shim's and is mapped nowhere; the second
//! is the guest's root; the upper half are the workload's 0 to 65,535. So nothing inside, even with the guest's rights on the
//! host, can touch the shim, and no two sandboxes share an id. An agent without privileges has one id, which is
//! the guest's and the workload's root inside and itself outside.

use std::{
    collections::HashMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{FlockOperation, Gid, Mode, OFlags, Uid, flock},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{DumpableBehavior, Pid, Signal, getpid, getppid, set_dumpable_behavior},
    thread::{UnshareFlags, nanosleep, set_thread_res_gid, set_thread_res_uid},
    time::Timespec,
};
use serde::{Deserialize, Serialize};

use super::sys::{self, Sharing};
use crate::{Context, Error};

/// How many sandboxes a host can have at once.
pub const SLOTS: u32 = 2_048;
/// How many ids the workload has, from 0.
pub const WORKLOAD_IDS: u32 = 65_536;
const FIRST: u32 = 0x7000_0000;
const STRIDE: u32 = 0x2_0000;
/// The most namespaces for idmapped mounts that are kept open.
const DISK_NAMESPACES_MAX: usize = 256;

/// A place in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot(pub u32);

impl Slot {
    /// The place that owns an id.
    pub fn of(id: u32) -> Option<Self> {
        id.checked_sub(FIRST).map(|offset| offset / STRIDE).filter(|slot| *slot < SLOTS).map(Self)
    }

    /// The user and group id of the shim.
    pub fn shim(self) -> u32 {
        FIRST + self.0 * STRIDE
    }

    /// The id that the guest's root has on the host.
    pub fn guest(self) -> u32 {
        self.shim() + 1
    }

    /// The id that the workload's root has on the host.
    pub fn workload(self) -> u32 {
        self.shim() + STRIDE / 2
    }

    /// The lines of the guest's uid_map and gid_map.
    fn outer_map(self) -> String {
        format!("0 {} 1\n1 {} {WORKLOAD_IDS}\n", self.guest(), self.workload())
    }

    /// The user namespace of the guest. The shim's id owns it, so the shim may enter it and kill what is in it.
    pub fn outer_namespace(self) -> Result<OwnedFd, Error> {
        namespace(Some(self.shim()), &self.outer_map())
    }

    /// A user namespace that stands for "ids on the disk are those of the workload", for idmapped mounts.
    pub fn disk_namespace(self) -> Result<OwnedFd, Error> {
        namespace(None, &format!("0 {} {WORKLOAD_IDS}\n", self.workload()))
    }
}

/// The namespaces for idmapped mounts of places that were used before. Nothing ever enters one: it is a table of ids and
/// nothing else, the same for each sandbox in a place, so it need not be made for each.
#[derive(Debug, Default)]
pub struct DiskNamespaces(Mutex<HashMap<u32, OwnedFd>>);

impl DiskNamespaces {
    /// The namespace of a place.
    pub fn of(&self, slot: Slot) -> Result<OwnedFd, Error> {
        let duplicate = |fd: &OwnedFd| fd.try_clone().context(|| "duplicating a user namespace".to_owned());
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&slot.0) {
            return duplicate(known);
        }
        let made = slot.disk_namespace()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < DISK_NAMESPACES_MAX {
            known.insert(slot.0, duplicate(&made)?);
        }
        Ok(made)
    }
}

/// Reservations of places, shared by all agents of a host: a locked file for each place, in one folder.
///
/// A lock (flock(2)) lasts as long as any process holds its descriptor. The agent gives it to the shim, so a place stays
/// reserved while a sandbox lives, whatever became of the agent. The descriptor is for reading and for one place: who takes
/// a shim over can give up the shim's own place with it, and nothing else.
#[derive(Debug)]
pub struct Reservation {
    /// The place.
    pub slot: Slot,
    /// Holds the lock.
    pub lock: OwnedFd,
}

/// Reserves the first place that is neither in `taken` nor reserved by another agent.
pub fn reserve_any(places: &Path, taken: &[u32]) -> Result<Reservation, Error> {
    for slot in (0..SLOTS).filter(|slot| !taken.contains(slot)) {
        if let Some(reservation) = reserve(places, slot)? {
            return Ok(reservation);
        }
    }
    Err(Error::Exhausted("the pool of user ids"))
}

/// Reserves one place; nothing if another agent has it.
pub fn reserve(places: &Path, slot: u32) -> Result<Option<Reservation>, Error> {
    if slot >= SLOTS {
        return Err(Error::Malformed(format!("place {slot} of user ids: there are {SLOTS}")));
    }
    let path = places.join(slot.to_string());
    let lock = open_place(places, &path).context(|| format!("opening {}", path.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Reservation { slot: Slot(slot), lock })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno).context(|| format!("locking {}", path.display())),
    }
}

/// The file of a place, which is never removed: a lock on a file without a name would hold nobody off.
fn open_place(places: &Path, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::open(path, flags, Mode::from_raw_mode(0o600));
    match open() {
        Err(Errno::NOENT) => {
            DirBuilder::new().recursive(true).mode(0o700).create(places)?;
            Ok(open()?)
        }
        other => Ok(other?),
    }
}

/// Makes a user namespace with these maps, owned by user `owner` or by the caller.
fn namespace(owner: Option<u32>, map: &str) -> Result<OwnedFd, Error> {
    with_namespace(owner, |pid| map_and_open(pid, map))
}

/// Whether this host lets the calling user make user namespaces, and why not.
pub fn probe_own() -> Result<(), Error> {
    with_namespace(None, |_| Ok(()))
}

/// A namespace needs a process to be made by. It shares the agent's memory: a copy would cost a tenth of a launch.
fn with_namespace<T>(owner: Option<u32>, used: impl FnOnce(Pid) -> io::Result<T>) -> Result<T, Error> {
    let context = || "making a user namespace".to_owned();
    let (ready, told) = pipe_with(PipeFlags::CLOEXEC).context(context)?;
    if owner.is_some() {
        // What the helper shares is not for whoever has its ids.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context(context)?;
    }
    let helper = Helper { owner, ready: told.as_raw_fd(), parent: getpid() };
    // SAFETY: `helper_main` makes system calls of rustix only, and `helper` outlives the process.
    #[allow(unsafe_code)]
    let process = unsafe { Sharing::start(helper_main, &helper) }.context(context)?;
    // Descriptors are not shared: the helper has its own, whose end shows here should it die without a word.
    drop(told);
    read_errno(ready).and_then(|()| used(process.pid())).context(context)
}

/// How long the helper stays at most, should nobody kill it.
const HELPER_LIFE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What the process that makes a namespace works with.
struct Helper {
    owner: Option<u32>,
    ready: RawFd,
    parent: Pid,
}

/// Its whole life: only system calls, no allocation, no unwinding.
extern "C" fn helper_main(context: *mut libc::c_void) -> i32 {
    // SAFETY: it is what `with_namespace` gave, and the descriptor was open when this process got its copies.
    #[allow(unsafe_code)]
    let (owner, ready, parent) = unsafe {
        let helper = &*context.cast::<Helper>();
        (helper.owner, BorrowedFd::borrow_raw(helper.ready), helper.parent)
    };
    let made = become_owner(owner).and_then(|()| {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before it was listened to.
        if getppid() != Some(parent) {
            sys::exit_now(1);
        }
        sys::unshare_namespaces(UnshareFlags::NEWUSER)
    });
    let errno = made.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    let _ = rustix::io::write(ready, &errno.to_le_bytes());
    let _ = nanosleep(&HELPER_LIFE);
    sys::exit_now(0)
}

fn become_owner(owner: Option<u32>) -> io::Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

fn read_errno(ready: OwnedFd) -> io::Result<()> {
    let mut errno = [0; 4];
    File::from(ready).read_exact(&mut errno)?;
    match i32::from_le_bytes(errno) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn map_and_open(pid: Pid, map: &str) -> io::Result<OwnedFd> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    for file in ["uid_map", "gid_map"] {
        // One write: the kernel takes a map whole or not at all.
        OpenOptions::new().write(true).open(format!("{proc}/{file}"))?.write_all(map.as_bytes())?;
    }
    Ok(File::open(format!("{proc}/ns/user"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_places_do_not_overlap_and_lead_back() {
        for n in [0, 1, SLOTS - 1] {
            let slot = Slot(n);
            let last = slot.workload() + (WORKLOAD_IDS - 1);
            for id in [slot.shim(), slot.guest(), slot.workload(), last] {
                assert_eq!(Slot::of(id), Some(slot));
            }
            assert!(slot.shim() < slot.guest() && slot.guest() < slot.workload());
        }
        assert_eq!(Slot::of(0), None);
        assert_eq!(Slot::of(FIRST - 1), None);
        assert_eq!(Slot::of(Slot(SLOTS - 1).workload() + WORKLOAD_IDS), None);
    }

    #[test]
    fn a_place_is_reserved_until_the_last_holder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("places");
        let first = reserve_any(&file, &[0]).unwrap();
        assert_eq!(first.slot, Slot(1));
        let flags = rustix::fs::fcntl_getfl(&first.lock).unwrap();
        assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY, "the shim gets it");
        assert_eq!(reserve_any(&file, &[]).unwrap().slot, Slot(0));
        assert!(reserve(&file, 1).unwrap().is_none());
        let held_by_another = first.lock.try_clone().unwrap();
        drop(first);
        assert!(reserve(&file, 1).unwrap().is_none());
        drop(held_by_another);
        assert!(reserve(&file, 1).unwrap().is_some());
        assert!(reserve(&file, SLOTS).is_err());
    }

    #[test]
    fn namespaces_are_made_by_many_threads_at_once_and_leave_no_process() {
        let map = format!("0 {} 1\n", rustix::process::geteuid().as_raw());
        let make = |_| {
            let read = |pid: Pid| std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
            for _ in 0..20 {
                with_namespace(None, |pid| read(pid).map(|status| assert!(status.contains("Tgid"))))?;
                let made = with_namespace(None, |pid| {
                    let proc = format!("/proc/{}", pid.as_raw_nonzero());
                    std::fs::write(format!("{proc}/uid_map"), &map)?;
                    std::fs::read_to_string(format!("{proc}/uid_map"))
                })?;
                assert_eq!(made.split_whitespace().collect::<Vec<_>>().join(" "), map.trim());
            }
            Ok::<(), Error>(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || make(n))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        });
        let left = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        assert_eq!(left.unwrap_err(), Errno::CHILD, "every helper was waited for");
    }

    #[test]
    fn a_full_pool_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let taken: Vec<u32> = (0..SLOTS).collect();
        let error = reserve_any(&dir.path().join("places"), &taken).unwrap_err();
        assert!(matches!(error, Error::Exhausted(_)), "{error}");
    }
}
