//! Starting programs, waiting for them, and ending them when the user interrupts.
//!
//! SIGINT and SIGTERM do not end xtask at once: they are remembered, passed on to the program that runs, and then every
//! guard up the stack (the database, temporary folders, servers under measurement) cleans up as it is dropped. The same
//! happens to a program that is still running when the time is over that [`within`] gives.

mod tree;

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    time::Timespec,
};

use crate::say;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
thread_local! {
    /// Until when programs of this thread may run, and how long that was in all.
    static LIMIT: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// How often a program that runs is looked at for other reasons than its end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// From now on SIGINT and SIGTERM are remembered instead of ending this process.
pub fn listen_for_interrupts() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [Signal::INT, Signal::TERM] {
        signal_hook::flag::register(signal.as_raw(), Arc::clone(flag)).context("cannot listen for signals")?;
    }
    Ok(())
}

/// Whether the user asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// An error once the user has asked to stop.
pub fn check_interrupt() -> Result<()> {
    if interrupted() { bail!("interrupted") } else { Ok(()) }
}

/// Cargo, without what the cargo that started xtask says of xtask: where a build script asks for such a variable, what it
/// makes, and all that depends on it, would be built anew whenever cargo is called with xtask and without it by turns.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    let is_of_xtask = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_xtask)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Runs a program to its end with this terminal; anything but exit code 0 is an error that names it.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a program to its end with this terminal and returns how it ended.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    check_interrupt()?;
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", line(command)))?;
    wait(&mut child).with_context(|| format!("`{}`", line(command)))
}

/// Runs a program to its end, shows what it writes as it comes, and hands each line of it to `see`.
pub fn watch(command: &mut Command, see: impl Fn(&str) + Sync) -> Result<ExitStatus> {
    check_interrupt()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", line(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| stdout.map(|pipe| pass_on(pipe, &see)));
        scope.spawn(|| stderr.map(|pipe| pass_on(pipe, &see)));
        wait(&mut child).with_context(|| format!("`{}`", line(command)))
    })
}

/// Reads lines to the end of the pipe. A pipe that breaks ends with its program, whose status tells what happened.
fn pass_on(pipe: impl Read, see: &impl Fn(&str)) {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end_matches('\n');
        say::passed_on(text);
        see(text);
        bytes.clear();
    }
}

/// Does something whose programs may run for `limit` in all: one that is not done by then is ended, with all that it
/// started, and is an error that says so.
pub fn within<T>(limit: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
    LIMIT.set(Some((Instant::now() + limit, limit)));
    let result = work();
    LIMIT.set(None);
    result
}

/// What the limit was, once it is over.
fn over() -> Option<Duration> {
    LIMIT.get().filter(|(until, _)| Instant::now() >= *until).map(|(_, limit)| limit)
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let ended: Option<OwnedFd> = pid_of(child).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        if let Some(status) = child.try_wait()? {
            check_interrupt()?;
            return Ok(status);
        }
        if interrupted() {
            end(child, Signal::TERM, GRACE)?;
            bail!("interrupted");
        }
        if let Some(limit) = over() {
            end_all(child)?;
            bail!("it was not done after {} s and was ended", limit.as_secs());
        }
        match &ended {
            Some(ended) => match poll(&mut [PollFd::new(ended, PollFlags::IN)], Some(&LOOK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("waiting for a program"),
            },
            None => thread::sleep(POLL),
        }
    }
}

/// Ends a child and everything that descends from it, whatever of it still runs after the grace.
fn end_all(child: &mut Child) -> Result<()> {
    let descendants = tree::descendants(child.id());
    end(child, Signal::TERM, GRACE)?;
    // Those that the child made while it ended are not among them; a build or a test makes none then.
    for process in descendants {
        process.kill();
    }
    Ok(())
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Runs a program to its end and returns its standard output; failure is an error with its standard error.
pub fn read(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}: {}", line(command), output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote something that is not UTF-8", line(command)))
}

/// Runs a program to its end and returns all that it wrote.
pub fn output(command: &mut Command) -> Result<Output> {
    check_interrupt()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", line(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let (stdout, stderr) = (scope.spawn(|| all_of(stdout)), scope.spawn(|| all_of(stderr)));
        let status = wait(&mut child).with_context(|| format!("`{}`", line(command)))?;
        let joined = |result: thread::Result<io::Result<Vec<u8>>>| {
            let read = result.unwrap_or_else(|_| Err(io::Error::other("reading it panicked")));
            read.with_context(|| format!("reading what `{}` writes", line(command)))
        };
        Ok(Output { status, stdout: joined(stdout.join())?, stderr: joined(stderr.join())? })
    })
}

fn all_of(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes))?;
    Ok(bytes)
}

/// Sends `signal` to a child, waits for `grace`, and kills it if it is still there.
pub fn end(child: &mut Child, signal: Signal, grace: Duration) -> Result<ExitStatus> {
    send(child.id(), signal);
    let deadline = Instant::now() + grace;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(POLL);
    }
    child.kill()?;
    Ok(child.wait()?)
}

/// Sends a signal to a process by its id. One that is gone already needs none.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, signal);
    }
}

/// The command line of a command, for messages.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn failure_names_the_command_and_what_it_said() {
        let error = read(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).expect_err("exit code 3");
        assert!(error.to_string().contains("exit status: 3") && error.to_string().contains("broken"), "{error}");
        assert!(run(&mut Command::new("false")).is_err());
    }

    #[test]
    fn cargo_is_told_nothing_of_xtask() {
        let cargo = cargo();
        let removed: Vec<_> = cargo.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert!(removed.iter().any(|name| *name == "CARGO_MANIFEST_DIR"), "{removed:?}");
        assert!(removed.iter().any(|name| *name == "CARGO_PKG_NAME"), "{removed:?}");
        assert!(!removed.iter().any(|name| *name == "CARGO_TARGET_DIR"), "{removed:?}");
    }

    #[test]
    fn what_ignores_the_signal_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut ready).expect("a line");
        let status = end(&mut child, Signal::TERM, Duration::from_millis(100)).expect("ended");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn what_takes_too_long_is_ended_with_all_that_it_started() {
        let begun = Instant::now();
        // The grandchild leaves the child's session and ignores the signal: only its descent leads to it.
        let script = "setsid sh -c \"trap '' TERM; echo \\$\\$ >&2; exec sleep 1000\" & wait";
        let (seen, pid) = (Mutex::new(String::new()), |text: &str| text.trim().parse::<i32>().ok());
        let error = within(Duration::from_millis(500), || {
            watch(Command::new("sh").args(["-c", script]), |text| *seen.lock().expect("a line") = text.to_owned())
        });
        let error = format!("{:#}", error.expect_err("it takes too long"));
        assert!(error.contains("was not done after 0 s") && error.contains("setsid"), "{error}");
        assert!(begun.elapsed() < GRACE, "{:?}", begun.elapsed());
        let pid = pid(&seen.lock().expect("a line")).and_then(Pid::from_raw).expect("a process id");
        while rustix::process::test_kill_process(pid).is_ok() {
            assert!(begun.elapsed() < GRACE * 2, "the grandchild lives");
            thread::sleep(POLL);
        }
        // Nothing is limited any more.
        assert!(over().is_none() && run(&mut Command::new("true")).is_ok());
    }
}
