//! Traces: to which one a run belongs, what is recorded of it, and times that lie within others.
//!
//! A trace is named by who submits a run, in the header `traceparent` of W3C Trace Context
//! (<https://www.w3.org/TR/trace-context/>). What always holds: a header that is not exactly as that says is as if it were
//! not there; nothing but what is recorded depends on one; it has a fixed size wherever it is kept.
//!
//! Deliberately left out: `tracestate`, which is for those who make traces of their own, and is not carried on.

mod sampler;

use std::{
    fmt,
    num::{NonZeroU64, NonZeroU128},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

pub use sampler::Sampler;

use crate::UnixMicros;

/// The header that names a trace, and the variable of the environment that does.
pub const TRACEPARENT: &str = "traceparent";
/// The longest header that is read, in bytes: later versions may be longer than the 55 of today.
pub const TRACEPARENT_BYTES_MAX: usize = 256;
/// The length of the version that is written, in bytes.
const VERSION_00_BYTES: usize = 55;

/// The number of a trace: 32 hexadecimal digits, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// The number of a span in its trace: 16 hexadecimal digits, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// One of a number that the caller drew.
    pub const fn new(drawn: NonZeroU128) -> Self {
        Self(drawn)
    }

    /// Its bytes, as they are sent.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

impl SpanId {
    /// One of a number that the caller drew.
    pub const fn new(drawn: NonZeroU64) -> Self {
        Self(drawn)
    }

    /// Its bytes, as they are sent.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text names no place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "give `00-`, 32 digits, `-`, 16 digits, `-` and 2 digits, hexadecimal with small letters, and neither number zero"
)]
pub struct NotATrace;

/// Digits that all are hexadecimal and small.
fn hex(text: &str, digits: usize) -> Result<u128, NotATrace> {
    let is_hex = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hex { u128::from_str_radix(text, 16).map_err(|_| NotATrace) } else { Err(NotATrace) }
}

impl FromStr for TraceId {
    type Err = NotATrace;

    fn from_str(text: &str) -> Result<Self, NotATrace> {
        NonZeroU128::new(hex(text, 32)?).map(Self).ok_or(NotATrace)
    }
}

impl FromStr for SpanId {
    type Err = NotATrace;

    fn from_str(text: &str) -> Result<Self, NotATrace> {
        let number = u64::try_from(hex(text, 16)?).map_err(|_| NotATrace)?;
        NonZeroU64::new(number).map(Self).ok_or(NotATrace)
    }
}

/// A place in a trace: the span under which what follows is recorded, if it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether it is recorded.
    pub is_sampled: bool,
}

impl TraceContext {
    /// Another span of the same trace, recorded or not as this one is.
    #[must_use]
    pub const fn at(self, span: SpanId) -> Self {
        Self { span, ..self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

impl FromStr for TraceContext {
    type Err = NotATrace;

    /// Reads the value of a `traceparent` as its specification has it: of a version to come, the parts of today.
    fn from_str(text: &str) -> Result<Self, NotATrace> {
        if text.len() < VERSION_00_BYTES || text.len() > TRACEPARENT_BYTES_MAX || !text.is_ascii() {
            return Err(NotATrace);
        }
        let (head, more) = text.split_at(VERSION_00_BYTES);
        let mut parts = head.split('-');
        let mut part = |digits| parts.next().ok_or(NotATrace).and_then(|part| hex(part, digits).map(|_| part));
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let is_as_long_as_may_be = more.is_empty() || version != "00" && more.starts_with('-');
        if parts.next().is_some() || version == "ff" || !is_as_long_as_may_be {
            return Err(NotATrace);
        }
        // Other flags mean nothing yet, and are not passed on.
        let is_sampled = hex(flags, 2)? & 1 == 1;
        Ok(Self { trace: trace.parse()?, span: span.parse()?, is_sampled })
    }
}

/// As text, in memory, in logs and in JSON.
macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_text!(TraceId, SpanId, TraceContext);

/// Reads what is said of a trace in a row or an answer. What cannot be read is as if it were not there: nobody is to lose a run
/// for it.
pub fn if_legible<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said<T> {
        Legible(T),
        Other(serde::de::IgnoredAny),
    }
    match Said::deserialize(deserializer)? {
        Said::Legible(said) => Ok(Some(said)),
        Said::Other(_) => Ok(None),
    }
}

/// The trace of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTrace {
    /// Under which span all that becomes of the run is recorded.
    pub context: TraceContext,
    /// That span itself, where it is a server's to record; otherwise it is the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<OwnSpan>,
    /// Since when the run waits in the queue, or waited last.
    pub waits_since: UnixMicros,
}

/// A span that servers record, from the submission of a run to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnSpan {
    /// The span of the client, if it named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SpanId>,
}

/// A time from an instant to one that is not before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    start: UnixMicros,
    end: UnixMicros,
}

impl Interval {
    /// From `start` to `end`; an end before the start is the start.
    pub fn new(start: UnixMicros, end: UnixMicros) -> Self {
        Self { start, end: end.max(start) }
    }

    /// When it begins.
    pub const fn start(self) -> UnixMicros {
        self.start
    }

    /// When it ends.
    pub const fn end(self) -> UnixMicros {
        self.end
    }

    /// The same by a clock that is ahead by so many microseconds, or behind where they are negative.
    #[must_use]
    pub fn moved(self, micros: i64) -> Self {
        let moved = |at: UnixMicros| UnixMicros(at.0.saturating_add(micros));
        Self { start: moved(self.start), end: moved(self.end) }
    }

    /// What of it lies in `outer`: whoever told these times cannot make anything look as if it had been elsewhere.
    #[must_use]
    pub fn within(self, outer: Self) -> Self {
        let held = |at: UnixMicros| at.clamp(outer.start, outer.end);
        Self { start: held(self.start), end: held(self.end) }
    }
}

#[cfg(test)]
mod tests;
