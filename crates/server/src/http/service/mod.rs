//! The server itself: whether it lives, whether it can serve, what its API is.

pub mod healthz;
pub mod openapi;
pub mod readyz;
