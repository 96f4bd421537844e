//! The only place in the agent where identities are drawn: its own, once, and that of each of its processes.
//!
//! An identity that cannot be read is told and never drawn anew by itself, not even where no attempt is left. By it the
//! server knows the host: under another one a host that somebody cordoned (for the disk, perhaps, that has just lost the
//! file) would take runs again, and what the old one held would wait for its leases to run out. A predecessor that cannot be
//! read keeps nobody up: it only helps to refuse words that come late.

use std::{io, path::Path};

use holm_domain::{AgentId, InstanceId};
use holm_runtime::crash::effect;
use rustix::io::Errno;

use crate::{
    folder::{Damage, FolderError, check, read_own, write_durably},
    own_key,
};

const FILE_NAME: &str = "id";
const INSTANCE_FILE_NAME: &str = "instance";
/// The most that is read of a file with an identity, in bytes.
const ID_BYTES_MAX: u64 = 256;

const ID_WAY_OUT: &str = "remove it: the agent is a new host then, whose cordon is to be asked for again, and what it had is \
                          granted anew once the leases are over; or, where its server runs elsewhere, write the id into it \
                          that `holm hosts` shows for this host";
const INSTANCE_WAY_OUT: &str = "remove it; each start writes it anew";

/// The agent's identity: drawn once, and kept in its folder.
pub(crate) fn load_or_draw(dir: &Path) -> Result<AgentId, FolderError> {
    if let Some(id) = load(dir)? {
        return Ok(id);
    }
    #[allow(clippy::disallowed_methods)] // This is the module that may.
    let id = AgentId::from_uuid(uuid::Uuid::now_v7());
    effect("agent.id", || write_durably(dir, FILE_NAME, format!("{id}\n").as_bytes()))?;
    Ok(id)
}

fn load(dir: &Path) -> Result<Option<AgentId>, FolderError> {
    let path = dir.join(FILE_NAME);
    let refused = |error| refused(&path, error, ID_WAY_OUT);
    let Some(bytes) = read_own(&path, ID_BYTES_MAX).map_err(refused)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes);
    match text.trim() {
        "" => Err(refused(io::Error::other("it is empty"))),
        text => text.parse().map(Some).map_err(|error| refused(io::Error::other(error))),
    }
}

/// What the operating system refuses says itself what is to be done; everything else is damage.
pub(crate) fn refused(path: &Path, error: io::Error, way_out: &'static str) -> FolderError {
    match error.raw_os_error() {
        Some(code) if code != Errno::LOOP.raw_os_error() => FolderError::Io { path: path.to_owned(), source: error },
        _ => FolderError::Damaged(Damage { path: path.to_owned(), problem: error.to_string(), way_out }),
    }
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
    let after = predecessor(dir)?;
    #[allow(clippy::disallowed_methods)] // This is the module that may.
    let instance = InstanceId::from_uuid(uuid::Uuid::now_v7());
    effect("agent.instance", || write_durably(dir, INSTANCE_FILE_NAME, format!("{instance}\n").as_bytes()))?;
    Ok(Process { instance, after })
}

fn predecessor(dir: &Path) -> Result<Option<InstanceId>, FolderError> {
    let path = dir.join(INSTANCE_FILE_NAME);
    let parsed = match read_own(&path, ID_BYTES_MAX) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
        Err(error) => return Err(refused(&path, error, INSTANCE_WAY_OUT)),
    };
    Ok(parsed.inspect_err(|error| tracing::warn!(%error, "which process came before this one")).ok())
}

/// What keeps an agent from starting in the folder `dir` as it is; nothing is changed.
pub fn examine(dir: &Path) -> Vec<FolderError> {
    let mut found = check(dir);
    if found.is_empty() || dir.is_dir() {
        let agent = load(dir).unwrap_or_else(|error| {
            found.push(error);
            None
        });
        found.extend(predecessor(dir).err());
        found.extend(own_key::examine(dir, agent));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_once_and_never_made_up_over_a_damaged_one() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let id = load_or_draw(dir).unwrap();
        assert_eq!(load_or_draw(dir).unwrap(), id);
        assert!(examine(dir).is_empty());
        for (damaged, words) in
            [("agt_", "`agt_` is not an id"), ("\n", "it is empty"), (&"x".repeat(300), "256 bytes")]
        {
            std::fs::write(dir.join(FILE_NAME), damaged).unwrap();
            let error = load_or_draw(dir).unwrap_err();
            assert!(error.to_string().contains(words) && error.to_string().contains(ID_WAY_OUT), "{error}");
            assert_eq!(examine(dir).iter().map(ToString::to_string).collect::<Vec<_>>(), [error.to_string()]);
        }
        std::fs::write(dir.join(FILE_NAME), id.to_string()).unwrap();
        assert_eq!(load_or_draw(dir).unwrap(), id, "it was written back");
        std::fs::remove_file(dir.join(FILE_NAME)).unwrap();
        assert_ne!(load_or_draw(dir).unwrap(), id);
    }

    #[test]
    fn each_process_is_another_and_knows_the_one_before() {
        let temp = tempfile::tempdir().unwrap();
        let first = draw_process(temp.path()).unwrap();
        let second = draw_process(temp.path()).unwrap();
        assert_eq!((first.after, second.after), (None, Some(first.instance)));
        assert_ne!(first.instance, second.instance);
        let path = temp.path().join(INSTANCE_FILE_NAME);
        for damaged in ["", "ins_", &"x".repeat(300)] {
            std::fs::write(&path, damaged).unwrap();
            assert!(examine(temp.path()).is_empty(), "it mends by itself");
            assert_eq!(draw_process(temp.path()).unwrap().after, None);
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = draw_process(temp.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file") && error.contains(INSTANCE_WAY_OUT), "{error}");
        assert_eq!(examine(temp.path()).iter().map(ToString::to_string).collect::<Vec<_>>(), [error]);
    }
}
