//! The `process` runtime: namespaces of the kernel, without anything installed.

use std::path::PathBuf;

mod blueprint;
mod cgroup;
mod guard;
mod host_root;
mod ids;
mod image;
mod label;
mod launch;
mod launcher;
mod lend;
mod meters;
mod mount_table;
mod reap;
mod runtime;
mod sys;
mod tree;
mod witness;

pub use image::{Budget as ImageBudget, LIMITS as IMAGE_LIMITS, READY_WITHIN as IMAGE_READY_WITHIN};
pub use label::{InvalidLabel, Label};
pub use runtime::ProcessRuntime;

/// A folder inside that holds what is the guest's own, such as the layers of the work dir.
const HIDDEN: &str = "/.holm";

/// What the agent tells the runtime once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Tells what belongs to this agent from what belongs to other agents of the host.
    pub label: Label,
    /// The folder for unpacked images.
    pub images: PathBuf,
    /// How much of unpacked images is kept that no sandbox uses.
    pub image_budget: ImageBudget,
    /// The folders of the host that runs may see. Nothing else is ever lent.
    pub lend: Vec<Lend>,
    /// Holm's own folders and files, which are never lent, beside those through which the host is ruled.
    pub guarded: Vec<PathBuf>,
    /// The folder in which all agents of the host reserve places of user ids; used as root only.
    pub slots: PathBuf,
}

impl Config {
    /// The usual places, and nothing lent.
    pub fn new(label: Label, images: PathBuf) -> Self {
        let slots = PathBuf::from("/run/holm-uid-places");
        let image_budget = ImageBudget::default();
        Self { label, images, image_budget, lend: Vec::new(), guarded: Vec::new(), slots }
    }
}

/// A folder of the host that runs may see, with everything beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lend {
    /// An absolute path.
    pub prefix: PathBuf,
    /// Whether runs may write there. What they write gets the owners that the workload gives it, set-user-id bits
    /// included: lend for writing only where no unprivileged user of the host can get at it, or one without set-id.
    pub write: bool,
}
