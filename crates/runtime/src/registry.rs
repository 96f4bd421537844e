//! The runtimes of a host, by name and by what they can do.
//!
//! What always holds: a name stands for one runtime, and a request that none meets is an error that says what was asked for
//! and what there is (SPEC R1). Fingerprints are taken once, when a runtime is added.

use holm_domain::host::RuntimeInfo;

use crate::{Runtime, SharedRuntime};

/// What a run asks of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requirement {
    /// The runtime's name, where the run names one.
    pub name: Option<String>,
    /// Capabilities that it must have.
    pub capabilities: Vec<String>,
}

/// Why there is no runtime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A second runtime under a name.
    #[error("a runtime named `{0}` is already registered")]
    Duplicate(String),
    /// No runtime meets what was asked for.
    #[error("no runtime on this host {}; there is {}", describe(.wanted), list(.available))]
    NoMatch {
        /// What was asked for.
        wanted: Requirement,
        /// What there is.
        available: Vec<RuntimeInfo>,
    },
}

fn describe(wanted: &Requirement) -> String {
    let name = wanted.name.as_ref().map(|name| format!("is named `{name}`"));
    let can = (!wanted.capabilities.is_empty()).then(|| format!("can {}", wanted.capabilities.join(", ")));
    let parts: Vec<String> = name.into_iter().chain(can).collect();
    if parts.is_empty() { "is registered".to_owned() } else { parts.join(" and ") }
}

fn list(available: &[RuntimeInfo]) -> String {
    let one = |info: &RuntimeInfo| format!("`{}` ({})", info.name, info.capabilities.join(", "));
    if available.is_empty() { "none".to_owned() } else { available.iter().map(one).collect::<Vec<_>>().join(", ") }
}

/// The runtimes of a host, in the order in which they are preferred.
#[derive(Default)]
pub struct Registry {
    entries: Vec<(RuntimeInfo, SharedRuntime)>,
}

impl Registry {
    /// Without any runtime.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a runtime after those that are preferred to it.
    pub fn add(&mut self, runtime: SharedRuntime) -> Result<(), Error> {
        if self.entries.iter().any(|(_, known)| known.name() == runtime.name()) {
            return Err(Error::Duplicate(runtime.name().to_owned()));
        }
        self.entries.push((runtime.fingerprint(), runtime));
        Ok(())
    }

    /// The runtime under a name.
    pub fn by_name(&self, name: &str) -> Result<SharedRuntime, Error> {
        self.resolve(&Requirement { name: Some(name.to_owned()), capabilities: Vec::new() })
    }

    /// The first runtime that has everything that is asked for.
    pub fn resolve(&self, wanted: &Requirement) -> Result<SharedRuntime, Error> {
        let meets = |info: &RuntimeInfo, runtime: &dyn Runtime| {
            wanted.name.as_deref().is_none_or(|name| name == runtime.name())
                && wanted.capabilities.iter().all(|wanted| info.capabilities.contains(wanted))
        };
        let found = self.entries.iter().find(|(info, runtime)| meets(info, runtime.as_ref()));
        match found {
            Some((_, runtime)) => Ok(runtime.clone()),
            None => Err(Error::NoMatch { wanted: wanted.clone(), available: self.infos() }),
        }
    }

    /// What the runtimes of this host can do.
    pub fn infos(&self) -> Vec<RuntimeInfo> {
        self.entries.iter().map(|(info, _)| info.clone()).collect()
    }

    /// Every runtime.
    pub fn all(&self) -> impl Iterator<Item = &SharedRuntime> {
        self.entries.iter().map(|(_, runtime)| runtime)
    }
}
