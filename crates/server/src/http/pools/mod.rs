//! Pools of hosts that orgs share.

pub mod add;
pub mod list;
pub mod remove;
pub mod share;
pub mod unshare;
