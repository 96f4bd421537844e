//! The agent protocol: register, poll, renew, start, append, end, finish.
//!
//! Every operation on a run bears the fence of its lease; one with another fence answers 409 `stale_fence` and changes
//! nothing (SPEC L2). The identity of the agent comes from its token and from `agent`, the id under which it registered
//! with that token; every operation bears `instance` beside it, the process that asks. The newest process that registered
//! is heard; any other is answered with 409 `agent_superseded`.

use std::collections::BTreeMap;

use holm_domain::{
    AgentId, InstanceId, OrgId, ProjectId, RunId,
    host::{Capacity, RuntimeInfo},
    run::{Cancel, EventKind, LiveUsage, Outcome, RunSpec, SandboxInfo, Usage},
    trace::{TraceContext, if_legible},
};
use serde::{Deserialize, Serialize};

use crate::signed_token::SignedToken;

/// `POST /agent/v1/register`: the body. Repeating it brings the host's record up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The identity that the agent drew once and keeps in its state folder.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// This process of the agent, drawn at its start. The newest that registers is heard from then on, and no other.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// The process before this one, as the agent's state folder tells; it is not heard any more.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub after: Option<InstanceId>,
    /// A name for people: 1 to 128 characters.
    pub name: String,
    /// The version of the agent.
    pub version: String,
    /// All that there is on the host.
    #[schema(value_type = Object)]
    pub capacity: Capacity,
    /// The runtimes on it.
    #[schema(value_type = Vec<Object>)]
    pub runtimes: Vec<RuntimeInfo>,
    /// Names and values by which the host is found.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The answer to a registration: the times by which leases work here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Registered {
    /// How long a lease lasts from its grant or renewal, in milliseconds.
    pub lease_ttl_ms: u64,
    /// How often each lease is to be renewed, in milliseconds.
    pub renew_every_ms: u64,
}

/// A lease as the agent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldLease {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// The number of the lease.
    pub fence: u64,
    /// The cancellation of which the agent knows; the server answers when there is a more urgent one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub cancel: Option<Cancel>,
}

/// `POST /agent/v1/poll`: the body. The server answers at once when there is something, otherwise after `wait_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Poll {
    /// Who asks.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// Which process of the agent asks.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// How long to wait at most, in milliseconds: 0 to 60,000.
    pub wait_ms: u64,
    /// How many runs may be claimed by this call: 0 to 64.
    pub claims_max: u32,
    /// What is free on the host.
    #[schema(value_type = Object)]
    pub free: Capacity,
    /// What the agent holds, so that the server can say what is to be cancelled or was taken away, and grant once more
    /// what the agent should hold and does not list.
    pub held: Vec<HeldLease>,
}

/// A run that was granted to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClaimedRun {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// Its org.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// Its project.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// The number of the lease.
    pub fence: u64,
    /// How long the lease lasts, in milliseconds from before the poll was sent. The time for which the poll waited at the
    /// server is in it.
    pub ttl_ms: u64,
    /// The runtime by which it is to be executed.
    pub runtime: String,
    /// What it is asked to do.
    #[schema(value_type = Object)]
    pub spec: RunSpec,
    /// The sequence that the first new log entry must have.
    pub next_log_seq: u64,
    /// What stands for the run under this lease; each renewal brings another. Nothing where it could not be signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run_token: Option<SignedToken>,
    /// Under which span the agent is to record what it does, in the form of the header `traceparent`. What cannot be read is
    /// as if it were not there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_legible")]
    #[schema(value_type = Option<String>)]
    pub trace: Option<TraceContext>,
}

/// What the server says about a lease that the agent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Directive {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// The number of the lease.
    pub fence: u64,
    /// What is to be done.
    #[schema(value_type = String)]
    pub what: DirectiveKind,
}

/// What an agent is to do with a run that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DirectiveKind {
    /// Ask the command to end.
    Terminate,
    /// Kill at once.
    Kill,
    /// Stop: the lease is no longer held.
    Stale,
}

/// The answer to a poll.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Polled {
    /// Runs that were granted.
    pub claimed: Vec<ClaimedRun>,
    /// What is to be done with runs that the agent holds.
    pub directives: Vec<Directive>,
}

impl Polled {
    /// Whether there is nothing for the agent.
    pub fn is_empty(&self) -> bool {
        self.claimed.is_empty() && self.directives.is_empty()
    }
}

/// `POST /agent/v1/renew`: the body; 1 to 1,000 leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// Who asks.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// Which process of the agent asks.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// The leases.
    pub leases: Vec<RenewLease>,
}

/// A lease that is to be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewLease {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// The number of the lease.
    pub fence: u64,
    /// What its sandbox uses now, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub usage: Option<LiveUsage>,
}

impl From<HeldLease> for RenewLease {
    fn from(held: HeldLease) -> Self {
        Self { run: held.run, fence: held.fence, usage: None }
    }
}

/// The answer to a renewal, in the order of the leases. One whose run cannot be read has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Renewed {
    /// One answer a lease.
    pub leases: Vec<RenewedLease>,
}

/// The answer for one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RenewedLease {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// The number of the lease.
    pub fence: u64,
    /// How long it lasts, in milliseconds from before the renewal was sent; nothing if it is no longer held.
    pub ttl_ms: Option<u64>,
    /// The cancellation that was asked for, if one was.
    #[schema(value_type = Option<String>)]
    pub cancel: Option<Cancel>,
    /// What stands for the run under this lease from now on, where it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub run_token: Option<SignedToken>,
}

/// `POST /agent/v1/runs/{id}/start`: the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRun {
    /// Which process of the agent asks.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// The number of the lease.
    pub fence: u64,
    /// The place in which the run executes; its agent is the one that asks.
    #[schema(value_type = Object)]
    pub sandbox: SandboxInfo,
}

/// The query of every operation on a run whose body is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Fenced {
    /// Who asks.
    #[param(value_type = String)]
    pub agent: AgentId,
    /// Which process of the agent asks.
    #[param(value_type = String)]
    pub instance: InstanceId,
    /// The number of the lease.
    pub fence: u64,
}

/// The field that a `not_found` problem names when the agent is not registered.
pub const AGENT_FIELD: &str = "agent";

/// The field that a `log_gap` problem names; its value is the sequence that must follow what is stored.
pub const LOG_GAP_FIELD: &str = "next_seq";

/// The answer to an append: `POST /agent/v1/runs/{id}/logs?agent=…&fence=…` with log batches as the body
/// (`application/vnd.holm.log-batch`, one or more batches, at most 8 MiB).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Appended {
    /// The sequence that the next entry must have: everything below is stored.
    pub next_seq: u64,
}

/// `POST /agent/v1/runs/{id}/events`: the body; at most 256 events. Numbers have no gap: an event that is not accepted is
/// recorded as refused under its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AppendEvents {
    /// Who asks.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// Which process of the agent asks.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// The number of the lease.
    pub fence: u64,
    /// The number of the first of these events within the lease, from 1; repeated ones are stored once.
    pub first_seq: u64,
    /// The events.
    #[schema(value_type = Vec<Object>)]
    pub events: Vec<ToldEvent>,
}

/// An event as an agent tells it. One that cannot be accepted is recorded as refused in its place; those after it stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ToldEvent {
    /// One that is understood.
    Known(EventKind),
    /// One that is not.
    Unknown(serde_json::Value),
}

impl From<EventKind> for ToldEvent {
    fn from(kind: EventKind) -> Self {
        Self::Known(kind)
    }
}

impl From<ToldEvent> for EventKind {
    /// What is recorded of it.
    fn from(told: ToldEvent) -> Self {
        match told {
            ToldEvent::Known(kind) => kind.as_told(),
            ToldEvent::Unknown(value) => match serde_json::from_value::<EventKind>(value) {
                Ok(kind) => kind.as_told(),
                Err(error) => EventKind::refused(format!("it cannot be read: {error}")),
            },
        }
    }
}

/// `POST /agent/v1/runs/{id}/ended`: the body. The sandbox is dead; what it left is still being stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxEnded {
    /// Who asks.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// Which process of the agent asks.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// The number of the lease.
    pub fence: u64,
    /// How the run ends if all of that is stored.
    #[schema(value_type = Object)]
    pub outcome: Outcome,
}

/// `POST /agent/v1/runs/{id}/finish`: the body. The last act under a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FinishRun {
    /// Who asks.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// Which process of the agent asks.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// The number of the lease.
    pub fence: u64,
    /// How the run ended.
    #[schema(value_type = Object)]
    pub outcome: Outcome,
    /// What its sandbox used, where that is known.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub usage: Option<Usage>,
    /// The structured result that the command left.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// The sequence after the last log entry; the server refuses the finish with `log_gap` while entries are missing.
    pub next_log_seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_cannot_be_read_holds_no_claim_up() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let claimed = ClaimedRun {
            run: "run_00000000000000000000000001".parse().unwrap(),
            org: "org_00000000000000000000000001".parse().unwrap(),
            project: "prj_00000000000000000000000001".parse().unwrap(),
            fence: 1,
            ttl_ms: 1,
            runtime: "process".to_owned(),
            spec: RunSpec::new(["true"]),
            next_log_seq: 1,
            run_token: None,
            trace: None,
        };
        let mut told = serde_json::to_value(&claimed).unwrap();
        assert!(told.get("trace").is_none(), "who does not know it is not told of it");
        for (given, trace) in [
            (serde_json::json!(good), Some(good.parse().unwrap())),
            (serde_json::json!("00-nonsense"), None),
            (serde_json::json!({ "trace": good }), None),
            (serde_json::Value::Null, None),
        ] {
            told["trace"] = given;
            let read: ClaimedRun = serde_json::from_value(told.clone()).unwrap();
            assert_eq!(read, ClaimedRun { trace, ..claimed.clone() });
        }
    }
}
