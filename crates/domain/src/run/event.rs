//! What is told of a run. Events of a run are numbered from 1 in the order in which they were stored.

use serde::{Deserialize, Serialize};

use super::{Cancel, Outcome, SandboxInfo};
use crate::{AgentId, UnixMicros};

/// The longest text in an event that comes from a sandbox, in bytes.
pub const TEXT_BYTES_MAX: usize = 1_024;

/// By which protocols something is refused: a connection, a packet, a look-up of a name, a request.
pub const REFUSED_PROTOCOLS: [&str; 4] = ["tcp", "udp", "dns", "http"];

/// One thing that happened to a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// It was taken into the queue.
    Queued,
    /// An agent claimed it.
    Claimed {
        /// The agent.
        agent: AgentId,
        /// The number of the lease.
        fence: u64,
    },
    /// Its command was started.
    Started {
        /// In which place.
        sandbox: SandboxInfo,
    },
    /// Somebody asked that it end.
    CancelRequested {
        /// How urgently.
        how: Cancel,
    },
    /// Its lease expired.
    LeaseExpired {
        /// The agent that had it.
        agent: AgentId,
        /// The number of that lease.
        fence: u64,
    },
    /// A host could not make its sandbox.
    HostFailed {
        /// The agent of the host.
        agent: AgentId,
        /// The number of its lease.
        fence: u64,
        /// Why, in at most [`TEXT_BYTES_MAX`] bytes.
        problem: String,
    },
    /// It went back to the queue.
    Requeued,
    /// The sandbox tried to reach something and did not: its policy does not name it, or it could not be reached. Told by the shim.
    EgressRefused {
        /// The name or address that was asked for.
        host: String,
        /// The port, or 0 where there is none (a look-up of a name).
        port: u16,
        /// One of [`REFUSED_PROTOCOLS`].
        protocol: String,
        /// How many times since the last such event.
        count: u64,
        /// Why, where that is not that the policy does not name it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The structured result was not accepted. Told by the shim.
    ResultRefused {
        /// Why.
        problem: String,
    },
    /// Everything in its sandbox was killed and has not died: the kernel holds it. The run has not ended, and is granted to
    /// nobody else, until it has. Told by the shim.
    SandboxUndying {
        /// How long its death was waited for, in milliseconds.
        waited_ms: u64,
    },
    /// What its agent told here was not accepted. Told by the agent, or by the server in its place.
    EventRefused {
        /// What was wrong with it.
        problem: String,
    },
    /// It ended.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

impl EventKind {
    /// Whether an agent may report this kind; all others are told by the server alone.
    pub const fn may_come_from_agent(&self) -> bool {
        use EventKind::{EgressRefused, EventRefused, ResultRefused, SandboxUndying};
        matches!(self, EgressRefused { .. } | ResultRefused { .. } | EventRefused { .. } | SandboxUndying { .. })
    }

    /// The record that something was told and not accepted; a long `problem` is cut.
    pub fn refused(mut problem: String) -> Self {
        problem.truncate(problem.floor_char_boundary(TEXT_BYTES_MAX));
        EventKind::EventRefused { problem }
    }

    /// What is recorded of it when an agent tells it: itself, or that it was refused and why. The numbers of what is told
    /// have no gap, so one that is bad must not take those after it along.
    pub fn as_told(self) -> Self {
        let problem = if !self.may_come_from_agent() {
            "only the server tells events of its kind"
        } else if !self.is_within_limits() {
            "a text in it is too long, or its protocol is unknown"
        } else {
            return self;
        };
        Self::refused(problem.to_owned())
    }

    /// Whether every text in it is within its limit.
    pub fn is_within_limits(&self) -> bool {
        match self {
            EventKind::EgressRefused { host, protocol, reason, .. } => {
                let reason = reason.as_deref().unwrap_or_default();
                host.len().max(reason.len()) <= TEXT_BYTES_MAX && REFUSED_PROTOCOLS.contains(&protocol.as_str())
            }
            EventKind::ResultRefused { problem } | EventKind::EventRefused { problem } => {
                problem.len() <= TEXT_BYTES_MAX
            }
            _ => true,
        }
    }
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number within the run, from 1.
    pub seq: u64,
    /// When it was stored.
    pub at: UnixMicros,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_told_is_told_as_refused() {
        let good = EventKind::ResultRefused { problem: "x".repeat(TEXT_BYTES_MAX) };
        assert_eq!(good.clone().as_told(), good);
        let long = EventKind::ResultRefused { problem: "x".repeat(TEXT_BYTES_MAX + 1) };
        for bad in [EventKind::Queued, EventKind::Requeued, long] {
            let told = bad.as_told();
            assert!(matches!(told, EventKind::EventRefused { .. }) && told.is_within_limits(), "{told:?}");
        }
        let told = EventKind::refused("ü".repeat(TEXT_BYTES_MAX));
        assert!(told.may_come_from_agent() && told.is_within_limits());
    }
}
