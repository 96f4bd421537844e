//! The shim's side of a launch.
//!
//! A thread of its own forks the launcher and stays until the guest has ended: the kernel kills the guest when that thread
//! ends (PR_SET_PDEATHSIG counts threads, not processes), and somebody has to reap it. So the life of a sandbox hangs on the
//! shim's process and on nothing that the shim does with its other threads.

use std::{
    io::Read,
    net::TcpListener,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
};

use holm_domain::run::Usage;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    pipe::{PipeFlags, pipe_with},
    process::{Signal, WaitId, WaitIdOptions, kill_process, pidfd_send_signal, waitid},
    time::Timespec,
};

use super::{
    blueprint::{Blueprint, take},
    launcher,
    meters::{self, Meters, Waited},
    sys,
};
use crate::{Context, Counted, Descriptor, Error, Sandbox, SandboxHandle, passing};

/// How long the launcher may take, mounts of large trees on a busy host included.
const LAUNCH_TIME: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// What can still be done to a sandbox.
struct Handle {
    guest: Arc<OwnedFd>,
    kill: Option<OwnedFd>,
    meters: Meters,
    waited: Arc<Waited>,
    pid: Option<u32>,
}

impl SandboxHandle for Handle {
    fn kill(&self) -> Result<(), Error> {
        // The guest first: with PID 1 all of its pid namespace dies. The group holds the same processes, and the launcher.
        let guest = match pidfd_send_signal(&*self.guest, Signal::KILL) {
            Err(Errno::SRCH) => Ok(()),
            other => other.context(|| "killing the guest".to_owned()),
        };
        let group = match &self.kill {
            None => Ok(()),
            // The group may be gone with what was in it.
            Some(kill) => match rustix::io::write(kill, b"1") {
                Ok(_) | Err(Errno::NODEV) => Ok(()),
                Err(errno) => Err(errno).context(|| "killing the control group".to_owned()),
            },
        };
        guest.and(group)
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.guest.as_fd()
    }

    fn counted(&self) -> Counted {
        // The group counts also what was killed, and what its parent did not wait for.
        let waited = if is_readable(&self.guest) { self.waited.get() } else { Usage::default() };
        Counted { waited, ..self.meters.read() }
    }

    fn disk_is_full(&self) -> Option<bool> {
        let full = meters::root_is_full(self.pid?);
        // Asked after it: as long as the guest was not waited for, nobody else bears its number.
        full.filter(|_| !is_readable(&self.guest))
    }
}

/// Whether what a pidfd stands for has ended.
fn is_readable(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::error!(%error, "a sandbox could not be killed");
        }
    }
}

/// Makes the sandbox of a blueprint.
pub fn launch(plan: Blueprint, mut descriptors: Vec<Descriptor>) -> Result<Sandbox, Error> {
    let kill = take_optional(&mut descriptors, "cgroup.kill");
    let meters = Meters::take(&mut descriptors);
    // Never closed: this process runs under an id of the place, so the place is not free before this process has ended.
    std::mem::forget(take_optional(&mut descriptors, "slot"));
    // Nor the lock of the image, which is what the sandbox stands on.
    std::mem::forget(take_optional(&mut descriptors, "image"));
    let lane = || {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context(|| "making the lanes".to_owned())
    };
    let ((lane_in, guest_in), (lane_out, guest_out)) = (lane()?, lane()?);
    let (errors, guest_errors) = pipe_with(PipeFlags::CLOEXEC).context(|| "making a pipe".to_owned())?;
    for (name, fd) in [("lane.in", guest_in), ("lane.out", guest_out), ("errors", guest_errors)] {
        descriptors.push(Descriptor { name: name.to_owned(), fd });
    }
    let door = plan.egress.then(|| door(&mut descriptors)).transpose()?;
    let (mut setup, env) = (plan.setup.clone(), plan.env.clone());
    let waited = Arc::new(Waited::default());
    let ((sender, receiver), teller) = (channel(), waited.clone());
    thread::Builder::new()
        .name("sandbox".to_owned())
        .spawn(move || attend(plan, descriptors, errors, &sender, &teller))
        .context(|| "starting a thread".to_owned())?;
    let guest = receiver.recv().map_err(|_| Error::Malformed("the launching thread ended".to_owned()))??;
    let pid = meters::number_of(&guest);
    let handle = Box::new(Handle { guest, kill, meters, waited, pid });
    let egress = door.map(|door| listener(&door)).transpose()?;
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    setup.redirect = egress.as_ref().map(port).transpose().context(|| "looking at the way out".to_owned())?;
    Ok(Sandbox { lane_in, lane_out, setup, env, egress, handle })
}

/// The shim's end of a socket by which the launcher passes the way out.
fn door(descriptors: &mut Vec<Descriptor>) -> Result<UnixStream, Error> {
    let (door, launchers) = UnixStream::pair().context(|| "making a socket".to_owned())?;
    descriptors.push(Descriptor { name: "door".to_owned(), fd: launchers.into() });
    Ok(door)
}

/// What the launcher made in the sandbox's network before anything ran in it.
fn listener(door: &UnixStream) -> Result<TcpListener, Error> {
    let received = passing::receive::<()>(door);
    let (_, mut descriptors) = received.map_err(|error| Error::Launch(format!("the way out was not made: {error}")))?;
    Ok(TcpListener::from(take(&mut descriptors, launcher::EGRESS)?))
}

fn take_optional(descriptors: &mut Vec<Descriptor>, name: &str) -> Option<OwnedFd> {
    take(descriptors, name).ok()
}

/// The thread's whole life: launch, tell how it went, wait for the end.
fn attend(
    plan: Blueprint,
    descriptors: Vec<Descriptor>,
    errors: OwnedFd,
    started: &Sender<Result<Arc<OwnedFd>, Error>>,
    waited: &Waited,
) {
    let guest = match start(&plan, descriptors, errors) {
        Ok(guest) => Arc::new(guest),
        Err(error) => {
            // Who waits for it is there as long as nothing was sent.
            let _ = started.send(Err(error));
            return;
        }
    };
    if started.send(Ok(guest.clone())).is_err() {
        let _ = pidfd_send_signal(&*guest, Signal::KILL);
    }
    waited.tell(sys::wait_for(guest.as_fd()));
}

fn start(plan: &Blueprint, descriptors: Vec<Descriptor>, errors: OwnedFd) -> Result<OwnedFd, Error> {
    let (socket, launchers) = UnixStream::pair().context(|| "making a socket".to_owned())?;
    // SAFETY: the launcher makes system calls, allocates, and takes no lock of this process's (see its module); it never
    // returns.
    #[allow(unsafe_code)]
    let forked = unsafe { sys::fork() }.context(|| "starting the launcher".to_owned())?;
    let Some(launcher) = forked else { launcher::run(&launchers, plan, descriptors) };
    drop((launchers, descriptors));
    let received = passing::receive::<()>(&socket);
    let guest = received.ok().and_then(|(_, mut descriptors)| take_optional(&mut descriptors, "guest"));
    let problem = read_errors(errors);
    if guest.is_none() || !problem.as_ref().is_ok_and(String::is_empty) {
        // Whatever was started is of no use. The launcher was not waited for: its number is still its own.
        let _ = kill_process(launcher, Signal::KILL);
        if let Some(guest) = &guest {
            let _ = pidfd_send_signal(guest, Signal::KILL);
            let _ = waitid(WaitId::PidFd(guest.as_fd()), WaitIdOptions::EXITED);
        }
    }
    rustix::io::retry_on_intr(|| waitid(WaitId::Pid(launcher), WaitIdOptions::EXITED))
        .context(|| "waiting for the launcher".to_owned())?;
    match (problem?, guest) {
        (problem, Some(guest)) if problem.is_empty() => Ok(guest),
        (problem, _) if problem.is_empty() => Err(Error::Launch("the launcher ended without a word".to_owned())),
        (problem, _) => Err(Error::Launch(problem)),
    }
}

/// What launcher and guest-to-be report. It ends without a word when the guest was executed: that closes the pipe.
fn read_errors(errors: OwnedFd) -> Result<String, Error> {
    let mut polled = [PollFd::new(&errors, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&LAUNCH_TIME)));
    if ready.context(|| "waiting for the guest".to_owned())? == 0 {
        return Err(Error::Launch(format!("the guest was not executed within {} s", LAUNCH_TIME.tv_sec)));
    }
    let mut text = String::new();
    let read = std::fs::File::from(errors).take(8_192).read_to_string(&mut text);
    read.context(|| "reading the launcher's errors".to_owned())?;
    Ok(text)
}
