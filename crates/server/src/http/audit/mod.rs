//! The audit log of an org.

pub mod list;
