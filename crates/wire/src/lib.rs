//! The wire: the one way into and out of a sandbox.
//!
//! A wire is two lanes, each a reliable byte channel. Every lane begins with a handshake ([`hello`]) that names version,
//! lane and epoch, and goes on as one HTTP/2 connection ([`http2`]): on the lane *in* the shim is the client and the guest
//! the server, on the lane *out* the other way round. What the guest serves on the lane in is [`guest_api`]; what the shim
//! serves on the lane out is [`host_api`]; [`dns`] is how programs inside put questions to the guest.
//!
//! This crate knows no files, processes or policies: it gives both ends the same bytes and the same limits. Nothing in it
//! supposes that the two ends share a kernel.

pub mod dns;
pub mod guest_api;
pub mod hello;
pub mod host_api;
pub mod http2;
