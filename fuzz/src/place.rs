//! A folder for the files that a target gives its reader.

use std::path::Path;

/// Calls `what` with the folder of this thread, which may have files of an earlier input in it.
pub(crate) fn with<T>(what: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a temporary folder");
    }
    DIR.with(|dir| what(dir.path()))
}
