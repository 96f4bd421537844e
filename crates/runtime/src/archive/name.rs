//! Paths of archives: names, checked.

use std::fmt::{self, Write as _};

use super::Limits;

/// A path within an archive: names of one to any bytes, none of them `.` or `..`, none with a NUL byte or a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Whether it was written with a slash at its beginning.
    pub is_absolute: bool,
    /// Its names; none for the root of the archive.
    pub names: Vec<Vec<u8>>,
}

impl Name {
    pub(super) fn parse(path: &[u8], limits: &Limits) -> Result<Self, String> {
        check(path, limits)?;
        let mut names = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err("leads upwards: it has `..` in it".to_owned()),
                name if names.len() < limits.depth => names.push(name.to_vec()),
                _ => return Err(format!("is deeper than {} folders", limits.depth)),
            }
        }
        Ok(Self { is_absolute: path.starts_with(b"/"), names })
    }

    /// The path without slashes at its ends.
    pub fn path(&self) -> Vec<u8> {
        self.names.join(&b'/')
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() { f.write_str(".") } else { f.write_str(&shown(&self.path())) }
    }
}

/// What every path and every target of a link has to keep to.
pub(super) fn check(path: &[u8], limits: &Limits) -> Result<(), String> {
    if path.len() > limits.path_bytes {
        return Err(format!("is longer than {} bytes", limits.path_bytes));
    }
    if path.contains(&0) { Err("has a NUL byte in its name".to_owned()) } else { Ok(()) }
}

/// A path for people: control characters and what is not UTF-8 are escaped, and it has an end.
pub fn shown(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 512;
    let mut shown = String::new();
    for chunk in path[..path.len().min(SHOWN_MAX)].utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _infallible = write!(shown, "\\x{byte:02x}");
        }
    }
    if path.len() > SHOWN_MAX {
        shown.push('…');
    }
    shown
}
