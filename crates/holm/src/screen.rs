//! The whole of a terminal, for a time: what was on it before is there again afterwards, whatever happened.

use std::io::{self, Read as _};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use crate::output::Output;

/// The other screen, without a cursor; lines that are too long are cut by the terminal.
const OPEN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const CLOSE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// How many lines a terminal has that does not say.
const ROWS: usize = 24;
/// How many keys wait to be looked at.
const KEYS_MAX: usize = 16;

/// The screen, until it is dropped.
pub struct Screen {
    output: Output,
    before: Termios,
}

impl Screen {
    /// Takes the terminal: keys come at once and are not shown; Ctrl-C stays a signal, Ctrl-Z is none.
    pub fn open(output: Output) -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut modes = before.clone();
        modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        modes.special_codes[SpecialCodeIndex::VSUSP] = 0;
        tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
        let screen = Self { output, before };
        screen.output.verbatim(OPEN.as_bytes())?;
        Ok(screen)
    }

    /// Shows as many lines as fit.
    pub fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_row));
        let rows = size.filter(|rows| *rows > 0).unwrap_or(ROWS);
        let shown: Vec<String> = lines.iter().take(rows).map(|line| format!("{line}\x1b[K")).collect();
        self.output.verbatim(format!("\x1b[H{}\x1b[J", shown.join("\r\n")).as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _gone = self.output.verbatim(CLOSE.as_bytes());
        let _gone = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// What is typed.
pub struct Keys {
    typed: mpsc::Receiver<u8>,
}

impl Keys {
    /// Reads in a thread, which ends with the process: a terminal cannot be waited for otherwise without changing it for
    /// others that have it open.
    pub fn listen() -> Self {
        let (sender, typed) = mpsc::channel(KEYS_MAX);
        std::thread::spawn(move || {
            let mut key = [0];
            while let Ok(1) = io::stdin().read(&mut key) {
                if sender.blocking_send(key[0]).is_err() {
                    return;
                }
            }
        });
        Self { typed }
    }

    /// Waits for `q`, or for the end of what is typed. May be dropped while it waits.
    pub async fn quit(&mut self) {
        while let Some(key) = self.typed.recv().await {
            if key.eq_ignore_ascii_case(&b'q') {
                return;
            }
        }
    }
}
