//! The agent's end of a shim's control socket, and what a shim leaves behind in files.
//!
//! Nothing here trusts the shim's folder further than it must: lines and files are limited, links are not followed.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use holm_domain::run::EventKind;
use rustix::fs::{CWD, Mode, OFlags};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::protocol::{
    Command, EVENTS_FILE_NAME, EVENTS_MAX, EXIT_FILE_NAME, LINE_BYTES_MAX, SOCKET_NAME, STARTED_FILE_NAME, SourceEvent,
    Status,
};

/// Why the conversation with a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no shim, or the socket broke.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A line is longer than may be, or not what was agreed on.
    #[error("the shim sent a malformed line: {0}")]
    Malformed(String),
}

fn io_error(context: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { context, source }
}

/// A path to `name` in the open folder `dir` that is short enough for a Unix socket address, however long the folder's is.
pub(crate) fn short_path(dir: &impl std::os::fd::AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd()))
}

pub(crate) fn open_dir(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The half on which commands are sent.
#[derive(Debug)]
pub struct Commands {
    stream: OwnedWriteHalf,
}

/// The half on which statuses arrive.
#[derive(Debug)]
pub struct Statuses {
    stream: OwnedReadHalf,
    lines: LineBuffer,
}

/// Connects to the shim of the attempt whose folder is `dir`. The shim drops the connection it had before.
pub async fn connect(dir: &Path) -> Result<(Commands, Statuses), Error> {
    let folder = open_dir(dir).map_err(io_error("opening the attempt's folder"))?;
    let stream = UnixStream::connect(short_path(&folder, SOCKET_NAME));
    let (read, write) = stream.await.map_err(io_error("connecting to the shim"))?.into_split();
    Ok((Commands { stream: write }, Statuses { stream: read, lines: LineBuffer::default() }))
}

impl Commands {
    /// Sends one command. It was carried out when a status says so.
    pub async fn send(&mut self, command: &Command) -> Result<(), Error> {
        let mut line = serde_json::to_vec(command).map_err(|error| Error::Malformed(error.to_string()))?;
        line.push(b'\n');
        self.stream.write_all(&line).await.map_err(io_error("sending to the shim"))
    }
}

impl Statuses {
    /// The next status; nothing once the shim has closed the connection. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Status>, Error> {
        loop {
            if let Some(status) = self.lines.take_line()? {
                return Ok(Some(status));
            }
            let read = self.stream.read_buf(&mut self.lines.bytes).await.map_err(io_error("reading from the shim"))?;
            if read == 0 {
                return Ok(None);
            }
        }
    }
}

/// Bytes that were read and are not yet whole lines; never longer than one line and one read.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    pub(crate) bytes: bytes::BytesMut,
    searched: usize,
}

impl LineBuffer {
    /// Takes the next whole line, if there is one.
    pub(crate) fn take_line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let end = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.bytes.len();
            self.bytes.reserve(4096);
            return if self.searched > LINE_BYTES_MAX { Err(too_long()) } else { Ok(None) };
        };
        self.searched = 0;
        if end > LINE_BYTES_MAX {
            return Err(too_long());
        }
        let line = self.bytes.split_to(end + 1);
        serde_json::from_slice(&line).map(Some).map_err(|error| Error::Malformed(error.to_string()))
    }
}

/// The longest line of the file of events that is looked at, in bytes.
const EVENT_BYTES_MAX: usize = 8 * 1024;

fn too_long() -> Error {
    Error::Malformed(format!("longer than {LINE_BYTES_MAX} bytes"))
}

fn read_limited(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("longer than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

/// The final status of the attempt whose folder is `dir`; nothing while its shim has not written it.
pub fn read_exit(dir: &Path) -> Result<Option<Status>, Error> {
    let bytes = read_limited(&dir.join(EXIT_FILE_NAME), LINE_BYTES_MAX as u64);
    let Some(bytes) = bytes.map_err(io_error("reading the final status"))? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::Malformed(error.to_string()))
}

/// Whether the command of the attempt whose folder is `dir` may have been started.
pub fn may_have_started(dir: &Path) -> io::Result<bool> {
    is_there(&dir.join(STARTED_FILE_NAME))
}

fn is_there(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the shim of the attempt whose folder is `dir` began with its orders; its socket is the first that it makes then.
pub fn has_begun(dir: &Path) -> io::Result<bool> {
    is_there(&dir.join(SOCKET_NAME))
}

/// The events of the attempt whose folder is `dir` with sequences beyond `after`, in order, at most `count_max`.
///
/// The file is bounded and stays until the folder goes, so an agent that was restarted may read from 0 again: the store
/// keeps each (run, fence, sequence) once. A last line that is still being written is left for the next call. A line that
/// is no event of a shim counts as one that was refused: those after it keep their sequences.
pub fn read_events(dir: &Path, after: u64, count_max: usize) -> Result<Vec<EventKind>, Error> {
    let bytes = read_limited(&dir.join(EVENTS_FILE_NAME), EVENTS_MAX * EVENT_BYTES_MAX as u64);
    let Some(bytes) = bytes.map_err(io_error("reading the events"))? else { return Ok(Vec::new()) };
    let mut events = Vec::new();
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")).enumerate() {
        let seq = index as u64 + 1;
        if seq <= after || events.len() >= count_max {
            continue;
        }
        events.push(event_of(line, seq));
    }
    Ok(events)
}

/// The event in a line that must have the number `seq`.
fn event_of(line: &[u8], seq: u64) -> EventKind {
    if line.len() > EVENT_BYTES_MAX {
        return EventKind::refused(format!("its line has {} bytes; at most {EVENT_BYTES_MAX} are read", line.len()));
    }
    match serde_json::from_slice::<SourceEvent>(line) {
        Ok(told) if told.seq == seq => told.event.as_told(),
        Ok(told) => EventKind::refused(format!("its shim numbers it {} where {seq} follows", told.seq)),
        Err(error) => EventKind::refused(format!("it cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_event_does_not_take_the_later_ones_along() {
        let temp = tempfile::tempdir().unwrap();
        let told = |seq: u64, problem: &str| {
            let event = EventKind::ResultRefused { problem: problem.to_owned() };
            serde_json::to_string(&SourceEvent { seq, event }).unwrap()
        };
        let long = "x".repeat(EVENT_BYTES_MAX + 1);
        let only_the_servers = r#"{"seq":5,"event":{"kind":"requeued"}}"#;
        let lines = [&told(1, "a"), "{", &told(7, "wrong"), &long, only_the_servers, &told(6, "b"), "unfinished"];
        std::fs::write(temp.path().join(EVENTS_FILE_NAME), lines.join("\n")).unwrap();
        let events = read_events(temp.path(), 0, 10).unwrap();
        let good = |problem: &str| EventKind::ResultRefused { problem: problem.to_owned() };
        assert_eq!((events.len(), &events[0], &events[5]), (6, &good("a"), &good("b")));
        assert!(events[1..5].iter().all(|event| matches!(event, EventKind::EventRefused { .. })), "{events:?}");
        assert_eq!(read_events(temp.path(), 5, 10).unwrap(), [good("b")]);
    }
}
