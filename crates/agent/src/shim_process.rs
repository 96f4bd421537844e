//! A shim as a process of this host: spawned by this agent, or found again after a restart.
//!
//! A process is known by its id together with the time at which it started, and handled through a pidfd (pidfd_open(2)),
//! so that a number that the kernel gave to somebody else is never signalled.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use holm_runtime::{ShimIdentity, crash};
use holm_shim::protocol::UNCHECKED;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// The variables of the agent's environment that a shim gets; none of them may bear a secret.
const ENV_PASSED: [&str; 3] = ["RUST_LOG", "HOLM_LOG", "RUST_BACKTRACE"];

/// All of them, with those by which a test asks for crashes, or takes a check away, where there can be any.
fn env_passed() -> impl Iterator<Item = &'static str> {
    let of_tests = crash::VARIABLES.into_iter().chain([UNCHECKED]).filter(|_| cfg!(debug_assertions));
    ENV_PASSED.into_iter().chain(of_tests)
}

/// How a shim is started; `shim`, the label of the attempt, and the user and group id that it is to take are added as
/// arguments.
#[derive(Debug, Clone)]
pub struct ShimProgram {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments.
    pub args: Vec<OsString>,
    /// What it is told in its environment, beside what is passed on from that of the agent; nothing secret.
    pub env: Vec<(&'static str, String)>,
}

impl Default for ShimProgram {
    /// This very program, also after its file was replaced by a newer one.
    fn default() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), args: Vec::new(), env: Vec::new() }
    }
}

/// Which process a shim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShimId {
    pid: u32,
    /// Field 22 of /proc/PID/stat (proc_pid_stat(5)).
    started_ticks: u64,
}

/// A handle on a shim.
#[derive(Debug)]
pub(crate) struct ShimProcess {
    id: ShimId,
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

/// A shim that waits for its orders. Without them it ends: dropped, it is killed and waited for.
#[derive(Debug)]
pub(crate) struct WaitingShim {
    child: Option<Child>,
    orders: UnixStream,
}

impl WaitingShim {
    /// Spawns it.
    ///
    /// It gives up the agent's user id itself, first of all: were the id to be set between fork and exec, the agent's memory
    /// would have to be copied for it (posix_spawn(3) shares it, and sets no ids).
    pub(crate) fn start(program: &ShimProgram, identity: &ShimIdentity) -> io::Result<Self> {
        let (orders, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&program.program);
        command.args(&program.args).arg("shim").arg(&identity.label);
        command.env_clear().envs(env_passed().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(program.env.iter().map(|(name, value)| (name, value)));
        command.current_dir("/").stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        if let Some((uid, gid)) = identity.ids {
            command.args([uid.to_string(), gid.to_string()]);
        }
        Ok(Self { child: Some(command.spawn()?), orders })
    }

    /// Which process it is.
    pub(crate) fn id(&self) -> io::Result<ShimId> {
        self.child.as_ref().map_or_else(|| Err(vanished()), ShimId::of_child)
    }

    /// Gives it its orders. If that fails it has none, or not all of them: nothing can have been started, and it is ended.
    pub(crate) fn brief<E: From<io::Error>>(
        mut self,
        id: ShimId,
        send: impl FnOnce(&UnixStream) -> Result<(), E>,
    ) -> Result<ShimProcess, E> {
        let pidfd = watch(open(id.pid)?.ok_or_else(vanished)?)?;
        send(&self.orders)?;
        Ok(ShimProcess { id, pidfd, child: self.child.take() })
    }
}

impl ShimProcess {
    /// Whether it waits in the kernel for what cannot be interrupted, as for a disk.
    pub(crate) fn is_uninterruptible(&self) -> bool {
        matches!(stat(self.id.pid), Ok(Some(stat)) if stat.trim_start().starts_with('D'))
    }
}

impl Drop for WaitingShim {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            tracing::error!(pid = child.id(), %error, "ending a shim without orders");
        }
    }
}

fn vanished() -> io::Error {
    io::Error::other("the shim vanished")
}

fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What /proc/PID/stat tells behind the name (proc_pid_stat(5)); nothing if there is no such process.
fn stat(pid: u32) -> io::Result<Option<String>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The second field is the name in parentheses and may hold anything, parentheses too.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned());
    after_name.map(Some).ok_or_else(|| unknown_form(pid))
}

fn unknown_form(pid: u32) -> io::Error {
    io::Error::other(format!("/proc/{pid}/stat has another form than is known"))
}

fn started_ticks(pid: u32) -> io::Result<Option<u64>> {
    let Some(stat) = stat(pid)? else { return Ok(None) };
    let ticks = stat.split_ascii_whitespace().nth(19).and_then(|ticks| ticks.parse().ok());
    ticks.map(Some).ok_or_else(|| unknown_form(pid))
}

/// The pidfd of exactly this process; nothing once it is gone.
fn open_exactly(id: ShimId) -> io::Result<Option<OwnedFd>> {
    let Some(fd) = open(id.pid)? else { return Ok(None) };
    // The descriptor is fixed on a process now: if its start is the one that was noted, it is the right one.
    Ok((started_ticks(id.pid)? == Some(id.started_ticks)).then_some(fd))
}

impl ShimId {
    /// Of a child that was not waited for, so that its id cannot have been given to another process.
    pub(crate) fn of_child(child: &Child) -> io::Result<Self> {
        let pid = child.id();
        let ticks = started_ticks(pid)?.ok_or_else(vanished)?;
        Ok(Self { pid, started_ticks: ticks })
    }

    /// Kills the process, if it is still there, and waits for its end. Blocks.
    pub(crate) fn kill_and_wait(self, patience: Duration) -> io::Result<()> {
        let Some(fd) = open_exactly(self)? else { return Ok(()) };
        kill(&fd)?;
        let timeout = Timespec { tv_sec: patience.as_secs().min(3_600) as i64, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout))? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} does not die", self.pid))),
            _ => Ok(()),
        }
    }
}

// The deprecation is for types that may close their descriptor or swap it; an `OwnedFd` that is never taken out does not.
#[allow(deprecated)]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
}

fn kill(fd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(fd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl ShimProcess {
    /// A shim that an earlier agent spawned; nothing once it is gone.
    pub(crate) fn find(id: ShimId) -> io::Result<Option<Self>> {
        let Some(fd) = open_exactly(id)? else { return Ok(None) };
        Ok(Some(Self { id, pidfd: watch(fd)?, child: None }))
    }

    /// Waits until it is gone. May be dropped and called again.
    pub(crate) async fn gone(&self) -> io::Result<()> {
        self.pidfd.readable().await?.retain_ready();
        Ok(())
    }

    /// Kills it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        kill(self.pidfd.get_ref())
    }
}

impl Drop for ShimProcess {
    fn drop(&mut self) {
        // Takes the exit status of a child that has ended, so that it does not stay as a zombie.
        if let Some(Err(error)) = self.child.as_mut().map(Child::try_wait) {
            tracing::warn!(pid = self.id.pid, %error, "waiting for a shim");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    fn waiting() -> WaitingShim {
        WaitingShim { child: Some(sleeper()), orders: UnixStream::pair().unwrap().0 }
    }

    #[tokio::test]
    async fn a_shim_without_orders_is_ended() {
        let dropped = waiting();
        let dropped_id = dropped.id().unwrap();
        drop(dropped);
        assert!(open(dropped_id.pid).unwrap().is_none(), "it was waited for");
        let unbriefed = waiting();
        let id = unbriefed.id().unwrap();
        assert!(unbriefed.brief(id, |_| Err(io::Error::other("no"))).is_err());
        assert!(open(id.pid).unwrap().is_none(), "it was waited for");
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let waiting = waiting();
        let id = waiting.id().unwrap();
        let process = waiting.brief(id, |_| Ok::<(), io::Error>(())).unwrap();
        let again = ShimProcess::find(id).unwrap().unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), process.gone()).await.is_err());
        again.kill().unwrap();
        process.gone().await.unwrap();
        again.gone().await.unwrap();
        drop(process);
        assert!(ShimProcess::find(id).unwrap().is_none(), "it was waited for");
    }

    #[test]
    fn another_process_of_the_same_number_is_left_alone() {
        let mut child = sleeper();
        let id = ShimId::of_child(&child).unwrap();
        let earlier = ShimId { started_ticks: id.started_ticks - 1, ..id };
        earlier.kill_and_wait(Duration::from_secs(1)).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it lives");
        id.kill_and_wait(Duration::from_secs(10)).unwrap();
        child.wait().unwrap();
        id.kill_and_wait(Duration::from_secs(1)).unwrap();
    }
}
