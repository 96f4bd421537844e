//! The only place in the agent where identities are drawn: its own, once, and that of each of its processes.

use std::path::Path;

use holm_domain::{AgentId, InstanceId};

use crate::folder::{FolderError, at, read_own, write_durably};

const FILE_NAME: &str = "id";
const INSTANCE_FILE_NAME: &str = "instance";

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

/// This process of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its identity.
    pub(crate) instance: InstanceId,
    /// The process before it in this folder.
    pub(crate) after: Option<InstanceId>,
}

/// Draws the identity of this process, and leaves it in the folder for its successor before anybody else hears of it.
pub(crate) fn draw_process(dir: &Path) -> Result<Process, FolderError> {
    let path = dir.join(INSTANCE_FILE_NAME);
    let text = at(&path, read_own(&path, 256))?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let after = text.and_then(|text| {
        text.parse().inspect_err(|error| tracing::warn!(%error, "which process came before this one")).ok()
    });
    #[allow(clippy::disallowed_methods)] // This is the module that may.
    let instance = InstanceId::from_uuid(uuid::Uuid::now_v7());
    write_durably(dir, INSTANCE_FILE_NAME, format!("{instance}\n").as_bytes())?;
    Ok(Process { instance, after })
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

    #[test]
    fn each_process_is_another_and_knows_the_one_before() {
        let temp = tempfile::tempdir().unwrap();
        let first = draw_process(temp.path()).unwrap();
        let second = draw_process(temp.path()).unwrap();
        assert_eq!((first.after, second.after), (None, Some(first.instance)));
        assert_ne!(first.instance, second.instance);
        std::fs::write(temp.path().join(INSTANCE_FILE_NAME), "ins_").unwrap();
        assert_eq!(draw_process(temp.path()).unwrap().after, None);
    }
}
