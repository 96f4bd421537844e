//! What happened, in order: its digest always, its lines where they are wanted.

use std::fmt::Arguments;

use sha2::{Digest as _, Sha256};

use crate::time::At;

/// What happened, in order.
#[derive(Debug, Default)]
pub struct Trace {
    digest: Sha256,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// One that keeps its lines as well.
    pub fn keeping_lines() -> Self {
        Self { lines: Some(Vec::new()), ..Self::default() }
    }

    /// Adds a line.
    pub fn note(&mut self, at: At, what: Arguments<'_>) {
        let line = format!("{:>13} {what}\n", at.0);
        self.digest.update(line.as_bytes());
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }

    /// The digest of all lines in hexadecimal, and the lines where they were kept.
    pub fn finish(self) -> (String, Vec<String>) {
        let digest = self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (digest, self.lines.unwrap_or_default())
    }
}
