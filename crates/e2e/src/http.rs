//! A small HTTP/1.1 client over a Unix socket, so that the API is tested as a stranger would speak it (RFC 9112, RFC 9110;
//! server-sent events as the WHATWG HTML standard has them).

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Instant,
};

use serde_json::Value;

use crate::DEADLINE;

/// Header lines, names in lower case.
pub type Headers = Vec<(String, String)>;

/// A server and a token for it.
#[derive(Debug, Clone)]
pub struct Http {
    /// The socket of the server.
    pub socket: PathBuf,
    /// The token, if one is to be sent.
    pub token: Option<String>,
}

/// An answer with its whole body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The header lines.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {} {}", self.status, String::from_utf8_lossy(&self.body)),
        }
    }

    /// Fails the test unless the status is `status`.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    /// Fails the test unless this is a problem document (RFC 9457) of that status and code.
    #[track_caller]
    pub fn is_problem(self, status: u16, code: &str) -> Value {
        let answer = self.is(status);
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/problem+json"), "content-type: {kind}");
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        for member in ["type", "title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "no {member}: {problem}");
        }
        problem
    }
}

impl Http {
    /// The same server with another token, or none.
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    /// DELETE.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], b"")
    }

    /// POST of JSON.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Any request.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        match self.try_send(method, path, headers, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path} on {}: {error}", self.socket.display()),
        }
    }

    /// Any request, for servers that may not be there.
    pub fn try_send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        let (status, headers, mut reader) = self.open(method, path, headers, body)?;
        let mut body = Vec::new();
        reader.read_to_end(&mut body)?;
        Ok(Answer { status, headers, body })
    }

    /// Follows server-sent events from after `last_id`.
    #[track_caller]
    pub fn follow(&self, path: &str, last_id: Option<&str>) -> Events {
        match self.try_follow(path, last_id) {
            Ok(events) => events,
            Err(error) => panic!("GET {path}: {error}"),
        }
    }

    /// The same, for servers that may not be there.
    pub fn try_follow(&self, path: &str, last_id: Option<&str>) -> std::io::Result<Events> {
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(last_id.map(|id| ("last-event-id", id)));
        match self.open("GET", path, &headers, b"")? {
            (200, _, reader) => Ok(Events { reader: BufReader::new(reader) }),
            (status, ..) => Err(std::io::Error::other(format!("answered with {status}"))),
        }
    }

    fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<(u16, Headers, Body)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: holm\r\nconnection: close\r\n");
        if let Some(token) = &self.token {
            head.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        // A server may refuse a body before it has read it all; its answer is what counts.
        let _refused = stream.write_all(body);
        read_head(BufReader::new(stream))
    }
}

fn read_head(mut reader: BufReader<UnixStream>) -> std::io::Result<(u16, Headers, Body)> {
    let malformed = |line: &str| std::io::Error::other(format!("malformed answer: {line:?}"));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| malformed(&line))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(|| malformed(text))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let value = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let kind = match (value("transfer-encoding"), value("content-length")) {
        (Some("chunked"), _) => Framing::Chunked { left: 0, begun: false },
        (_, Some(length)) => Framing::Length(length.parse().map_err(|_| malformed(length))?),
        _ if status == 204 => Framing::Length(0),
        _ => Framing::ToTheEnd,
    };
    Ok((status, headers, Body { reader, kind }))
}

enum Framing {
    Length(u64),
    Chunked { left: u64, begun: bool },
    ToTheEnd,
}

/// The body of an answer as it comes.
struct Body {
    reader: BufReader<UnixStream>,
    kind: Framing,
}

impl Body {
    /// The size of the next chunk; 0 at the end.
    fn next_chunk(&mut self, begun: bool) -> std::io::Result<u64> {
        let mut line = String::new();
        if begun {
            self.reader.read_line(&mut line)?;
            line.clear();
        }
        self.reader.read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        u64::from_str_radix(size, 16).map_err(|_| std::io::Error::other(format!("malformed chunk: {line:?}")))
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Framing::Chunked { left: 0, begun } = self.kind {
            self.kind = match self.next_chunk(begun)? {
                0 => Framing::Length(0),
                left => Framing::Chunked { left, begun: true },
            };
        }
        let left = match self.kind {
            Framing::Length(left) | Framing::Chunked { left, .. } => left,
            Framing::ToTheEnd => u64::MAX,
        };
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = if length == 0 { 0 } else { self.reader.read(&mut buffer[..length])? };
        if read == 0 && length > 0 && !matches!(self.kind, Framing::ToTheEnd) {
            return Err(std::io::Error::other("the answer was cut off"));
        }
        match &mut self.kind {
            Framing::Length(left) | Framing::Chunked { left, .. } => *left -= read as u64,
            Framing::ToTheEnd => {}
        }
        Ok(read)
    }
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The id by which a client resumes.
    pub id: Option<String>,
    /// The kind.
    pub event: String,
    /// The data.
    pub data: String,
}

/// Server-sent events as they come; ends when the server ends the answer.
pub struct Events {
    reader: BufReader<Body>,
}

impl Events {
    /// The next event; nothing at the end. An error where the stream breaks off, and where signs of life are all that comes.
    pub fn try_next(&mut self) -> std::io::Result<Option<Event>> {
        let deadline = Instant::now() + DEADLINE;
        let mut event = Event { id: None, event: "message".to_owned(), data: String::new() };
        let mut line = String::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            if Instant::now() >= deadline {
                return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no event within {DEADLINE:?}")));
            }
            let text = line.trim_end_matches(['\n', '\r']);
            match text.split_once(':') {
                None if text.is_empty() && !event.data.is_empty() => return Ok(Some(event)),
                Some(("id", value)) => event.id = Some(value.trim_start().to_owned()),
                Some(("event", value)) => event.event = value.trim_start().to_owned(),
                Some(("data", value)) => event.data.push_str(value.strip_prefix(' ').unwrap_or(value)),
                _ => {}
            }
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.try_next().unwrap_or_else(|error| panic!("the stream broke: {error}"))
    }
}
