//! The server itself: whether it lives, whether it can serve, what it counts, what its API is.

pub mod healthz;
pub mod metrics;
pub mod openapi;
pub mod readyz;
