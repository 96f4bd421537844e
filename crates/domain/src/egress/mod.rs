//! What a sandbox may reach: names, addresses, the policy over them, what is added to requests, and what is
//! recorded of them.

pub mod address;
pub mod bound;
pub mod credential;
pub mod name;
pub mod policy;
pub mod record;
