//! Runs, their logs, their events and their changes.

pub mod cancel;
pub mod changes;
pub mod create;
pub mod delete;
pub mod egress;
pub mod events;
pub mod events_follow;
pub mod get;
pub mod list;
pub mod logs;
pub mod logs_batches;
pub mod logs_follow;
pub mod logs_range;
pub mod logs_search;
