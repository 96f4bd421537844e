//! Hosts.

pub mod cordon;
pub mod list;
pub mod uncordon;
