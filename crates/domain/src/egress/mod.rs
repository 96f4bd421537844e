//! What a sandbox may reach: names, addresses, and the policy over them.

pub mod address;
pub mod name;
pub mod policy;
