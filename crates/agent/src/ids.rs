//! The only place in the agent where an identity is drawn.

use std::path::Path;

use holm_domain::AgentId;

use crate::folder::{FolderError, at, read_own, write_durably};

const FILE_NAME: &str = "id";

/// The agent's identity: drawn once, and kept in its folder.
pub(crate) fn load_or_draw(dir: &Path) -> Result<AgentId, FolderError> {
    let path = dir.join(FILE_NAME);
    if let Some(bytes) = at(&path, read_own(&path, 256))? {
        let text = String::from_utf8_lossy(&bytes);
        return at(&path, text.trim().parse().map_err(std::io::Error::other));
    }
    #[allow(clippy::disallowed_methods)] // This is the module that may.
    let id = AgentId::from_uuid(uuid::Uuid::now_v7());
    write_durably(dir, FILE_NAME, format!("{id}\n").as_bytes())?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_once_and_never_made_up_over_a_damaged_one() {
        let temp = tempfile::tempdir().unwrap();
        let id = load_or_draw(temp.path()).unwrap();
        assert_eq!(load_or_draw(temp.path()).unwrap(), id);
        std::fs::write(temp.path().join(FILE_NAME), "agt_").unwrap();
        assert!(load_or_draw(temp.path()).is_err());
    }
}
