//! HTTP/2 on a lane: settings, and the few helpers that both ends need.
//!
//! What always holds: every body that is read whole has a limit, and one that is streamed gives its flow-control credit
//! back only once its bytes were taken, so a slow reader slows the writer and nobody buffers more than a stream's window.
//! A request is answered once: an informational answer (1xx) is an error, and a second one breaks the connection.
//! Requests and answers of the APIs are JSON of at most [`crate::guest_api::JSON_BYTES_MAX`] bytes.
//!
//! Deadlines are the caller's: every future here may be dropped, which resets its stream and nothing else.

mod body;
mod client;
mod one_head;
mod server;

pub use body::{Incoming, Outgoing, PUMP_BYTES_MAX, read_whole};
pub use client::{Client, Driver, Tunnel, connect};
pub use one_head::OneHead;
pub use server::{Answer, Exchange, Server, accept, read_json};

use http::StatusCode;

/// How an HTTP/2 connection is set up (measured: notes on the wire).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The largest number of streams that the other side may have open at once.
    pub streams_max: u32,
    /// How many bytes of one stream may be under way unread.
    pub stream_window_bytes: u32,
    /// What it may cost, in bytes beyond what they carry, to keep frames of data that are small: h2 counts 256 bytes for each,
    /// and takes larger frames off that, wherever they are read. It makes an attack longer, and is no bound by itself.
    pub overhead_bytes_max: usize,
}

impl Settings {
    /// For the host's end of the lane in, which trusts the guest no more than it has to: of data it holds at most
    /// `stream_window_bytes` for each request that is under way. That is no bound of memory: a frame that is held keeps the
    /// whole buffer in which it was read (8 KiB or more), whatever else came in it. A window full of the smallest frames of
    /// output, 6 bytes each, costs less than that: a command that writes byte by byte is no attack.
    pub const HOST: Settings =
        Settings { streams_max: 256, stream_window_bytes: 256 * 1024, overhead_bytes_max: 12 * 1024 * 1024 };
    /// For the host's end of the lane out, where each body is one small question: 256 streams of 8 KiB, which is 2 MiB of
    /// data, and 256 KiB for small frames of it, which is four for each stream.
    pub const HOST_OUT: Settings =
        Settings { streams_max: 256, stream_window_bytes: 8 * 1024, overhead_bytes_max: 256 * 1024 };
    /// For the guest: its peer is the shim, and throughput matters.
    pub const GUEST: Settings =
        Settings { streams_max: 1024, stream_window_bytes: 1024 * 1024, overhead_bytes_max: 1024 * 1024 * 1024 };
}

/// The largest HTTP/2 frame, in bytes.
pub const FRAME_BYTES: u32 = 64 * 1024;
/// The connection's window: the maximum, so that only the windows of streams hold anything back. With a smaller one, a few
/// stalled streams stop all others.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// The largest list of headers, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// How much a stream may hold that was handed over to be sent, in bytes.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Why a request or an answer failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection or the stream failed.
    #[error("http/2: {0}")]
    Protocol(#[from] h2::Error),
    /// A body is larger than it may be.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// A body is not the JSON that was expected.
    #[error("unexpected JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A request could not be put together from its parts.
    #[error("malformed request: {0}")]
    Request(#[from] http::Error),
    /// The other side announced an answer in place of giving it.
    #[error("answered {0}, which only announces an answer")]
    Informational(StatusCode),
    /// The other side refused. `body` is at most [`crate::guest_api::JSON_BYTES_MAX`] bytes, and not to be trusted.
    #[error("answered {status}: {}", String::from_utf8_lossy(&body[..body.len().min(512)]))]
    Status {
        /// The status.
        status: StatusCode,
        /// The body as it came.
        body: bytes::Bytes,
    },
    /// The other side takes no more of the body.
    #[error("the other side takes no more of the body")]
    BodyRefused,
}
