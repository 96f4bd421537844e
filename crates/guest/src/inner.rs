//! The workload's place: user, mount, pid and cgroup namespaces within the guest's.
//!
//! Everything that shapes what the workload sees is mounted by the *inner init* while it still lives in the guest's user
//! namespace; then it makes the inner user namespace with a copy of the mounts. The kernel locks such copies: not even a
//! capability in the inner namespace could unmount a mask or make a read-only mount writable. The inner init then gives
//! away every privilege, holds no descriptor, and sleeps; it is PID 1 to the workload, and with it all of it dies.
//!
//! It keeps the guest's user id, which exists nowhere inside, so no one inside may signal or trace it.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use holm_wire::guest_api::{IdRange, Setup};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
    process::Pid,
    thread::UnshareFlags,
};

use crate::{
    init::Init,
    machine::Machine,
    mounts,
    seccomp::Filters,
    spawn::{close_everything, drop_privileges_for_good, fork},
};

/// How long the inner init may take for its mounts; an emulated machine on a busy host is slow. The host is less patient.
const INIT_DEADLINE: Duration = Duration::from_secs(60);
/// The longest message of the inner init.
const MESSAGE_BYTES_MAX: usize = 512;
const READY: &[u8] = b"ready";

/// The workload's place, as the guest holds it. All descriptors stay valid when every process in it has died.
pub struct Inner {
    /// The workload's root directory.
    pub root: OwnedFd,
    /// The folder in which it leaves its structured result, whatever its root has become since.
    pub result: OwnedFd,
    /// User, mount and cgroup namespace, in the order in which they have to be entered.
    pub namespaces: [OwnedFd; 3],
    /// The inner init.
    pub init: Init,
    /// Which ids there are.
    pub ids: IdRange,
    /// Whether programs may gain privileges.
    pub allow_sudo: bool,
    /// Whether something of the host's is writable inside.
    pub writes_to_host: bool,
    /// What commands may call.
    pub filters: Rc<Filters>,
    /// /dev/null of the guest.
    pub null: OwnedFd,
}

/// Makes the namespaces and starts the inner init in them.
pub fn make(machine: Machine, setup: &Setup, filters: Rc<Filters>) -> io::Result<Inner> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let result = mounts::result_dir(setup.ids).map_err(|error| context(error, "make a place for the result"))?;
    // Takes effect for children only: the first of them is PID 1 of the new namespace.
    unshare(UnshareFlags::NEWPID)?;
    let (report_read, report_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let pid = fork(|| init(machine, setup, &filters, &result, report_write.as_fd(), go_read.as_fd()))?;
    let init = Init::new(pid)?;
    drop((report_write, go_read));

    let made = adopt(pid, setup.ids, report_read, go_write);
    if made.is_err() {
        init.end();
    }
    let (namespaces, root) = made?;
    let &Setup { ids, allow_sudo, writes_to_host, .. } = setup;
    Ok(Inner { root, result, namespaces, init, ids, allow_sudo, writes_to_host, filters, null })
}

/// The guest's half of the making: waits for the namespaces, maps their ids, and takes hold of them.
fn adopt(pid: Pid, ids: IdRange, report: OwnedFd, go: OwnedFd) -> io::Result<([OwnedFd; 3], OwnedFd)> {
    let mut report = fs::File::from(report);
    expect_ready(&mut report)?;
    write_maps(pid, ids)?;
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let open = |name: &str, flags: OFlags| {
        rustix::fs::open(format!("{proc}/{name}"), flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| context(error.into(), &format!("open {name} of the inner init")))
    };
    let namespaces =
        [open("ns/user", OFlags::RDONLY)?, open("ns/mnt", OFlags::RDONLY)?, open("ns/cgroup", OFlags::RDONLY)?];
    let root = open("root", OFlags::PATH | OFlags::DIRECTORY)?;
    fs::File::from(go).write_all(b"g")?;
    expect_ready(&mut report)?;
    Ok((namespaces, root))
}

/// The inner init: shapes the mounts, makes the namespaces, gives up its privileges, and sleeps for ever.
fn init(machine: Machine, setup: &Setup, filters: &Filters, result: &OwnedFd, report: impl AsFd, go: impl AsFd) -> i32 {
    let shaped = mounts::shape(machine, setup, result)
        .and_then(|()| unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP));
    if let Err(error) = shaped {
        let mut message = error.to_string().into_bytes();
        message.truncate(MESSAGE_BYTES_MAX);
        let _ = rustix::io::write(&report, &message);
        return 1;
    }
    let mut byte = [0];
    let released = rustix::io::write(&report, READY).and_then(|_| rustix::io::read(&go, &mut byte));
    if released != Ok(1) {
        return 1;
    }
    let sealed = drop_privileges_for_good(filters).is_ok() && rustix::io::write(&report, READY).is_ok();
    if !sealed || close_everything().is_err() {
        return 1;
    }
    loop {
        rustix::event::pause();
    }
}

fn expect_ready(report: &mut fs::File) -> io::Result<()> {
    let mut ready = [PollFd::new(report, PollFlags::IN)];
    let timeout = Timespec { tv_sec: INIT_DEADLINE.as_secs() as i64, tv_nsec: 0 };
    if rustix::event::poll(&mut ready, Some(&timeout))? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the inner init took longer than {INIT_DEADLINE:?}"),
        ));
    }
    let mut message = [0; MESSAGE_BYTES_MAX];
    let count = report.read(&mut message)?;
    match &message[..count] {
        READY => Ok(()),
        [] => Err(io::Error::other("the inner init ended")),
        other => Err(io::Error::other(String::from_utf8_lossy(other).into_owned())),
    }
}

/// One line for each map. Where there is one id only, the kernel wants setgroups(2) denied first.
fn write_maps(pid: Pid, ids: IdRange) -> io::Result<()> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let write = |name: &str, content: &str| {
        fs::write(format!("{proc}/{name}"), content).map_err(|error| context(error, &format!("write {name}")))
    };
    if ids.count == 1 {
        write("setgroups", "deny")?;
    }
    let line = format!("0 {} {}\n", ids.outer_first, ids.count);
    write("gid_map", &line)?;
    write("uid_map", &line)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    crate::sys::unshare(flags).map_err(|error| context(error, &format!("unshare {flags:?}")))
}

/// Adds what was being done.
pub fn context(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
