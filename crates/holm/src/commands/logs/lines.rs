//! Writes entries: byte by byte as they are, or line by line with the time before each and a limit on its length.
//!
//! What always holds: without a limit and without times, what is written to a stream is exactly what the command wrote to
//! it. Entries are put together before they are written, and never held back beyond a flush.

use std::io;

use holm_domain::log::{Entry, Stream};

use crate::{commands::instant, output::RawStreams};

/// How much is put together before it is written, in bytes.
const JOIN_BYTES_MAX: usize = 64 * 1024;

/// The line of one stream that is being written.
#[derive(Debug, Default, Clone, Copy)]
struct Open {
    /// Whether the next entry goes on with it.
    goes_on: bool,
    shown: usize,
    left_out: u64,
}

/// Where lines are written.
pub struct Lines {
    streams: RawStreams,
    timestamps: bool,
    shown_max: Option<usize>,
    open: [Open; 2],
    joined: Vec<u8>,
    stream: Stream,
}

impl Lines {
    /// With `shown_max`, that many bytes of each line are shown.
    pub fn new(streams: RawStreams, timestamps: bool, shown_max: Option<usize>) -> Self {
        Self { streams, timestamps, shown_max, open: [Open::default(); 2], joined: Vec::new(), stream: Stream::Stdout }
    }

    /// Writes an entry, at the latest with the next flush.
    pub fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        if entry.stream != self.stream || self.joined.len() >= JOIN_BYTES_MAX {
            self.flush()?;
            self.stream = entry.stream;
        }
        let open = &mut self.open[entry.stream as usize];
        if self.timestamps && !open.goes_on {
            self.joined.extend_from_slice(format!("{} ", instant(entry.at)).as_bytes());
        }
        match self.shown_max {
            None => self.joined.extend_from_slice(entry.data),
            Some(max) => show(&mut self.joined, open, entry, max),
        }
        open.goes_on = entry.partial;
        Ok(())
    }

    /// Writes what was put together.
    pub fn flush(&mut self) -> io::Result<()> {
        self.streams.write(self.stream, &self.joined)?;
        self.joined.clear();
        Ok(())
    }

    /// The output has ended: whatever was held back is written, and of a line that has no end what was left out is told.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = std::mem::take(&mut self.open[stream as usize]);
            if open.left_out > 0 {
                self.streams.write(stream, marker(open.left_out).as_bytes())?;
            }
        }
        self.streams.finish()
    }
}

/// Adds what is shown of an entry, and at the end of its line how much was not.
fn show(out: &mut Vec<u8>, open: &mut Open, entry: &Entry<'_>, max: usize) {
    let (line, feed) = match entry.data.strip_suffix(b"\n") {
        Some(line) => (line, &b"\n"[..]),
        None => (entry.data, &b""[..]),
    };
    let room = whole_characters(line, max.saturating_sub(open.shown));
    // Once something was left out, nothing more of the line is shown: it would seem to follow.
    let shown = if open.left_out > 0 { 0 } else { room };
    out.extend_from_slice(&line[..shown]);
    open.shown += shown;
    open.left_out += (line.len() - shown) as u64;
    if entry.partial {
        return;
    }
    if open.left_out > 0 {
        out.extend_from_slice(marker(open.left_out).as_bytes());
    }
    out.extend_from_slice(feed);
    *open = Open::default();
}

/// What stands for the bytes of a line that are not shown.
pub fn marker(left_out: u64) -> String {
    format!("… [{left_out} bytes more]")
}

/// How many bytes of `line` fit into `room` without cutting a character of UTF-8.
pub fn whole_characters(line: &[u8], room: usize) -> usize {
    if line.len() <= room {
        return line.len();
    }
    let begins = |at: &usize| line[*at] & 0xc0 != 0x80;
    (room.saturating_sub(3)..=room).rev().find(begins).unwrap_or(room)
}

#[cfg(test)]
mod tests {
    use holm_domain::UnixMicros;

    use super::*;

    fn shown(entries: &[(&str, bool)], max: usize) -> String {
        let (mut out, mut open) = (Vec::new(), Open::default());
        for (data, partial) in entries {
            let entry =
                Entry { seq: 1, at: UnixMicros(0), stream: Stream::Stdout, partial: *partial, data: data.as_bytes() };
            show(&mut out, &mut open, &entry, max);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_long_line_is_cut_once_and_the_cut_is_marked() {
        assert_eq!(shown(&[("12345\n", false)], 5), "12345\n");
        assert_eq!(shown(&[("123456\n", false)], 5), "12345… [1 bytes more]\n");
        assert_eq!(shown(&[("123", true), ("45", true), ("67", true), ("89\n", false)], 5), "12345… [4 bytes more]\n");
        assert_eq!(shown(&[("1234567", false)], 5), "12345… [2 bytes more]");
        assert_eq!(shown(&[("1234567\n", false), ("ab\n", false)], 5), "12345… [2 bytes more]\nab\n");
        assert_eq!(shown(&[("1234ä\n", false)], 5), "1234… [2 bytes more]\n", "no half characters");
    }

    #[test]
    fn rubbish_is_cut_as_well() {
        assert_eq!(whole_characters(&[0x80; 20], 10), 10);
        assert_eq!(whole_characters("ää".as_bytes(), 3), 2);
        assert_eq!(whole_characters(b"abc", 0), 0);
    }
}
