//! What a sandbox may reach: names, addresses, the policy over them, and what is added to requests.

pub mod address;
pub mod credential;
pub mod name;
pub mod policy;
