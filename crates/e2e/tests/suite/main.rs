//! The end-to-end suite: what a user sees, through the real binary. One file a theme.
//!
//! `cargo xtask test` runs it on SQLite, on PostgreSQL and as a plain user. What differs by privileges asks
//! [`holm_e2e::host::is_root`] and then asserts one thing or the other, so nothing is skipped.

mod agent_folder;
mod api;
mod attacks;
mod attempts;
mod audit;
mod basics;
mod buckets;
mod canary;
mod chaos;
mod clients;
mod contexts;
mod cordon;
mod crash;
mod credentials;
mod databases;
mod disks;
mod egress;
mod errors;
mod escape;
mod files;
mod followers;
mod guide;
mod hostile;
mod identity;
mod interruption;
mod isolation;
mod lease;
mod limits;
mod logs;
mod metrics;
mod oom;
mod org_limits;
mod output;
mod people;
mod places;
mod pressure;
mod records;
mod requests;
mod restore;
mod rolling;
#[path = "../../../store/tests/support/s3.rs"]
mod s3;
mod secrets;
mod site;
mod traces;
mod units;
mod up;
