//! The contract between `holm` processes and their users: types of the HTTP API v1, of the agent protocol, and of problem
//! documents.
//!
//! What always holds: these types carry no behaviour beyond conversion; unknown fields of requests are refused, unknown
//! fields of answers are ignored; every error is a [`problem::Problem`]. The client is behind the feature `client`.

pub mod agent;
pub mod audit;
pub mod batches;
#[cfg(feature = "client")]
pub mod client;
pub mod egress;
pub mod hosts;
pub mod identity;
pub mod keys;
pub mod logs;
pub mod orgs;
pub mod problem;
pub mod run_secrets;
pub mod run_token;
pub mod runs;
pub mod secrets;
pub mod signed_token;
pub mod tokens;

/// The header by which a creation may be repeated without harm.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header of server-sent events by which a client resumes (WHATWG HTML, server-sent events).
pub const LAST_EVENT_ID: &str = "last-event-id";
/// The header of every answer that bears the number under which the request stands in the server's log.
pub const REQUEST_ID: &str = "x-request-id";
/// The media type of problem documents (RFC 9457 §3).
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The media type of log batches in the agent protocol.
pub const LOG_BATCH: &str = "application/vnd.holm.log-batch";
/// The media type of a stream of log batches (see [`batches`]).
pub const LOG_BATCHES: &str = "application/vnd.holm.log-batches";
/// The media type of a tar archive of changes.
pub const TAR: &str = "application/x-tar";
