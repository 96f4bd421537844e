//! What the agent tells the shim, and the shim the launcher, about the sandbox to be made.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use holm_wire::guest_api;
use serde::{Deserialize, Serialize};

use super::tree::{self, Use};
use crate::{Context, Descriptor, Error};

/// A sandbox to be made. Nothing in it is trusted by a process with more rights than the one that wrote it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blueprint {
    /// Shim, launcher and guest bear it.
    pub label: String,
    /// Whether there are ids beside one: the descriptor `userns` then is the guest's user namespace.
    pub mapped: bool,
    /// The size of everything that is writable, in bytes.
    pub disk_bytes: u64,
    /// Whether set-user-id programs of the image may work.
    pub set_id: bool,
    /// The root file system, below a writable layer.
    pub lower: Source,
    /// The lower layer of the work dir.
    pub work: Option<Source>,
    /// Further trees, in the order in which they are mounted.
    pub binds: Vec<Bind>,
    /// Whether connections that leave it lead anywhere.
    pub egress: bool,
    /// How the guest makes the workload's place.
    pub setup: guest_api::Setup,
    /// The workload's environment as the runtime knows it.
    pub env: Vec<(String, String)>,
}

/// A tree of the host that is mounted inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// The tree.
    pub source: Source,
    /// Absolute path inside.
    pub target: String,
    /// Whether it is read-only.
    pub read_only: bool,
    /// Whether it is a folder and not a file.
    pub directory: bool,
}

/// Where a tree of the host comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A detached tree that the agent made: the name of its descriptor.
    Descriptor(String),
    /// A path without symbolic links that must still be the file it was. An agent without privileges cannot make trees, so
    /// the launcher makes this one, in its own namespaces.
    Path {
        /// The path.
        path: PathBuf,
        /// Its device.
        device: u64,
        /// Its inode.
        inode: u64,
        /// What is not shown of it: folders in it, by relative paths.
        masks: Vec<PathBuf>,
    },
}

impl Source {
    /// The detached tree. Taken from `descriptors`, or made.
    pub fn into_tree(self, descriptors: &mut Vec<Descriptor>, used: Use) -> Result<OwnedFd, Error> {
        match self {
            Self::Descriptor(name) => take(descriptors, &name),
            Self::Path { path, device, inode, masks } => {
                let open = || {
                    let at = tree::open_exact(&path)?;
                    if tree::identity(&at)? != (device, inode) {
                        return Err(io::Error::other("it was replaced since the agent checked it"));
                    }
                    tree::detach(at.as_fd(), used, None)
                };
                let (tree, _) = open().context(|| format!("cloning the mounts at {}", path.display()))?;
                tree::mask(tree.as_fd(), &masks)?;
                Ok(tree)
            }
        }
    }
}

/// Takes a descriptor by its name.
pub fn take(descriptors: &mut Vec<Descriptor>, name: &str) -> Result<OwnedFd, Error> {
    let at = descriptors.iter().position(|descriptor| descriptor.name == name);
    let at = at.ok_or_else(|| Error::Malformed(format!("the descriptor `{name}` is missing")))?;
    Ok(descriptors.swap_remove(at).fd)
}
