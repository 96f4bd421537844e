//! Starting programs, waiting for them, and ending them when the user interrupts.
//!
//! SIGINT and SIGTERM do not end xtask at once: they are remembered, passed on to the program that runs, and then every
//! guard up the stack (the database, temporary folders, servers under measurement) cleans up as it is dropped.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::say;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

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
    wait(&mut child)
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
        wait(&mut child)
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

fn wait(child: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            check_interrupt()?;
            return Ok(status);
        }
        if interrupted() {
            end(child, Signal::TERM, GRACE)?;
            bail!("interrupted");
        }
        thread::sleep(POLL);
    }
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
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(command)))
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
    use super::*;

    #[test]
    fn failure_names_the_command_and_what_it_said() {
        let error = read(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).expect_err("exit code 3");
        assert!(error.to_string().contains("exit status: 3") && error.to_string().contains("broken"), "{error}");
        assert!(run(&mut Command::new("false")).is_err());
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
}
