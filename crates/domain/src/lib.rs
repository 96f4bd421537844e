//! What Holm decides, without doing anything.
//!
//! Every function here takes a state and an input and returns a new state, a decision or an error. Time, randomness and
//! identities are arguments. Nothing in this crate performs I/O, reads a clock, spawns a task or imports another crate of
//! Holm, so each rule can be tested by itself and replayed from a seed.
//!
//! Deliberately left out: how state is stored (`holm-store`), who may ask (`holm-server`), how it is executed
//! (`holm-agent`, `holm-shim`, `holm-runtime`).

pub mod access;
pub mod audit;
pub mod egress;
pub mod enrol;
pub mod error;
pub mod host;
pub mod ids;
pub mod keys;
pub mod lease;
pub mod limits;
pub mod log;
pub mod org_limits;
pub mod pressure;
pub mod rate;
pub mod run;
pub mod schedule;
pub mod secret;
pub mod time;
pub mod trace;

pub use error::ErrorCode;
pub use ids::{AgentId, EnvelopeId, InstanceId, KeyId, OrgId, ProjectId, RunId, SecretId, SignedTokenId, TokenId};
pub use time::{BootMicros, UnixMicros};
