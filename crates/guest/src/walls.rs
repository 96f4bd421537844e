//! Walls that a test may take away, to show that the others stand without them.
//!
//! Without the feature `walls`, which no shipped guest is built with, nothing can be taken away: [`is_down`] is constant.

/// A wall between the workload and the rest that is the guest's to put up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// The filters of system calls.
    Seccomp,
    /// The rules over the guest and all commands.
    Landlock,
    /// The bounding and dropping of capabilities.
    Capabilities,
}

/// Whether a test has taken it away.
#[cfg(not(feature = "walls"))]
pub const fn is_down(_: Wall) -> bool {
    false
}

/// Whether a test has taken it away: its name stands in the variable `HOLM_GUEST_WALLS_DOWN`.
#[cfg(feature = "walls")]
pub fn is_down(wall: Wall) -> bool {
    let down = std::env::var("HOLM_GUEST_WALLS_DOWN").unwrap_or_default();
    down.split(',').any(|name| name == format!("{wall:?}").to_lowercase())
}
