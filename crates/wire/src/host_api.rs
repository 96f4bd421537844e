//! What the shim serves on the lane out.
//!
//! | request | answer |
//! |---|---|
//! | `CONNECT host:port` | 200 and a tunnel, or 403 when the policy does not name it (today: always) |
//! | `POST /resolve` [`Resolve`] | 200 [`Resolved`], or 403 where the policy does not name it |
//! | `POST /refused` [`Refused`] | 204; tells of connections that failed inside before they could be asked for |
//!
//! The shim decides, counts and tells: the guest only asks. How much a guest may tell is limited by the shim.

use serde::{Deserialize, Serialize};

/// A name that a program inside asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// As it was asked for, at most 255 bytes.
    pub name: String,
}

/// What stands for a name inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolved {
    /// The address; a connection to it is one to the name.
    pub address: std::net::Ipv4Addr,
    /// How long it may be kept, in seconds.
    pub ttl_s: u32,
}

/// A destination that a program inside tried to reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The address or name.
    pub host: String,
    /// The port; 0 for a look-up of a name.
    pub port: u16,
    /// `tcp`, `udp` or `dns`.
    pub protocol: String,
    /// How many times since this destination was told of last.
    pub count: u64,
}
