//! `holm down`: ends the server of this machine.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

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
    let mut asked = None;
    loop {
        match home.served_by().with_context(|| home.0.display().to_string())? {
            Served::Nobody => break,
            Served::By(Some(pid)) if asked != Some(pid) => {
                let signal = if args.leave { Signal::TERM } else { Signal::INT };
                if terminate(&home, pid, signal).await? {
                    asked = Some(pid);
                }
            }
            Served::By(_) => {}
        }
        if begun.elapsed() > args.timeout {
            anyhow::bail!("the server under {} has not ended after {:?}", home.0.display(), begun.elapsed());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    match asked {
        Some(pid) => output.note(format!("the server under {} (process {pid}) has ended", home.0.display())),
        None => output.note(format!("no server runs under {}", home.0.display())),
    }
    Ok(0)
}

/// Signals the process that has the lock, and nobody else: what the lock file says is believed only of the process that
/// listens on the socket, by the kernel's word, and both are looked at while the process is held by a descriptor, so that
/// nobody who came to its number later is meant. False while no such process listens yet, or any more.
async fn terminate(home: &Home, pid: u32, signal: Signal) -> anyhow::Result<bool> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the lock file names no process")?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot open process {pid}")),
    };
    let listens = home.listener().await?.is_some_and(|listening| listening.pid == Some(pid));
    if !listens || home.served_by()? != Served::By(Some(pid)) {
        return Ok(false);
    }
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot signal process {pid}")),
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
        let asked = terminate(&home, bystander.id(), Signal::KILL).await.unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(home.socket()).unwrap();
        let asked = asked || terminate(&home, bystander.id(), Signal::KILL).await.unwrap();
        bystander.kill().unwrap();
        assert_eq!((asked, bystander.wait().unwrap().signal()), (false, Some(9)));
        drop(lock);
    }
}
