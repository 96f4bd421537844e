//! Names that say nothing are refused: whoever looks for something would never look there.

use super::Finding;

/// What no crate, folder or module is called.
pub const REFUSED: [&str; 10] =
    ["common", "core", "utils", "util", "helpers", "helper", "shared", "manager", "misc", "stuff"];

/// Checks the folders and the name of a Rust file.
pub fn check_path(path: &str) -> Vec<Finding> {
    let Some(stem) = path.strip_suffix(".rs") else { return Vec::new() };
    let refused = stem.split('/').filter(|part| REFUSED.contains(part));
    refused.map(|part| Finding::error(path, problem(part))).collect()
}

/// Checks the name of a crate.
pub fn check_crate(name: &str) -> Option<Finding> {
    let bare = name.strip_prefix("holm-").unwrap_or(name);
    REFUSED.contains(&bare).then(|| Finding::error(format!("crate {name}"), problem(bare)))
}

/// What to say about a refused name.
pub fn problem(name: &str) -> String {
    format!("`{name}` says nothing: name it after what it does")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_nothing_are_found() {
        assert_eq!(check_path("crates/domain/src/utils.rs").len(), 1);
        assert_eq!(check_path("crates/shared/src/core/mod.rs").len(), 2);
        assert!(check_path("crates/domain/src/score.rs").is_empty());
        assert!(check_path("docs/common.md").is_empty());
        assert!(check_crate("holm-common").is_some());
        assert!(check_crate("manager").is_some());
        assert!(check_crate("holm-domain").is_none());
    }
}
