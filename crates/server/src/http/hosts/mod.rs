//! Hosts.

pub mod cordon;
pub mod joins;
pub mod list;
pub mod revoke;
pub mod uncordon;
