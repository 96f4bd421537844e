//! What stands between a sandbox and the network.

pub mod egress;
pub mod pace;
