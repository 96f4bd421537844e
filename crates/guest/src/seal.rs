//! Landlock over the guest and, by inheritance, every command.
//!
//! What it adds to the other walls: device nodes cannot be made anywhere, and the kernel refuses any change of mounts to a
//! process in a Landlock domain. So read-only mounts stay read-only, whatever capability somebody should obtain; which is why
//! there are no rules for single paths here (rules only ever add rights beneath a path, they cannot take one away again).
//!
//! All commands share the guest's one domain, so debuggers inside work across commands.

use landlock::{
    AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus,
};

use crate::walls::{self, Wall};

/// Why a kernel that has Landlock did not apply it.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The rules were refused.
    #[error("landlock: {0}")]
    Rules(#[from] RulesetError),
    /// The root cannot be opened.
    #[error("landlock: {0}")]
    Root(#[from] PathFdError),
}

/// Whether it holds.
#[derive(Debug)]
pub enum Sealed {
    /// It does.
    Yes,
    /// The kernel has no version of it that can be used, and why.
    No(String),
}

/// Applies it.
pub fn restrict_self() -> Result<Sealed, SealError> {
    if walls::is_down(Wall::Landlock) {
        return Ok(Sealed::No("a test has taken it away".to_owned()));
    }
    // The second version is the first that allows renaming across folders, without which the workload would be crippled.
    let handled = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::Refer;
    let created = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(handled)
        .and_then(Ruleset::create);
    let created = match created {
        Ok(created) => created,
        Err(error) => return Ok(Sealed::No(error.to_string())),
    };
    let status = created
        // Sudo inside could not live with it; the guest has the capability that makes it unnecessary.
        .no_new_privs(false)
        .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::Refer))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Sealed::Yes,
        other => Sealed::No(format!("{other:?}")),
    })
}
