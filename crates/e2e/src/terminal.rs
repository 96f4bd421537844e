//! A process whose standard output and error are a terminal of its own.

use std::{
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::{DEADLINE, eventually, ran::send};

/// A process on a terminal of 24 lines and 100 columns, killed when it is dropped.
pub struct OnTerminal {
    child: Child,
    got: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    keys: File,
}

impl OnTerminal {
    /// Starts a command; what is typed is its standard input.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&ours).expect("granted");
        unlockpt(&ours).expect("unlocked");
        let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).expect("a size");
        let name = ptsname(&ours, Vec::new()).expect("a name").into_string().expect("text");
        let open = || -> OwnedFd { File::options().read(true).write(true).open(&name).expect("the other end").into() };
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().expect("started");
        // Its ends in this process are closed with the command's own.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut file = File::from(ours);
        let keys = file.try_clone().expect("a second descriptor");
        let got = Arc::new(Mutex::new(Vec::new()));
        let filled = Arc::clone(&got);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4_096];
            // A terminal whose other end is closed answers with an error.
            while let Ok(length @ 1..) = file.read(&mut piece) {
                filled.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&piece[..length]);
            }
        });
        Self { child, got, reader: Some(reader), keys }
    }

    /// What the terminal has got so far.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.got.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until the terminal has got `text`.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually(&format!("`{text}` on the terminal"), || self.so_far().contains(text).then_some(()));
    }

    /// Types.
    #[track_caller]
    pub fn types(&mut self, keys: &str) {
        use std::io::Write as _;
        self.keys.write_all(keys.as_bytes()).expect("typed");
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits for its end: what the terminal got, and the exit code.
    #[track_caller]
    pub fn wait(mut self) -> (String, i32) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("it did not end in time: {}", self.so_far()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        self.reader.take().expect("waited for once").join().expect("read to the end");
        (self.so_far(), status.code().unwrap_or(-1))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What is left to see of what a terminal got: a carriage return goes to the start of the line, `ESC [ K` erases the rest
/// of it. Knows nothing else, and is right where nothing else occurs.
pub fn screen(got: &str) -> String {
    let mut lines = Vec::new();
    for line in got.split('\n') {
        let mut seen = String::new();
        for written in line.split('\r') {
            let written = match written.strip_prefix("\x1b[K") {
                Some(rest) => {
                    seen.clear();
                    rest
                }
                None => written,
            };
            let kept: String = seen.chars().skip(written.chars().count()).collect();
            seen = format!("{written}{kept}");
        }
        lines.push(seen);
    }
    lines.join("\n")
}
