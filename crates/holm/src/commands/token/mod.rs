//! `holm token …`

pub mod create;
pub mod ls;
pub mod revoke;
