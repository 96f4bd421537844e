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
The server ends its streams and writes its state down; runs that go on are found again by the next
`holm up`, unless that comes later than their leases last: then they are ended.")]
pub struct DownArgs {
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
                terminate(&home, pid)?;
                asked = Some(pid);
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

/// Asks to end, and to end what still runs first: who takes the server away does not come back for its runs. Signals the process that has the lock, and nobody who came to its number later: the lock is looked at again once the
/// process is held by a descriptor.
fn terminate(home: &Home, pid: u32) -> anyhow::Result<()> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the lock file names no process")?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot open process {pid}")),
    };
    if home.served_by()? != Served::By(Some(pid)) {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::INT) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot signal process {pid}")),
    }
}
