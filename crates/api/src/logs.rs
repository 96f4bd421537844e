//! Log entries as JSON.

use holm_domain::{
    UnixMicros,
    log::{Entry, Stream},
};
use serde::{Deserialize, Serialize};

/// One line of output, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogEntry {
    /// Its number within the run, from 1.
    pub seq: u64,
    /// When it was read, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub at: UnixMicros,
    /// `stdout` or `stderr`.
    #[schema(value_type = String)]
    pub stream: Stream,
    /// Whether the line goes on in a later entry of the same stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The bytes with their line feed, where they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The bytes in base 64 (RFC 4648 §4), where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl From<Entry<'_>> for LogEntry {
    fn from(entry: Entry<'_>) -> Self {
        use base64::Engine as _;
        let (text, base64) = match std::str::from_utf8(entry.data) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(entry.data))),
        };
        Self { seq: entry.seq, at: entry.at, stream: entry.stream, partial: entry.partial, text, base64 }
    }
}

impl LogEntry {
    /// The bytes that the command wrote; nothing if the entry bears no data that can be read.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        match (&self.text, &self.base64) {
            (Some(text), None) => Some(text.as_bytes().to_vec()),
            (None, Some(encoded)) => base64::engine::general_purpose::STANDARD.decode(encoded).ok(),
            _ => None,
        }
    }
}

/// A page of log entries, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogPage {
    /// The entries.
    pub entries: Vec<LogEntry>,
    /// The number of the newest entry that was looked at: give it as `after` to go on.
    pub last_seq: u64,
    /// Whether the run has ended and nothing follows `last_seq`.
    pub complete: bool,
}
