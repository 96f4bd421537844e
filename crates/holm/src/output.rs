//! Everything that is printed. No other module writes to the standard streams.
//!
//! What always holds: results go to standard output, messages of Holm's own to standard error as `holm: …`; a closed pipe
//! ends the program as SIGPIPE would, without a word; text that comes from elsewhere is shown with what would steer a
//! terminal escaped, messages of Holm's own as a whole, for they quote much; the output of a command that the user asked for
//! stays as it is, and is tamed ([`crate::tame`]) on a terminal.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
};

use holm_domain::log::Stream;
use serde::Serialize;

use crate::tame::{self, Tamer};

/// The exit code of a program that SIGPIPE ended, as shells tell it.
pub const EXIT_PIPE: u8 = 141;

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Results as JSON instead of text for people.
    pub json: bool,
    /// Messages that are not errors are left out.
    pub quiet: bool,
    color_out: bool,
    color_err: bool,
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// Worth a look.
    Warn,
    /// Less important.
    Dim,
    /// A heading.
    Strong,
    /// Nothing special.
    Plain,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Warn => "33",
            Tone::Dim => "2",
            Tone::Strong => "1",
            Tone::Plain => "0",
        }
    }
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub struct Cell(pub Tone, pub String);

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell(Tone::Plain, text.into())
    }
}

impl Output {
    /// Colours where a terminal shows them, unless `NO_COLOR` is set (no-color.org).
    pub fn new(json: bool, quiet: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let (color_out, color_err) = (wanted && io::stdout().is_terminal(), wanted && io::stderr().is_terminal());
        Self { json, quiet, color_out, color_err }
    }

    /// A line of the result; on a terminal only its colours are obeyed.
    pub fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if out.is_terminal() {
            out.write_all(&tame::line(text.as_ref()))?;
        } else {
            out.write_all(text.as_ref().as_bytes())?;
        }
        out.write_all(b"\n")?;
        out.flush()
    }

    /// The result as one JSON value.
    pub fn value(&self, value: &impl Serialize) -> io::Result<()> {
        self.json_line(serde_json::to_string_pretty(value))
    }

    /// One JSON value on a line of its own, for results that come bit by bit.
    pub fn value_line(&self, value: &impl Serialize) -> io::Result<()> {
        self.json_line(serde_json::to_string(value))
    }

    fn json_line(&self, text: serde_json::Result<String>) -> io::Result<()> {
        let text = text.map_err(io::Error::other)?;
        if io::stdout().is_terminal() { self.line(escaped_json(&text)) } else { self.line(text) }
    }

    /// Text as it is, without a line feed of its own.
    pub fn verbatim(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Columns with a heading, wide enough for what is in them.
    pub fn table<const N: usize>(&self, heading: [&str; N], rows: &[[Cell; N]]) -> io::Result<()> {
        self.table_lines(heading, rows).iter().try_for_each(|line| self.line(line))
    }

    /// The lines of a table.
    pub fn table_lines<const N: usize>(&self, heading: [&str; N], rows: &[[Cell; N]]) -> Vec<String> {
        let mut widths = heading.map(|text| text.chars().count());
        for row in rows {
            for (width, Cell(_, text)) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.chars().count());
            }
        }
        let heading = heading.map(|text| Cell(Tone::Strong, text.to_owned()));
        std::iter::once(&heading).chain(rows).map(|row| self.row(row, &widths)).collect()
    }

    /// Names and values, one pair a line.
    pub fn pairs(&self, pairs: &[(&str, Cell)]) -> io::Result<()> {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, Cell(tone, text)) in pairs {
            let name = format!("{name:width$}");
            self.line(format!("{}  {}", self.paint(Tone::Dim, &name), self.paint(*tone, text)))?;
        }
        Ok(())
    }

    fn row(&self, row: &[Cell], widths: &[usize]) -> String {
        let mut line = String::new();
        for (index, (Cell(tone, text), width)) in row.iter().zip(widths).enumerate() {
            line.push_str(&self.paint(*tone, text));
            if index + 1 < row.len() {
                line.push_str(&" ".repeat(width - text.chars().count() + 2));
            }
        }
        line.trim_end().to_owned()
    }

    fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.color_out || tone == Tone::Plain {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[0m", tone.code())
    }

    /// A message of Holm's own that is no error.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.stderr(Tone::Dim, text.as_ref());
        }
    }

    /// An error of Holm's own.
    pub fn error(&self, text: impl AsRef<str>) {
        self.stderr(Tone::Bad, text.as_ref());
    }

    fn stderr(&self, tone: Tone, text: &str) {
        let prefix = if self.color_err { format!("\x1b[{}mholm:\x1b[0m", tone.code()) } else { "holm:".to_owned() };
        let lines: String = text.lines().map(|line| format!("{prefix} {}\n", escaped(line))).collect();
        // Where even standard error is gone nobody is left to be told.
        let _nobody_listens = io::stderr().lock().write_all(lines.as_bytes());
    }

    /// Text for standard error as it is, without a prefix: a help text, a prompt.
    pub fn stderr_verbatim(&self, text: &str) {
        let _nobody_listens = io::stderr().lock().write_all(text.as_bytes());
    }
}

/// An error with its causes, each told once: many an error names its cause in its own text as well.
pub fn told(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !told.ends_with(&cause) {
            told.push_str(if told.is_empty() { "" } else { ": " });
            told.push_str(&cause);
        }
    }
    told
}

/// The standard streams without buffers between, for the bytes of a command: exact, or tamed where they go to a terminal.
///
/// No command has a terminal of its own yet. The output of one that has is the terminal's, and must not be tamed.
pub struct RawStreams {
    stdout: RawStream,
    stderr: RawStream,
}

struct RawStream {
    file: File,
    tamer: Option<Tamer>,
}

impl RawStreams {
    /// Duplicates the descriptors, so that what is written is written at once.
    pub fn open() -> io::Result<Self> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        Ok(Self { stdout: RawStream::of(stdout.as_fd())?, stderr: RawStream::of(stderr.as_fd())? })
    }

    /// Writes all of it; waits where the other side is slow.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            Stream::Stdout => self.stdout.write(bytes),
            Stream::Stderr => self.stderr.write(bytes),
        }
    }

    /// Writes what was held back: the output has ended.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stdout.finish()?;
        self.stderr.finish()
    }
}

impl RawStream {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::from(fd.try_clone_to_owned()?);
        let tamer = file.is_terminal().then(Tamer::default);
        Ok(Self { file, tamer })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tamer {
            None => write_all(&mut self.file, bytes),
            Some(tamer) => write_all(&mut self.file, &tamer.feed(bytes)),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.tamer.as_mut().map_or(Ok(()), |tamer| write_all(&mut self.file, &tamer.finish()))
    }
}

fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody else made the shared description non-blocking; a terminal is often in that state.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(file)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_writable(file: &File) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&second))?;
    Ok(())
}

/// Text from elsewhere on one line, with every character that would steer the terminal escaped.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if tame::steers(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// The same for text of several lines, which stay.
pub fn escaped_lines(text: &str) -> String {
    text.split('\n').map(escaped).collect::<Vec<_>>().join("\n")
}

/// The same JSON with every character that would steer the terminal escaped as JSON has it (RFC 8259 §7). Line feeds are
/// between its values only.
fn escaped_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if tame::steers(c) && c != '\n' {
            // Writing to a String cannot fail.
            let _infallible = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_steer_is_shown_and_not_obeyed() {
        assert_eq!(escaped("a\x1b[2Jb\n\u{9b}é"), "a\\u{1b}[2Jb\\n\\u{9b}é");
        assert_eq!(escaped("a\u{202e}b\u{2067}\u{61c}"), "a\\u{202e}b\\u{2067}\\u{61c}");
        assert_eq!(escaped_lines("a\x07\nb\r\n"), "a\\u{7}\nb\\r\n");
    }

    fn nasty() -> impl Strategy<Value = String> {
        let steering =
            prop::sample::select(vec!['\x1b', '\x7f', '\u{9b}', '\u{202e}', '\u{2066}', '\u{200f}', '\n', '"']);
        prop::collection::vec(prop_oneof![any::<char>(), steering], 0..30).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn escaped_text_steers_nothing_and_stays_as_it_is(text in nasty()) {
            let shown = escaped(&text);
            prop_assert!(!shown.chars().any(tame::steers));
            prop_assert_eq!(escaped(&shown), shown);
        }

        #[test]
        fn escaped_json_means_the_same(text in nasty()) {
            let value = serde_json::json!({ &text: [text] });
            let shown = escaped_json(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert!(!shown.chars().any(|c| tame::steers(c) && c != '\n'));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }

    fn raw(stdout: File, stderr: File) -> RawStreams {
        let exact = |file| RawStream { file, tamer: None };
        RawStreams { stdout: exact(stdout), stderr: exact(stderr) }
    }

    #[test]
    fn raw_bytes_pass_a_full_non_blocking_pipe() {
        use std::io::Read as _;
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let stdout = File::from(std::os::fd::OwnedFd::from(writer));
        let stderr = stdout.try_clone().unwrap();
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let sent = bytes.clone();
        let thread = std::thread::spawn(move || raw(stdout, stderr).write(Stream::Stdout, &sent));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        thread.join().unwrap().unwrap();
        assert!(got == bytes);
    }

    #[test]
    fn a_closed_pipe_is_told_as_such() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let stdout = File::from(std::os::fd::OwnedFd::from(writer));
        let stderr = stdout.try_clone().unwrap();
        let error = raw(stdout, stderr).write(Stream::Stderr, b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
    #[test]
    fn each_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("/x: {source}")]
        struct At {
            source: io::Error,
        }
        let at = || At { source: io::Error::other("it is full") };
        assert_eq!(told(&anyhow::Error::from(at()).context("the agent")), "the agent: /x: it is full");
        let wrapped = anyhow::Error::from(io::Error::other("it is full")).context("/x").context("the agent");
        assert_eq!(told(&wrapped), "the agent: /x: it is full");
        assert_eq!(told(&anyhow::anyhow!("alone")), "alone");
    }
}
