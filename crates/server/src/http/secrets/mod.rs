//! Secrets of orgs and projects.

pub mod bind;
pub mod create;
pub mod delete;
pub mod list;
pub mod rotate;
#[cfg(test)]
mod tests;
