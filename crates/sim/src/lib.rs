//! The lease protocol under faults, in one thread, from one seed (SPEC L8).
//!
//! A [`world::World`] holds agents, shims and servers in virtual time and lets one event after the other happen. What
//! decides is the product's own: `holm_domain::lease::holder` for an agent, `holm_shim::deadline` and
//! `holm_shim::outcome` for a shim, the operations and the reaper of `holm_server` over the store in memory. What carries
//! it out is glue of this crate: a network, the disk of a host, the order in which an attempt is reported.
//!
//! What always holds: the seed is all that is random, so one seed is one story, of which [`trace::Trace`] keeps the digest;
//! each seed weighs the faults anew ([`plan::Plan`]), and all of them stay within the fault model of
//! `docs/architecture.md`; whenever the store may have changed [`check::Checks`] looks whether what must hold does. A
//! [`mutant::Mutant`] breaks the glue on purpose, to see that this is noticed.
//!
//! Deliberately left out: changes of a run, and the agent's own code around its holder, which
//! the end-to-end tests have. Each use of the store is one step; what happens within one is the store's own to answer for.

pub mod agenda;
mod agent;
mod attempt;
mod chance;
pub mod check;
pub mod counts;
mod disk;
mod faults;
pub mod mutant;
mod network;
pub mod plan;
mod servers;
mod shim;
pub mod time;
pub mod trace;
mod watch;
mod work;
pub mod world;

pub use mutant::{Mutant, Setting};
pub use world::{Told, simulate};

/// The command that shows a seed again, event by event.
pub fn replay(seed: u64, setting: Setting) -> String {
    let mutant = setting.mutant.map(|mutant| format!(" --mutant {}", mutant.as_str())).unwrap_or_default();
    let late = if setting.late_shims { " --late-shims" } else { "" };
    format!("cargo xtask sim --seed {seed}{mutant}{late} --trace")
}
