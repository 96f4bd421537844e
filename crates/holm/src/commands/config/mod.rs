//! `holm config …`

pub mod check;
