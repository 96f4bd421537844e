//! The keys of the deployment.

pub mod envelope_rotate;
pub mod jwks;
pub mod list;
pub mod rotate;
pub mod withdraw;
