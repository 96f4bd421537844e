//! `holm keys …`: the keys by which the deployment signs tokens.

pub mod ls;
pub mod rotate;
pub mod withdraw;
