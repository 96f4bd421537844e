//! The launcher: a fork of the shim for the moment between a plan and a sandbox.
//!
//! It has one thread, so it may change its own user namespace. In order: it joins the control groups, enters the guest's
//! user namespace (or makes one), and copies itself into new mount, pid, network, ipc, uts and cgroup namespaces; the copy
//! is a child of the shim (CLONE_PARENT), makes the root file system and becomes the guest. The launcher sends the shim the
//! guest's pidfd and ends. It executes no program of its own: starting `holm` once more would cost a tenth of a launch.
//!
//! What always holds: launcher and guest are killed by the kernel when the shim's thread that waits for them ends
//! (PR_SET_PDEATHSIG), so nothing outlives a shim that was killed; no descriptor but the two lanes reaches the guest; the
//! first error stops everything and reaches the shim as a sentence; nothing here logs, for the lock of the log may have been
//! held when the shim was copied.

mod files;
mod layers;
mod root;

use std::{
    ffi::CString,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Gid, Uid},
    io::fcntl_dupfd_cloexec,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with},
    process::{Resource, Rlimit, Signal, getegid, geteuid, getrlimit, setrlimit, setsid},
    thread::{
        LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

use super::{
    blueprint::{Blueprint, take},
    label::{GUEST_LABEL, GUEST_NAME},
    sys::{self, Cloned},
    witness,
};
use crate::{Context, Descriptor, Error, passing};

/// The descriptor of the lane in, in the guest.
const LANE_IN: i32 = 3;
/// The descriptor of the lane out, in the guest.
const LANE_OUT: i32 = 4;
/// Descriptors from here on are not touched when the lanes are put in their places.
const ABOVE: i32 = 10;
/// More likely to be killed than anything else of the host when its memory runs out.
const OOM_SCORE: &str = "500";
/// The most open files that a process inside may have, where the host's own limit is not lower.
const OPEN_FILES: u64 = 65_536;
/// The name of the listener in the sandbox's network, as it is passed to the shim.
pub const EGRESS: &str = "egress";
/// How many connections may wait for the shim to accept them.
const WAITING_MAX: i32 = 512;
const LOCKED_BYTES: u64 = 8 * 1024 * 1024;
/// Too little for a core file, and the one value at which the kernel starts no handler of the host for a crash either
/// (`core_pattern` with a pipe, core(5)). Who is inside cannot change it (guest/src/seccomp.rs).
const CORE_BYTES: u64 = 1;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// The whole life of a launcher, in a fork of the shim. `socket` leads to the shim.
pub fn run(socket: &UnixStream, plan: &Blueprint, mut parts: Vec<Descriptor>) -> ! {
    let Ok(errors) = take(&mut parts, "errors") else { sys::exit_now(1) };
    if let Err(error) = start(socket, plan, parts, &errors) {
        report(&errors, &error);
        sys::exit_now(1);
    }
    sys::exit_now(0)
}

/// Tells the shim what went wrong. A write to a pipe of less than 4 KiB is not divided.
fn report(errors: &OwnedFd, error: &Error) {
    let mut text = match error {
        // The shim says itself what failed.
        Error::Launch(problem) => problem.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    };
    text.truncate(4_000);
    let _ = rustix::io::write(errors, &text);
}

fn start(socket: &UnixStream, plan: &Blueprint, mut parts: Vec<Descriptor>, errors: &OwnedFd) -> Result<(), Error> {
    die_with_parent()?;
    alive(socket)?;
    // No effect: it goes with the process.
    fs::write("/proc/self/oom_score_adj", OOM_SCORE).context(|| "setting the OOM score".to_owned())?;
    // Before the groups, which are killed with the sandbox.
    let witness = witness::take(&plan.label, &mut parts)?;
    join_groups(&mut parts)?;
    if plan.mapped {
        enter_namespace(&take(&mut parts, "userns")?)?;
    } else {
        make_namespace()?;
    }
    // SAFETY: this program has one thread.
    #[allow(unsafe_code)]
    let cloned = unsafe { sys::clone_process(NAMESPACES | libc::CLONE_PARENT) };
    match cloned.context(|| "making the sandbox's namespaces".to_owned())? {
        Cloned::Parent { pidfd } => {
            if let Some(witness) = witness {
                witness.watch(pidfd.as_fd())?;
            }
            let guest = [Descriptor { name: "guest".to_owned(), fd: pidfd }];
            passing::send(socket, &(), &guest).map_err(|error| Error::Malformed(error.to_string()))
        }
        Cloned::Child => {
            let error = match become_guest(socket, plan, parts) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            report(errors, &error);
            sys::exit_now(1)
        }
    }
}

fn die_with_parent() -> Result<(), Error> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context(|| "binding the sandbox's life to the shim's".to_owned())
}

fn join_groups(parts: &mut Vec<Descriptor>) -> Result<(), Error> {
    let (groups, rest) = std::mem::take(parts).into_iter().partition(|part| part.name.starts_with("cgroup.join."));
    *parts = rest;
    let groups: Vec<Descriptor> = groups;
    for group in groups {
        // 0 stands for who writes.
        rustix::io::write(&group.fd, b"0").context(|| format!("joining {}", group.name))?;
    }
    Ok(())
}

/// Enters the guest's user namespace and becomes its root.
fn enter_namespace(userns: &OwnedFd) -> Result<(), Error> {
    let context = || "entering the guest's user namespace".to_owned();
    move_into_link_name_space(userns.as_fd(), Some(LinkNameSpaceType::User)).context(context)?;
    set_thread_groups(&[]).context(context)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).context(context)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context(context)
}

/// Makes a user namespace in which the caller's own id is root.
fn make_namespace() -> Result<(), Error> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    sys::unshare_namespaces(UnshareFlags::NEWUSER).context(|| "making a user namespace".to_owned())?;
    // No effect: it goes with the process.
    let map = |file: &str, text: String| fs::write(file, text).context(|| format!("writing {file}"));
    map("/proc/self/setgroups", "deny".to_owned())?;
    map("/proc/self/uid_map", format!("0 {uid} 1"))?;
    map("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// PID 1's part, up to the guest.
fn become_guest(
    shim: &UnixStream,
    plan: &Blueprint,
    mut parts: Vec<Descriptor>,
) -> Result<std::convert::Infallible, Error> {
    // Changing ids has cleared what the launcher asked for; and the shim may have ended in between.
    die_with_parent()?;
    alive(shim)?;
    setsid().context(|| "starting a session".to_owned())?;
    let system = |what: &'static str| move || what.to_owned();
    let guest = above(take(&mut parts, "guest.binary")?)?;
    let lane_in = above(take(&mut parts, "lane.in")?)?;
    let lane_out = above(take(&mut parts, "lane.out")?)?;
    if plan.egress {
        pass_way_out(&UnixStream::from(take(&mut parts, "door")?))?;
    }
    root::make(plan, &mut parts)?;
    rustix::system::sethostname(plan.setup.hostname.as_bytes()).context(system("naming the machine"))?;
    limit_resources()?;
    sys::close_on_exec_from(ABOVE as u32).context(system("closing descriptors"))?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").context(system("opening /dev/null"))?;
    for number in 0..ABOVE {
        sys::place(null.as_fd(), number).context(system("placing descriptors"))?;
    }
    sys::place(lane_in.as_fd(), LANE_IN).context(system("placing the lanes"))?;
    sys::place(lane_out.as_fd(), LANE_OUT).context(system("placing the lanes"))?;
    sys::close_on_exec_from(LANE_OUT as u32 + 1).context(system("closing descriptors"))?;
    let label = CString::new(format!("{GUEST_LABEL}={}", plan.label));
    let label = label.map_err(|_| Error::Malformed("a label with a NUL byte".to_owned()))?;
    Err(sys::execute(guest.as_fd(), &[GUEST_NAME], &[&label])).context(system("executing the guest"))
}

/// Makes the socket to which the sandbox's connections to elsewhere will come, and passes it to the shim. Nothing inside ever
/// holds it, so nothing inside can use it up, change it or close it.
fn pass_way_out(door: &UnixStream) -> Result<(), Error> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Not on 127.0.0.1, which is only there once the guest has brought `lo` up.
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        listen(&socket, WAITING_MAX)?;
        Ok(socket)
    };
    let fd = make().context(|| "making the way out".to_owned())?;
    let listener = [Descriptor { name: EGRESS.to_owned(), fd }];
    passing::send(door, &(), &listener).map_err(|error| Error::Malformed(error.to_string()))
}

/// Fails if the other end of a socket is closed.
fn alive(shim: &UnixStream) -> Result<(), Error> {
    let mut polled = [PollFd::new(shim, PollFlags::RDHUP)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).context(|| "looking at the shim".to_owned())?;
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    if polled[0].revents().intersects(gone) {
        return Err(Error::Malformed("the shim has gone".to_owned()));
    }
    Ok(())
}

/// The same descriptor under a number that nothing else is put at.
fn above(fd: OwnedFd) -> Result<OwnedFd, Error> {
    fcntl_dupfd_cloexec(&fd, ABOVE).context(|| "duplicating a descriptor".to_owned())
}

/// Sets what a process inside may use at most. No limit is raised: that would need rights that no sandbox has.
fn limit_resources() -> Result<(), Error> {
    let limits = [(Resource::Nofile, OPEN_FILES), (Resource::Core, CORE_BYTES), (Resource::Memlock, LOCKED_BYTES)];
    for (resource, wanted) in limits {
        let most = getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).context(|| format!("setting the limit {resource:?} to {most}"))?;
    }
    Ok(())
}
