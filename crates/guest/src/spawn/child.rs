//! What a forked child does until it executes: system calls, and nothing that allocates or locks.
#![allow(unsafe_code)]

use std::{ffi::CStr, ffi::CString, io, os::fd::RawFd};

use rustix::process::Pid;
use seccompiler::BpfProgram;

use super::Step;
use crate::{
    seccomp::Filters,
    walls::{self, Wall},
};

/// Everything that the child needs, laid out before the fork.
pub(super) struct Orders<'a> {
    pub stdio: [RawFd; 3],
    pub report: RawFd,
    /// User first: only its owner may enter the others.
    pub namespaces: [RawFd; 3],
    pub filters: &'a Filters,
    /// The capabilities that root inside may keep.
    pub bound: u64,
    pub uid: u32,
    pub gid: u32,
    /// Nothing where the namespace has one id only and setgroups(2) is denied.
    pub groups: Option<&'a [u32]>,
    pub no_new_privs: bool,
    pub cwd: &'a CStr,
    pub candidates: &'a [CString],
    pub argv: &'a [*const libc::c_char],
    pub envp: &'a [*const libc::c_char],
}

/// What root inside may keep: the default of container engines without what reaches beyond files and processes of its own.
/// CAP_NET_RAW, CAP_MKNOD and CAP_AUDIT_WRITE of that default are left out.
const CAPABILITIES_KEPT: u64 = cap(0) // CHOWN
    | cap(1) // DAC_OVERRIDE
    | cap(3) // FOWNER
    | cap(4) // FSETID
    | cap(5) // KILL
    | cap(6) // SETGID
    | cap(7) // SETUID
    | cap(8) // SETPCAP
    | cap(10) // NET_BIND_SERVICE
    | cap(18) // SYS_CHROOT
    | cap(31); // SETFCAP

/// What root inside keeps where it can write to the host: no FSETID, so that a write to a file takes its set-id bits away,
/// and no SETFCAP, because capabilities of a file on an idmapped mount are good for the host too.
const CAPABILITIES_KEPT_WRITING_TO_HOST: u64 = CAPABILITIES_KEPT & !(cap(4) | cap(31));

/// The bounding set of commands.
pub(super) fn bound(writes_to_host: bool) -> u64 {
    match (walls::is_down(Wall::Capabilities), writes_to_host) {
        (true, _) => u64::MAX,
        (false, true) => CAPABILITIES_KEPT_WRITING_TO_HOST,
        (false, false) => CAPABILITIES_KEPT,
    }
}

const fn cap(number: u32) -> u64 {
    1 << number
}

/// A failed step with its errno.
type Failed = (Step, i32);

/// Forks the guest, which has one thread, and runs `body` in the child; the child never returns from here.
pub(crate) fn fork(body: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the guest has one thread, so no lock is held by another one, and the child's memory is as whole as the
    // parent's. The child runs `body` and ends without running destructors or returning into the caller's frames.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = body();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no process id")),
    }
}

/// The child. It comes back only when it failed, after having reported.
pub(super) fn run(orders: &Orders<'_>) -> i32 {
    let (report, (step, errno)) = match prepare(orders) {
        Ok(report) => (report, execute(orders)),
        Err(failed) => (orders.report, failed),
    };
    let [a, b, c, d] = errno.to_le_bytes();
    let message = [step as u8, a, b, c, d];
    // SAFETY: writes from a live buffer. Nothing can be done if it fails: the parent then sees the child end.
    unsafe { libc::write(report, message.as_ptr().cast(), message.len()) };
    127
}

fn prepare(orders: &Orders<'_>) -> Result<RawFd, Failed> {
    let report = descriptors(orders)?;
    reset_signals();
    // SAFETY: plain system calls on descriptors that were open before the fork.
    unsafe {
        for &namespace in &orders.namespaces {
            check(Step::Namespaces, libc::setns(namespace, 0))?;
        }
        // A session of its own: no terminal of another's, and a process group that signals reach whole.
        check(Step::Namespaces, libc::setsid())?;
    }
    privileges(orders)?;
    // SAFETY: a path that lives in `orders`. After the ids are set, so that the user's own rights decide.
    check(Step::WorkDir, unsafe { libc::chdir(orders.cwd.as_ptr()) })?;
    Ok(report)
}

/// Puts the pipes on 0, 1 and 2; closes all others on exec. Returns where the report pipe is now.
fn descriptors(orders: &Orders<'_>) -> Result<RawFd, Failed> {
    // SAFETY: plain system calls. The guest holds 0 to 2 open, so the pipes lie above and no dup2 overwrites a source.
    unsafe {
        for (target, &source) in orders.stdio.iter().enumerate() {
            check(Step::Descriptors, libc::dup2(source, target as RawFd))?;
        }
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
        check(Step::Descriptors, libc::close_range(3, libc::c_uint::MAX, flags))?;
    }
    Ok(orders.report)
}

/// A program expects default actions and nothing blocked.
fn reset_signals() {
    // SAFETY: zeroed sigaction and sigset are valid (default action, empty set). SIGKILL, SIGSTOP and the C library's own
    // signals cannot be set, which is as it should be.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Takes away everything that the command is not to have. The filters come while there still is the right to load them
/// without no_new_privs; the calls after them are on the allow list.
fn privileges(orders: &Orders<'_>) -> Result<(), Failed> {
    // SAFETY: plain system calls with values and live buffers.
    unsafe {
        check(Step::Privileges, libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        check(Step::Privileges, bound_capabilities(orders.bound))?;
        if orders.no_new_privs {
            check(Step::Privileges, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        }
        load_filters(&orders.filters.programs)?;
        if let Some(groups) = orders.groups {
            // Raw calls: the C library's wrappers would look for other threads.
            check_raw(Step::Ids, libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        }
        check_raw(Step::Ids, libc::syscall(libc::SYS_setresgid, orders.gid, orders.gid, orders.gid))?;
        check_raw(Step::Ids, libc::syscall(libc::SYS_setresuid, orders.uid, orders.uid, orders.uid))?;
        // A user has none; root keeps what is bounded.
        let kept = if orders.uid == 0 { orders.bound } else { 0 };
        check(Step::Privileges, set_capabilities(kept))?;
    }
    Ok(())
}

/// Tries every candidate as execvp(3) does: on with the next where there is none, and a refusal is remembered.
fn execute(orders: &Orders<'_>) -> Failed {
    let mut errno = libc::ENOENT;
    for candidate in orders.candidates {
        // SAFETY: all three are arrays of live C strings with a null at their ends.
        unsafe { libc::execve(candidate.as_ptr(), orders.argv.as_ptr(), orders.envp.as_ptr()) };
        match last_errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => errno = libc::EACCES,
            other => return (Step::Execute, other),
        }
    }
    (Step::Execute, errno)
}

/// Loads the filters in their order.
unsafe fn load_filters(programs: &[BpfProgram]) -> Result<(), Failed> {
    for program in programs {
        // SAFETY: the caller's; `program` lives.
        check_raw(Step::Filter, unsafe { load_filter(program) })?;
    }
    Ok(())
}

unsafe fn load_filter(program: &BpfProgram) -> libc::c_long {
    // seccompiler's own loader always sets no_new_privs, which sudo inside could not live with.
    let fprog =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: seccompiler's sock_filter has the kernel's layout; the kernel copies the program.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog) }
}

/// Drops from the bounding set whatever is not in `kept`.
unsafe fn bound_capabilities(kept: u64) -> libc::c_int {
    for number in 0..64 {
        // SAFETY: plain system calls. EINVAL means that the kernel knows no capability of this number or beyond.
        let result =
            unsafe { if kept & cap(number) == 0 { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } else { 0 } };
        if result < 0 {
            return if last_errno() == libc::EINVAL { 0 } else { result };
        }
    }
    0
}

/// Sets permitted and effective to `kept`, inheritable to nothing.
unsafe fn set_capabilities(kept: u64) -> libc::c_int {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let (low, high) = (kept as u32, (kept >> 32) as u32);
    let data: [[u32; 3]; 2] = [[low, low, 0], [high, high, 0]];
    // SAFETY: header and data have the layout of version 3 and live.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) as libc::c_int }
}

/// For the inner init: no capability, no way to gain one, a filter of its own, nobody may look into it.
pub(crate) fn drop_privileges_for_good(filters: &Filters) -> io::Result<()> {
    let dropped = || -> Result<(), Failed> {
        // SAFETY: plain system calls with values and live buffers.
        unsafe {
            check(Step::Privileges, libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
            check(Step::Privileges, bound_capabilities(0))?;
            check(Step::Privileges, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            load_filters(&filters.init)?;
            check(Step::Privileges, set_capabilities(0))?;
            check(Step::Privileges, libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
            // Orphans of the workload become this process's children; ignored, the kernel reaps them.
            let mut ignore: libc::sigaction = std::mem::zeroed();
            ignore.sa_sigaction = libc::SIG_IGN;
            check(Step::Privileges, libc::sigaction(libc::SIGCHLD, &ignore, std::ptr::null_mut()))?;
        }
        Ok(())
    };
    dropped().map_err(|(_, errno)| io::Error::from_raw_os_error(errno))
}

/// For the inner init, once it has said its last word: it holds no descriptor.
pub(crate) fn close_everything() -> io::Result<()> {
    // SAFETY: the process owns nothing that it would ever use again; it only sleeps from here on.
    if unsafe { libc::close_range(0, libc::c_uint::MAX, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(step: Step, result: libc::c_int) -> Result<(), Failed> {
    if result < 0 { Err((step, last_errno())) } else { Ok(()) }
}

fn check_raw(step: Step, result: libc::c_long) -> Result<(), Failed> {
    if result < 0 { Err((step, last_errno())) } else { Ok(()) }
}

fn last_errno() -> i32 {
    // SAFETY: the C library's errno of this thread.
    unsafe { *libc::__errno_location() }
}
