//! One suite, every backend: each case runs on memory, on SQLite and on PostgreSQL.
//!
//! Cases about two servers open the database a second time. Nothing here sleeps, and no case depends on which task is
//! faster; where tasks race, what is asserted holds for every order.

mod audit;
mod blobs;
mod buckets;
mod claims;
mod corrupt;
mod enrol;
mod events;
mod hints;
mod isolation;
mod keys;
mod logs;
mod org_limits;
mod pools;
#[path = "../support/postgres.rs"]
mod postgres;
mod retention;
mod runs;
#[path = "../support/s3.rs"]
mod s3;
mod seals;
mod secrets;
mod support;
mod tenants;
