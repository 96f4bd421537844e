//! The processes that were started: their pipes, rings, ends, and the table of them.
//!
//! Every process is a child of the guest, watched by a descriptor of its own; orphans of the workload belong to the inner
//! init. Nothing here belongs to an epoch: processes and their output live on while no one is connected.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use holm_wire::guest_api::{
    Exit, FRAME_BYTES_MAX, OutputStream, PROCESSES_MAX, ProcessStatus, SpawnFailure, SpawnFailureKind,
};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus};
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, oneshot},
};

use crate::{
    inner::Inner,
    ring::Ring,
    spawn::{self, Prepared, REPORT_BYTES, Started},
    watch::Refusals,
};

/// One process and what it wrote.
pub struct Process {
    pid: Pid,
    /// Its output. Told of under `changed`.
    pub ring: RefCell<Ring>,
    exit: Cell<Option<Exit>>,
    open_streams: Cell<u8>,
    /// Whether nothing is left to be told: for the main process, that includes what its end brought about.
    complete: Cell<bool>,
    /// Why its end does not count, where it was killed because the workload broke down.
    broken: RefCell<Option<String>>,
    /// Something was written, acknowledged or has ended.
    pub changed: Notify,
    /// Its standard input; taken while it is written to, and for good when it was closed.
    pub stdin: RefCell<Option<AsyncFd<OwnedFd>>>,
}

/// All processes of this guest.
#[derive(Default)]
pub struct Table {
    processes: RefCell<BTreeMap<u32, Rc<Process>>>,
    last_id: Cell<u32>,
}

impl Process {
    /// How it stands.
    pub fn status(&self) -> ProcessStatus {
        ProcessStatus { exit: self.exit.get(), output_bytes: self.ring.borrow().end() }
    }

    /// Why its end does not count, if so.
    pub fn broken(&self) -> Option<String> {
        self.broken.borrow().clone()
    }

    /// Whether it and its pipes have ended, and nothing more can come.
    pub fn is_complete(&self) -> bool {
        self.complete.get()
    }

    /// Sends a signal to it and its process group. Says whether it was there to get it.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        if self.exit.get().is_some() {
            return Ok(false);
        }
        // Not reaped, so the number is still its own. It leads its group since before it executed.
        crate::sys::kill(-self.pid.as_raw_nonzero().get(), signal)?;
        Ok(true)
    }

    /// Completes once `condition` holds.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    /// Whether all of its output was acknowledged.
    fn is_read(&self) -> bool {
        self.ring.borrow().unacknowledged() == 0
    }
}

impl Table {
    /// The process of a number.
    pub fn get(&self, id: u32) -> Option<Rc<Process>> {
        self.processes.borrow().get(&id).cloned()
    }

    /// Starts a command. It goes on also when the asker has gone.
    pub async fn start(
        self: &Rc<Self>,
        prepared: Prepared,
        inner: Rc<Inner>,
        stdin: bool,
        refusals: Rc<Refusals>,
    ) -> Result<u32, SpawnFailure> {
        if !self.make_room() {
            return Err(spawn::failure(
                SpawnFailureKind::Other,
                format!("there are {PROCESSES_MAX} processes already"),
            ));
        }
        let other =
            |error: io::Error| spawn::failure(SpawnFailureKind::Other, format!("cannot start a process: {error}"));
        if let Some(fate) = inner.init.fate() {
            return Err(spawn::failure(SpawnFailureKind::Other, fate));
        }
        let started = prepared.start(&inner, stdin).map_err(other)?;
        let (tell, told) = oneshot::channel();
        let table = self.clone();
        tokio::task::spawn_local(async move {
            // The asker may be gone with its epoch; the process is in the table all the same.
            let _ = tell.send(table.settle(prepared, started, inner, refusals).await);
        });
        told.await.unwrap_or_else(|_| Err(other(io::Error::other("the start was interrupted"))))
    }

    /// Waits for the report of a forked child and takes it in.
    async fn settle(
        self: &Rc<Self>,
        prepared: Prepared,
        started: Started,
        inner: Rc<Inner>,
        refusals: Rc<Refusals>,
    ) -> Result<u32, SpawnFailure> {
        let other =
            |error: io::Error| spawn::failure(SpawnFailureKind::Other, format!("cannot start a process: {error}"));
        let pidfd = crate::sys::watched(started.pidfd).map_err(other)?;
        if let Some(report) = read_report(started.report).await.map_err(other)? {
            reap(&pidfd).await.map_err(other)?;
            return Err(prepared.explain(report));
        }
        let process = Rc::new(Process {
            pid: started.pid,
            ring: RefCell::default(),
            exit: Cell::new(None),
            open_streams: Cell::new(2),
            complete: Cell::new(false),
            broken: RefCell::default(),
            changed: Notify::new(),
            stdin: RefCell::new(started.stdin.map(nonblocking).transpose().map_err(other)?),
        });
        let stdout = nonblocking(started.stdout).map_err(other)?;
        let stderr = nonblocking(started.stderr).map_err(other)?;
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        self.processes.borrow_mut().insert(id, process.clone());
        tokio::task::spawn_local(pump(process.clone(), stdout, OutputStream::Stdout));
        tokio::task::spawn_local(pump(process.clone(), stderr, OutputStream::Stderr));
        tokio::task::spawn_local(watch(process, pidfd, prepared.main, inner, refusals));
        Ok(id)
    }

    /// Forgets the oldest process that has ended and was read to its end, if there are too many.
    fn make_room(&self) -> bool {
        let mut processes = self.processes.borrow_mut();
        if processes.len() < PROCESSES_MAX {
            return true;
        }
        let oldest =
            processes.iter().find(|(_, process)| process.is_complete() && process.is_read()).map(|(&id, _)| id);
        oldest.is_some_and(|id| processes.remove(&id).is_some())
    }
}

/// Waits for a process's end. The end of the main process is the end of all: what it left behind is killed.
async fn watch(process: Rc<Process>, pidfd: AsyncFd<OwnedFd>, main: bool, inner: Rc<Inner>, refusals: Rc<Refusals>) {
    // A child that cannot be waited for does not exist; nothing but a broken kernel gets here.
    let exit = reap(&pidfd).await.unwrap_or(Exit::Signal(libc::SIGKILL as u8));
    if exit == Exit::Signal(libc::SIGKILL as u8) {
        process.broken.replace(inner.init.death());
    }
    process.exit.set(Some(exit));
    process.stdin.borrow_mut().take();
    process.changed.notify_waiters();
    if main {
        inner.init.end();
        refusals.flush().await;
    }
    process.until(|process| process.open_streams.get() == 0).await;
    process.complete.set(true);
    process.changed.notify_waiters();
}

/// Moves what a process writes into its ring, as long as there is room.
async fn pump(process: Rc<Process>, pipe: AsyncFd<OwnedFd>, stream: OutputStream) {
    let mut buffer = vec![0_u8; FRAME_BYTES_MAX];
    loop {
        process.until(|process| process.ring.borrow().room() > 0).await;
        let Ok(mut ready) = pipe.readable().await else { break };
        // The other stream may have taken the room in the meantime.
        let room = process.ring.borrow().room().min(buffer.len());
        if room == 0 {
            continue;
        }
        match ready.try_io(|pipe| Ok(rustix::io::read(pipe, &mut buffer[..room])?)) {
            Ok(Ok(0)) => break,
            Ok(Ok(count)) => {
                process.ring.borrow_mut().put(stream, &buffer[..count]);
                process.changed.notify_waiters();
                tokio::task::yield_now().await;
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => break,
            Err(_would_block) => {}
        }
    }
    process.open_streams.set(process.open_streams.get() - 1);
    process.changed.notify_waiters();
}

/// Waits for a child's end and takes it out of the kernel's table.
async fn reap(pidfd: &AsyncFd<OwnedFd>) -> io::Result<Exit> {
    loop {
        let mut ready = pidfd.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), options)? {
            Some(status) => return exit_of(&status),
            None => ready.clear_ready(),
        }
    }
}

/// How a child ended.
pub fn exit_of(status: &WaitIdStatus) -> io::Result<Exit> {
    if let Some(code) = status.exit_status() {
        return Ok(Exit::Code(code as u8));
    }
    let signal = status.terminating_signal().ok_or_else(|| io::Error::other("neither exit code nor signal"))?;
    Ok(Exit::Signal(signal as u8))
}

/// The report of a child that could not execute; nothing from one that does.
async fn read_report(pipe: OwnedFd) -> io::Result<Option<[u8; REPORT_BYTES]>> {
    let pipe = nonblocking(pipe)?;
    let mut report = [0; REPORT_BYTES];
    loop {
        let mut ready = pipe.readable().await?;
        // Five bytes go through a pipe whole.
        match ready.try_io(|pipe| Ok(rustix::io::read(pipe, &mut report)?)) {
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(REPORT_BYTES)) => return Ok(Some(report)),
            Ok(Ok(_)) => return Err(io::Error::other("an incomplete report")),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | rustix::fs::OFlags::NONBLOCK)?;
    crate::sys::watched(fd)
}
