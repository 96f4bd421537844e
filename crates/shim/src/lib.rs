//! The process beside each sandbox.
//!
//! A shim holds the wire to one guest, the spool of its output, and the deadline: it kills the sandbox when its lease runs
//! out, whatever became of the agent. It survives the agent, which finds it again through a socket in the attempt's folder.
//!
//! The agent uses [`protocol`], [`client`] and [`spool::reader`] of this crate and nothing else.

pub mod client;
pub mod clock;
pub mod confine;
pub mod control;
pub mod deadline;
pub mod environment;
pub mod events;
pub mod exit;
pub mod full_disk;
pub mod guest;
pub mod lane_out;
pub mod outcome;
pub mod protocol;
mod secrets;
pub mod spool;
pub mod start;
pub mod supervise;
mod telling;
pub mod watchdog;
mod ways_out;
mod work;

pub use start::shim_main;
