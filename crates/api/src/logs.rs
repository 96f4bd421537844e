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

/// `GET …/logs/range`: the query. What is given together narrows the range together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogRangeOf {
    /// From the first entry on that is not older than this, in microseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<i64>)]
    pub since: Option<UnixMicros>,
    /// Up to the last entry before the first that is newer than this, in microseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<i64>)]
    pub until: Option<UnixMicros>,
    /// Of that, the last so many lines: 0 to 100,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
}

/// A part of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogRange {
    /// It begins after this sequence: give it as `after`.
    pub after: u64,
    /// The last sequence of it that is stored now; `after` if it is empty.
    pub last_seq: u64,
    /// Whether more may come that belongs to it: the run has not ended, and nothing newer than `until` was written.
    pub open: bool,
}

/// `GET …/logs/search`: the query, with exactly one of `text` and `regex`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SearchLogs {
    /// Lines that contain this, byte by byte: 1 to 1,024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Lines that match this regular expression: 1 to 1,024 bytes, in the syntax of the Rust crate `regex`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Only lines that end after this sequence; 0 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only up to this sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upto: Option<u64>,
    /// How many lines at most: 1 to 10,000, 1,000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A line that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogMatch {
    /// The sequence of the first entry of the line.
    pub first_seq: u64,
    /// The line, put together from its entries; with sequence and time of the last.
    #[serde(flatten)]
    pub line: LogEntry,
}

/// What a search found, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogMatches {
    /// The lines.
    pub matches: Vec<LogMatch>,
    /// The number of the newest entry that was looked at: give it as `after` to go on.
    pub last_seq: u64,
    /// Whether that was the last: everything that is stored, or everything up to `upto`.
    pub complete: bool,
}

/// `GET …/logs/batches`: the query.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamLogs {
    /// Only what has a larger sequence; the header `Last-Event-ID` goes before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Only up to this sequence; where it is left out, what is stored when the request comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upto: Option<u64>,
    /// Go on until the run has ended. Not together with `upto`.
    #[serde(default)]
    pub follow: bool,
}
