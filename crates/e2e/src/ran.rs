//! Commands that ran or run: their output apart, their exit code, always within a deadline.

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{DEADLINE, POLL, eventually};

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; 128 plus the signal as a shell has it.
    pub code: i32,
    /// What it wrote to descriptor 1.
    pub stdout: Vec<u8>,
    /// What it wrote to descriptor 2.
    pub stderr: Vec<u8>,
}

impl Ran {
    /// Fails the test unless the exit code is `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Fails the test unless the command succeeded.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        match std::str::from_utf8(&self.stdout) {
            Ok(text) => text,
            Err(error) => panic!("{error}: {self}"),
        }
    }

    /// Standard output as text without blanks around it.
    #[track_caller]
    pub fn word(&self) -> String {
        self.text().trim().to_owned()
    }

    /// Standard error as text, whatever it is.
    pub fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless standard error contains every word.
    #[track_caller]
    pub fn complains_of(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.complaint().contains(word), "`{word}` is not in the complaint of {self}");
        }
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {self}"),
        }
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(8_192)]).into_owned();
        let (stdout, stderr) = (cut(&self.stdout), cut(&self.stderr));
        write!(f, "`{}` exited with {}\n-- stdout:\n{stdout}\n-- stderr:\n{stderr}", self.line, self.code)
    }
}

/// A command that runs. It is killed when this is dropped.
pub struct Running {
    line: String,
    child: Child,
    stdout: Sink,
    stderr: Sink,
}

/// A pipe that is read as fast as it fills.
struct Sink {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Sink {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let filled = Arc::clone(&bytes);
        let reader = pipe.map(|mut pipe| {
            thread::spawn(move || {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length) = pipe.read(&mut buffer) {
                    if length == 0 {
                        break;
                    }
                    filled.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..length]);
                }
            })
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the end of the pipe for as long as is left; a grandchild may hold it open.
    fn finish(&mut self, deadline: Instant) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            while !reader.is_finished() && Instant::now() < deadline {
                thread::sleep(POLL);
            }
        }
        self.so_far()
    }
}

impl Running {
    /// Starts a command with its output in pipes; standard input is empty unless `stdin` asks for a pipe.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::spawn(command, line)
    }

    /// Starts a command with its output in pipes and `stdin` as its standard input.
    #[track_caller]
    pub fn start_on(command: &mut Command, stdin: impl Into<Stdio>) -> Self {
        let line = format!("{command:?}");
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::spawn(command, line)
    }

    /// Starts a command with all three in pipes.
    #[track_caller]
    pub fn start_with_stdin(command: &mut Command) -> (Self, ChildStdin) {
        let line = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Self::spawn(command, line);
        let stdin = running.child.stdin.take().expect("standard input is a pipe");
        (running, stdin)
    }

    #[track_caller]
    fn spawn(command: &mut Command, line: String) -> Self {
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start `{line}`: {error}"),
        };
        let (stdout, stderr) = (Sink::of(child.stdout.take()), Sink::of(child.stderr.take()));
        Self { line, child, stdout, stderr }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// What it has written to descriptor 1 so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.so_far()).into_owned()
    }

    /// How much it has written to descriptor 1 so far.
    pub fn stdout_bytes(&self) -> usize {
        self.stdout.bytes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What it has written to descriptor 2 so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.so_far()).into_owned()
    }

    /// Waits until standard output contains `text`.
    #[track_caller]
    pub fn says(&mut self, text: &str) {
        eventually(&format!("`{text}` on standard output of `{}`", self.line), || {
            let found = self.stdout().contains(text);
            if !found && let Ok(Some(status)) = self.child.try_wait() {
                // What it wrote last may still be in the pipe.
                self.stdout.finish(Instant::now() + Duration::from_secs(5));
                let said = self.stdout();
                assert!(said.contains(text), "`{}` ended ({status}) without it: {said}\n{}", self.line, self.stderr());
                return Some(());
            }
            found.then_some(())
        });
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(self) -> Ran {
        self.wait_for(DEADLINE)
    }

    /// Waits for its end, at most that long, and for the end of its output.
    #[track_caller]
    pub fn wait_for(mut self, limit: Duration) -> Ran {
        let deadline = Instant::now() + limit;
        let code = self.wait_code(deadline);
        let (stdout, stderr) = (self.stdout.finish(deadline), self.stderr.finish(deadline));
        Ran { line: self.line.clone(), code, stdout, stderr }
    }

    /// Waits for its end only: others, such as shims, may keep what it wrote to.
    #[track_caller]
    pub fn wait_alone(mut self) -> Ran {
        let code = self.wait_code(Instant::now() + DEADLINE);
        Ran { line: self.line.clone(), code, stdout: self.stdout.so_far(), stderr: self.stderr.so_far() }
    }

    #[track_caller]
    fn wait_code(&mut self, deadline: Instant) -> i32 {
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
                other => {
                    let (stdout, stderr) = (self.stdout(), self.stderr());
                    panic!("`{}` did not end in time ({other:?})\n{stdout}\n{stderr}", self.line)
                }
            }
        };
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_alive() {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    Running::start(command).wait()
}

/// Sends a signal to a process by its id; one that is gone needs none.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, signal);
    }
}
