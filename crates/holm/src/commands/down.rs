//! `holm down`: ends the server of this machine.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{home::Home, lock::Served, session::Session};

const POLL_EVERY: Duration = Duration::from_millis(10);

/// The flags of `holm down`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Runs that go on are cancelled and waited for first, then the server ends; those that are queued stay, and the
next `holm up` executes them. With --leave they go on: the
next `holm up` takes them up again, unless it comes later than their leases last; then they are ended.")]
pub struct DownArgs {
    /// Leave runs to the next `holm up` instead of cancelling them
    #[arg(long)]
    pub leave: bool,
    /// How long the server may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = crate::units::duration)]
    pub timeout: Duration,
}

/// Asks the server to end and waits until it has.
pub async fn execute(session: &Session, args: &DownArgs) -> anyhow::Result<u8> {
    let home = session.home();
    let signal = if args.leave { Signal::TERM } else { Signal::INT };
    let begun = Instant::now();
    let mut server: Option<Process> = None;
    loop {
        match home.served_by().with_context(|| home.0.display().to_string())? {
            // It lets go of the lock as one of its last acts.
            Served::Nobody if server.as_ref().map_or(Ok(true), Process::has_ended)? => break,
            Served::By(Some(pid)) if server.as_ref().is_none_or(|server| server.pid != pid) => {
                server = Process::open(pid)?;
            }
            Served::Nobody | Served::By(_) => {}
        }
        if let Some(server) = &mut server {
            server.ask(&home, signal).await?;
        }
        if begun.elapsed() > args.timeout {
            let unheard = server.as_ref().filter(|server| !server.is_asked);
            let why = unheard.map(|server| {
                format!(": it does not listen on {}; `kill {}` ends it", home.socket().display(), server.pid)
            });
            bail!(
                "{} has not ended after {:?}{}",
                told(&home, server.as_ref()),
                begun.elapsed(),
                why.unwrap_or_default()
            );
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    session.output.note(match server {
        Some(server) => format!("{} has ended", told(&home, Some(&server))),
        None => format!("no server runs under {}", home.0.display()),
    });
    Ok(0)
}

fn told(home: &Home, server: Option<&Process>) -> String {
    let process = server.map(|server| format!(" (process {})", server.pid)).unwrap_or_default();
    format!("the server under {}{process}", home.0.display())
}

/// A process that has the lock, held by a descriptor: nobody who comes to its number later is meant.
struct Process {
    pid: u32,
    descriptor: OwnedFd,
    is_asked: bool,
}

impl Process {
    /// Nothing if it is gone.
    fn open(pid: u32) -> anyhow::Result<Option<Self>> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the lock file names no process")?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Some(Self { pid, descriptor, is_asked: false })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot open process {pid}")),
        }
    }

    /// Signals it once, and nobody else: what the lock file says is believed only of the process that listens on the socket,
    /// by the kernel's word. One that does not listen yet is asked later, and one that does not any more is about to end.
    async fn ask(&mut self, home: &Home, signal: Signal) -> anyhow::Result<()> {
        if self.is_asked {
            return Ok(());
        }
        let listens = home.listener().await?.is_some_and(|listening| listening.pid == Some(self.pid));
        if !listens || home.served_by()? != Served::By(Some(self.pid)) {
            return Ok(());
        }
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => self.is_asked = true,
            Err(error) => return Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
        Ok(())
    }

    /// Its descriptor is readable then (pidfd_open(2)). Nothing is waited for.
    fn has_ended(&self) -> anyhow::Result<bool> {
        Ok(poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&Timespec::default()))? > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[tokio::test]
    async fn only_who_listens_is_signalled() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().join("home"));
        home.create().unwrap();
        let lock = home.lock().unwrap().unwrap();
        let mut bystander = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(home.0.join("up.lock"), format!("{}\n", bystander.id())).unwrap();
        let mut process = Process::open(bystander.id()).unwrap().unwrap();
        process.ask(&home, Signal::KILL).await.unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(home.socket()).unwrap();
        process.ask(&home, Signal::KILL).await.unwrap();
        bystander.kill().unwrap();
        assert_eq!((process.is_asked, bystander.wait().unwrap().signal()), (false, Some(9)));
        drop(lock);
    }

    #[test]
    fn a_process_has_ended_when_it_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap().unwrap();
        assert!(!process.has_ended().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.has_ended().unwrap());
        assert!(Process::open(child.id()).unwrap().is_none());
    }
}
