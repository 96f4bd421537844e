//! `holm down`: ends the server of this machine.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    home::{Home, Served},
    session::Session,
};

const POLL_EVERY: Duration = Duration::from_millis(10);

/// The flags of `holm down`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Runs that go on are cancelled and waited for first, then the server ends. With --leave they go on: the
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
    let output = session.output;
    let begun = Instant::now();
    let mut asked: Option<(u32, OwnedFd)> = None;
    loop {
        match home.served_by().with_context(|| home.0.display().to_string())? {
            // It lets go of the lock as one of its last acts.
            Served::Nobody if asked.as_ref().map_or(Ok(true), |(_, process)| has_ended(process))? => break,
            Served::Nobody => {}
            Served::By(Some(pid)) if asked.as_ref().is_none_or(|(asked, _)| *asked != pid) => {
                let signal = if args.leave { Signal::TERM } else { Signal::INT };
                asked = terminate(&home, pid, signal).await?.map(|process| (pid, process)).or(asked);
            }
            Served::By(_) => {}
        }
        if begun.elapsed() > args.timeout {
            anyhow::bail!("the server under {} has not ended after {:?}", home.0.display(), begun.elapsed());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    match asked {
        Some((pid, _)) => output.note(format!("the server under {} (process {pid}) has ended", home.0.display())),
        None => output.note(format!("no server runs under {}", home.0.display())),
    }
    Ok(0)
}

/// Signals the process that has the lock, and nobody else: what the lock file says is believed only of the process that
/// listens on the socket, by the kernel's word, and both are looked at while the process is held by a descriptor, so that
/// nobody who came to its number later is meant. Nothing while no such process listens yet, or any more.
async fn terminate(home: &Home, pid: u32, signal: Signal) -> anyhow::Result<Option<OwnedFd>> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the lock file names no process")?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open process {pid}")),
    };
    let listens = home.listener().await?.is_some_and(|listening| listening.pid == Some(pid));
    if !listens || home.served_by()? != Served::By(Some(pid)) {
        return Ok(None);
    }
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(Some(process)),
        Err(error) => Err(error).with_context(|| format!("cannot signal process {pid}")),
    }
}

/// Whether a process has ended: its descriptor is readable then (pidfd_open(2)). Nothing is waited for.
fn has_ended(process: &OwnedFd) -> anyhow::Result<bool> {
    Ok(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&Timespec::default()))? > 0)
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
        let asked = terminate(&home, bystander.id(), Signal::KILL).await.unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(home.socket()).unwrap();
        let asked = asked.or(terminate(&home, bystander.id(), Signal::KILL).await.unwrap());
        bystander.kill().unwrap();
        assert_eq!((asked.is_some(), bystander.wait().unwrap().signal()), (false, Some(9)));
        drop(lock);
    }

    #[test]
    fn a_process_has_ended_when_it_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(!has_ended(&process).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_ended(&process).unwrap());
    }
}
