//! `holm context …`

pub mod choose;
pub mod ls;
pub mod rm;
