//! What orgs may have and do at most.

pub mod limits;
pub mod limits_set;
