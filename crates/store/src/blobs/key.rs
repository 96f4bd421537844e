//! The names of objects: made of ids alone, so that no text that a user chose is ever part of one.

use std::fmt;

use holm_domain::{OrgId, RunId};
use object_store::path::Path;

/// The name of an object; made of ids only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BlobKey(pub(super) Path);

impl BlobKey {
    /// The archive of changes that the attempt of `run` with `fence` left.
    pub fn run_changes(org: OrgId, run: RunId, fence: u64) -> Self {
        Self(run_path(org, run).join(format!("changes.{fence:020}.tar")))
    }

    /// A piece of the log of `run`. The digest of the bytes is part of the name, so that no writer, however late, puts
    /// other bytes under a name that the index already knows.
    pub(crate) fn log_segment(org: OrgId, run: RunId, first_seq: u64, bytes: &[u8]) -> Self {
        use sha2::{Digest, Sha256};
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self(log_path(org, run).join(format!("{first_seq:020}.{digest}")))
    }

    /// The key as it stands in the index.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_ref()
    }

    /// Reads a key from the index, if it is one of the log of `run`.
    pub(crate) fn parse_log_segment(text: &str, org: OrgId, run: RunId) -> Option<Self> {
        let path = Path::parse(text).ok()?;
        path.prefix_matches(&log_path(org, run)).then_some(Self(path))
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

pub(super) fn run_path(org: OrgId, run: RunId) -> Path {
    Path::from_iter(["orgs".to_owned(), org.to_string(), "runs".to_owned(), run.to_string()])
}

pub(super) fn log_path(org: OrgId, run: RunId) -> Path {
    run_path(org, run).join("logs")
}

/// Whether a key, as it stands in the index, is one of the log of a run.
pub(crate) fn is_log_key(key: &str) -> bool {
    key.split('/').nth_back(1) == Some("logs")
}
