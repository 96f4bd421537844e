//! The agent protocol.

pub mod changes;
pub mod ended;
pub mod enrol;
pub mod events;
pub mod finish;
pub mod logs;
pub mod poll;
pub mod register;
pub mod renew;
pub mod secrets;
pub mod session;
pub mod start;
