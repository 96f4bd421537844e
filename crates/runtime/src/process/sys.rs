//! System calls that neither std nor rustix offers in a safe form, each behind a safe function.
//!
//! Nothing here decides anything. The functions that make processes say what may be called in the child.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{io::Errno, process::Pid, thread::UnshareFlags};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What [`clone_process`] returns in the two processes.
pub enum Cloned {
    /// In the caller.
    Parent {
        /// The child itself.
        pidfd: OwnedFd,
    },
    /// In the new process.
    Child,
}

/// Copies the calling process, as fork(2) does, with further flags of clone(2).
///
/// # Safety
/// Where the caller has several threads, the child may only make system calls: locks, among them those of the memory
/// allocator, may be held for ever by threads that do not exist in it.
pub unsafe fn clone_process(flags: libc::c_int) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let takes_parents_signal = flags & libc::CLONE_PARENT != 0;
    let args = libc::clone_args {
        flags: flags as u64 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: if takes_parents_signal { 0 } else { libc::SIGCHLD as u64 },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: `args` is valid for its length and, without CLONE_VM, the child goes on with a copy of this stack.
    let result = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if result == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
    Ok(Cloned::Parent { pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// How much stack a process has that shares its parent's memory, with the page below it.
const STACK_BYTES: usize = 64 * 1024;
/// No page is larger where there is x86-64.
const PAGE_BYTES: usize = 4_096;

/// A process that shares the caller's memory: nothing is copied for it, neither at its start nor afterwards. Dropped, it is
/// killed and waited for.
pub struct Sharing {
    pid: Pid,
    pidfd: OwnedFd,
    // What it stands on; goes after it.
    _stack: Stack,
}

/// A stack with a page below it that nobody may touch.
struct Stack {
    bottom: *mut libc::c_void,
}

impl Stack {
    fn new() -> io::Result<Self> {
        let (flags, closed) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK, libc::PROT_NONE);
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let bottom = unsafe { libc::mmap(std::ptr::null_mut(), STACK_BYTES, closed, flags, -1, 0) };
        if bottom == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { bottom };
        let open = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: all but the first page of the mapping, of which nobody else knows.
        check(i64::from(unsafe { libc::mprotect(bottom.byte_add(PAGE_BYTES), STACK_BYTES - PAGE_BYTES, open) }))?;
        Ok(stack)
    }

    /// Where it begins; it grows downwards.
    fn top(&self) -> *mut libc::c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.bottom.byte_add(STACK_BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: its mapping, on which nobody stands any more.
        let unmapped = check(i64::from(unsafe { libc::munmap(self.bottom, STACK_BYTES) }));
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

impl Sharing {
    /// Starts a process that executes `work`, which never returns; signals are held off in it.
    ///
    /// # Safety
    /// `work` may only make system calls that set no `errno` (that of rustix; `errno` is the calling thread's), must not
    /// unwind, and must touch nothing but `context`, which lives until the process is dropped. If it changes its ids, the
    /// caller is not dumpable (prctl(2), PR_SET_DUMPABLE): its memory is then shared with a process of other rights.
    pub unsafe fn start<T>(work: extern "C" fn(*mut libc::c_void) -> i32, context: &T) -> io::Result<Self> {
        let stack = Stack::new()?;
        let mut pidfd: RawFd = -1;
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
        let context: *const T = context;
        let started = without_signals(|| {
            // SAFETY: the stack ends at a page and is unmapped after the process has ended; `context` is the caller's promise;
            // with CLONE_PIDFD the fifth argument is where the descriptor goes.
            check(i64::from(unsafe {
                libc::clone(work, stack.top(), flags, context.cast_mut().cast(), &raw mut pidfd)
            }))
        })?;
        let pid = Pid::from_raw(started? as i32).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
        Ok(Self { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) }, _stack: stack })
    }

    /// Its number. It is nobody else's before this is dropped.
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        let killed = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let waited = killed.map_err(io::Error::from).and_then(|()| wait_for(self.pidfd.as_fd()));
        if let Err(error) = waited {
            // It may still live, and has nothing else to stand on nor to work with.
            tracing::error!(%error, "a process that shares this one's memory cannot be ended; so this one ends");
            std::process::abort();
        }
    }
}

/// Does something while the calling thread, and what it starts, takes no signals.
fn without_signals<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    // SAFETY: for both sets zero is a valid value, and both are valid for the calls.
    let (mut all, mut before) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let blocked = unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before)
    };
    if blocked != 0 {
        return Err(io::Error::from_raw_os_error(blocked));
    }
    let done = work();
    // SAFETY: the set was filled in by the call before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    Ok(done)
}

/// fork(2), for a child that does more than make system calls.
///
/// # Safety
/// The C library sees to it that memory can be allocated in the child. Any other lock that another thread held is held for
/// ever there: the child must take none that another thread of the caller may take (that of the log, for example), and must
/// neither return into the caller's frames nor run their destructors.
pub unsafe fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the caller's promise.
    let pid = check(i64::from(unsafe { libc::fork() }))?;
    Ok(Pid::from_raw(pid as i32))
}

/// Ends the calling process at once, without running destructors: for a child of [`clone_process`].
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// unshare(2) of namespaces; a shared table of descriptors (CLONE_FILES), the one unsafe use, is not given away.
pub fn unshare_namespaces(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(Errno::INVAL.into());
    }
    // SAFETY: only UnshareFlags::FILES can break what other threads rely on, and it was just excluded.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// The attributes of a mount, as mount_setattr(2) takes them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes {
    /// MOUNT_ATTR_* to be set.
    pub set: u64,
    /// MOUNT_ATTR_* to be cleared.
    pub clear: u64,
    /// MS_PRIVATE and the like, or 0.
    pub propagation: u64,
    /// Filled in by [`mount_setattr`].
    pub userns: u64,
}

/// Changes the attributes of the mount at `tree`, and of those below it where `recursive`; `ids` makes it an idmapped one.
pub fn mount_setattr(
    tree: BorrowedFd<'_>,
    recursive: bool,
    attributes: MountAttributes,
    ids: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = attributes;
    if let Some(ids) = ids {
        attributes.set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns = ids.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and `attributes` is valid for its length.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })?;
    Ok(())
}

/// Executes the program in `file` in place of the calling one; returns only on failure.
pub fn execute(file: BorrowedFd<'_>, arguments: &[&CStr], environment: &[&CStr]) -> io::Error {
    let pointers = |texts: &[&CStr]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: all strings and both null-terminated arrays outlive the call, which does not return if it succeeds.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Makes `fd` known as number `number` to the program that is executed next, whatever bore that number.
pub fn place(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 takes numbers only. The caller executes another program or ends next, so no owner of `number` acts on it.
    check(i64::from(unsafe { libc::dup2(fd.as_raw_fd(), number) }))?;
    Ok(())
}

/// Makes every descriptor from `first` on close when another program is executed.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes numbers only, and closes nothing now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// What a process that was waited for has used, together with those that it waited for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Time in programs, in microseconds.
    pub user_us: u64,
    /// Time in the kernel, in microseconds.
    pub system_us: u64,
    /// What was read from block devices, in bytes.
    pub read_bytes: u64,
    /// What was written to block devices, in bytes.
    pub written_bytes: u64,
}

/// Waits for the end of a child and reaps it: waitid(2), whose fifth argument only the system call itself has.
pub fn wait_for(child: BorrowedFd<'_>) -> io::Result<Resources> {
    // SAFETY: `rusage` is plain data for which zero is a valid value.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    let nowhere: *mut libc::siginfo_t = std::ptr::null_mut();
    // SAFETY: the kernel takes a null pointer for the signal's data, and `used` is valid for the whole call.
    let mut wait = || unsafe {
        libc::syscall(libc::SYS_waitid, libc::P_PIDFD, child.as_raw_fd(), nowhere, libc::WEXITED, &raw mut used)
    };
    while let Err(error) = check(wait()) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let micros = |time: libc::timeval| time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs();
    // Blocks of 512 bytes, whatever the device (getrusage(2)).
    let bytes = |blocks: libc::c_long| blocks.unsigned_abs() * 512;
    Ok(Resources {
        user_us: micros(used.ru_utime),
        system_us: micros(used.ru_stime),
        read_bytes: bytes(used.ru_inblock),
        written_bytes: bytes(used.ru_oublock),
    })
}
