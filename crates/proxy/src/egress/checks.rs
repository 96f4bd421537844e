//! Checks that a test takes away, one at a time, to see that the test of what it is against notices.
//!
//! That is so in builds with debug assertions alone; in others nothing is left of it.

use std::{ffi::OsString, sync::LazyLock};

/// The variable that names the check which is taken away; an agent hands it on to its shims.
pub const VARIABLE: &str = "HOLM_TEST_UNCHECKED";

static TAKEN_AWAY: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os(VARIABLE));

/// Whether the check of that name is taken away.
pub fn is_off(name: &str) -> bool {
    cfg!(debug_assertions) && TAKEN_AWAY.as_ref().is_some_and(|taken_away| taken_away == name)
}
