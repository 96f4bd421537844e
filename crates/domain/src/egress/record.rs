//! What is recorded of each connection and each request that a sandbox made, or was refused (SPEC N8).
//!
//! What always holds: no record has a query, a field or a value of a secret; what a sandbox chose of it has a limit.

use serde::{Deserialize, Serialize};

use crate::secret::SecretName;

/// A connection, or a request over one that is intercepted, which has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name or the address that was asked for.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Where the connection led to, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The request, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Requested>,
    /// Why it was not made, or ended before its end: a stable code. Nothing where it was allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// How many bytes the sandbox sent; of a request those of its body.
    pub sent: u64,
    /// How many bytes it was sent.
    pub received: u64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// What is recorded of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requested {
    /// Its method.
    pub method: String,
    /// Its path, without a query.
    pub path: String,
    /// With which status the server answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The names of the secrets that were added to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
}
