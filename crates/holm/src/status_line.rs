//! One line on a terminal's standard error that is rewritten, and gone in the end.
//!
//! What always holds: it is never longer than the terminal is wide, so that one `\r` reaches its beginning; what was shown
//! is erased before anything else is written, and when the line is dropped, whatever happened.

use std::io::{self, IsTerminal as _};

use crate::output::{Output, escaped};

/// How wide a terminal is that does not say.
const COLUMNS: usize = 80;
const ERASE: &str = "\r\x1b[K";

/// The line. Without a terminal it shows nothing.
#[derive(Debug)]
pub struct StatusLine {
    output: Output,
    is_on: bool,
    is_shown: bool,
}

impl StatusLine {
    /// A line that shows something only where people look: on a terminal that can erase, without `--quiet` and `--json`.
    pub fn new(output: Output) -> Self {
        let is_smart = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        let is_on = is_smart && !output.quiet && !output.json && io::stderr().is_terminal();
        Self { output, is_on, is_shown: false }
    }

    /// Whether anything would be shown.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Shows `text` in place of what was shown.
    pub fn show(&mut self, text: &str) {
        if self.is_on {
            let line = cut(&format!("holm: {}", escaped(text)), columns());
            self.output.stderr_verbatim(&format!("{ERASE}{line}"));
            self.is_shown = true;
        }
    }

    /// Takes away what is shown.
    pub fn erase(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            self.output.stderr_verbatim(ERASE);
        }
    }

    /// Takes away what is shown, and shows nothing any more.
    pub fn end(&mut self) {
        self.erase();
        self.is_on = false;
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.erase();
    }
}

fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}

/// As much as fits on one line with the cursor behind it. What is not ASCII counts as two columns, as the widest do.
fn cut(text: &str, columns: usize) -> String {
    let width = |c: char| if c.is_ascii() { 1 } else { 2 };
    let room = columns.saturating_sub(1);
    if text.chars().map(width).sum::<usize>() <= room {
        return text.to_owned();
    }
    let mut left = room.saturating_sub(2);
    let fits = |c: &char| {
        let fits = width(*c) <= left;
        left = left.saturating_sub(width(*c));
        fits
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_on_one_line() {
        assert_eq!(cut("holm: queued", 13), "holm: queued");
        assert_eq!(cut("holm: queued", 12), "holm: que…");
        assert_eq!(cut("島島島島", 8), "島島…");
        assert_eq!(cut("abc", 0), "…");
    }
}
