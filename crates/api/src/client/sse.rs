//! Reads server-sent events (WHATWG HTML §9.2) from bytes as they come.
//!
//! Only what the API sends is kept: event name, data and id. Comments and `retry` are skipped. An event may hold
//! [`EVENT_BYTES_MAX`] bytes; one that is longer is an error, not a reason to take memory. It is public for the crate that
//! fuzzes it, and for nobody else.

/// The longest event, in bytes. A log entry of 64 KiB whose every byte JSON must escape stays below.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// Its name; empty where none was sent.
    pub name: String,
    /// Its data; lines are separated by line feeds.
    pub data: String,
    /// Its id, if one was sent.
    pub id: Option<String>,
}

/// Why bytes are not server-sent events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// It is longer than may be.
    #[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
    TooLong,
    /// It is not text.
    #[error("an event is not UTF-8")]
    NotUtf8,
}

/// The reader. Bytes are pushed, events are pulled; what is held is one event and the piece pushed last.
#[derive(Debug, Default)]
pub struct SseReader {
    buffer: Vec<u8>,
    /// How much of `buffer` was read already.
    read: usize,
    name: String,
    data: String,
    id: Option<String>,
    has_data: bool,
    /// Whether the line before ended with a carriage return, so that a line feed now belongs to it.
    after_cr: bool,
}

impl SseReader {
    /// Takes a piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole event, if what was pushed has one.
    pub fn pull(&mut self) -> Result<Option<SseEvent>, SseError> {
        loop {
            let rest = &self.buffer[self.read..];
            if self.after_cr && rest.first() == Some(&b'\n') {
                self.after_cr = false;
                self.read += 1;
                continue;
            }
            let Some(length) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                return if rest.len() + self.data.len() > EVENT_BYTES_MAX { Err(SseError::TooLong) } else { Ok(None) };
            };
            self.after_cr = rest[length] == b'\r';
            let line = std::str::from_utf8(&rest[..length]).map_err(|_| SseError::NotUtf8)?.to_owned();
            self.read += length + 1;
            if self.data.len() + line.len() > EVENT_BYTES_MAX {
                return Err(SseError::TooLong);
            }
            if let Some(event) = self.line(&line) {
                return Ok(Some(event));
            }
        }
    }

    fn line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let (name, data, id) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data), self.id.take());
        if !std::mem::take(&mut self.has_data) {
            return None;
        }
        Some(SseEvent { name, data, id })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(pieces: &[&[u8]]) -> Result<Vec<SseEvent>, SseError> {
        let mut reader = SseReader::default();
        let mut events = Vec::new();
        for piece in pieces {
            reader.push(piece);
            while let Some(event) = reader.pull()? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn event(name: &str, data: &str, id: Option<&str>) -> SseEvent {
        SseEvent { name: name.into(), data: data.into(), id: id.map(str::to_owned) }
    }

    #[test]
    fn fields_comments_and_line_ends() {
        let text = b": hello\n\nevent: log\nid: 7\ndata: a\ndata:b\n\nretry: 1\r\ndata\r\n\r\ndata:  x\r\r";
        let wanted = vec![event("log", "a\nb", Some("7")), event("", "", None), event("", " x", None)];
        assert_eq!(all(&[text]), Ok(wanted));
    }

    #[test]
    fn an_event_that_was_cut_off_is_not_told() {
        assert_eq!(all(&[b"data: a\n"]), Ok(vec![]));
    }

    #[test]
    fn endless_lines_and_endless_events_are_refused() {
        let mut reader = SseReader::default();
        reader.push(&vec![b'a'; EVENT_BYTES_MAX + 1]);
        assert_eq!(reader.pull(), Err(SseError::TooLong));
        let mut reader = SseReader::default();
        let line = [b"data: ".as_slice(), &[b'a'; 1000], b"\n"].concat();
        let refused = (0..EVENT_BYTES_MAX / 1000 + 2).any(|_| {
            reader.push(&line);
            reader.pull().is_err()
        });
        assert!(refused);
        assert_eq!(all(&[b"data: \xff\n\n"]), Err(SseError::NotUtf8));
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            events in prop::collection::vec(("[a-z]{0,5}", "[a-z \n:]{1,40}", "[0-9]{1,4}"), 0..8),
            cuts in prop::collection::vec(0usize..400, 0..12),
            crlf: bool,
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            let mut text = String::new();
            let mut wanted = Vec::new();
            for (name, data, id) in &events {
                text += &format!("event: {name}{end}id: {id}{end}");
                for line in data.split('\n') {
                    text += &format!("data: {line}{end}");
                }
                text += end;
                wanted.push(event(name, data, Some(id)));
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(all(&pieces), Ok(wanted));
        }
    }
}
