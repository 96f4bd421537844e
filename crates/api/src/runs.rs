//! Runs: submit, look at, list, cancel.

use holm_domain::{
    AgentId, OrgId, ProjectId, RunId, UnixMicros,
    run::{Cancel, Event, Measured, Outcome, PassedOver, RoomKept, RunSpec, RunState, SandboxInfo, Usage},
    trace::{TraceId, if_legible},
};
use serde::{Deserialize, Serialize};

/// `POST /v1/runs`: the body. The header `Idempotency-Key` makes repetition harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRun {
    /// The project by name; `default` where it is left out.
    #[serde(default)]
    pub project: Option<String>,
    /// What the run is asked to do.
    #[schema(value_type = Object)]
    pub spec: RunSpec,
}

/// A run as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunView {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: RunId,
    /// The org it belongs to.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// The project it belongs to.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// What it is asked to do.
    #[schema(value_type = Object)]
    pub spec: RunSpec,
    /// Where it is on its way: `queued`, `claimed`, `running`, `paused`, `resuming`, `finishing`, `ended`.
    #[schema(value_type = String)]
    pub state: RunState,
    /// How many times it was claimed.
    pub attempt: u32,
    /// The number of its newest lease.
    pub fence: u64,
    /// The agent that holds it now.
    #[schema(value_type = Option<String>)]
    pub agent: Option<AgentId>,
    /// Whether its end was asked for: `terminate` or `kill`.
    #[schema(value_type = Option<String>)]
    pub cancel: Option<Cancel>,
    /// The place in which it executes or executed last.
    #[schema(value_type = Option<Object>)]
    pub sandbox: Option<SandboxInfo>,
    /// The structured result that its command left.
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// How it ended.
    #[schema(value_type = Option<Object>)]
    pub outcome: Option<Outcome>,
    /// What its last sandbox used, as far as its host counts it: `cpu_user_us`, `cpu_system_us`, `memory_peak_bytes`,
    /// `pids_peak`, `io_read_bytes`, `io_write_bytes`, `log_bytes`. What is not counted is left out.
    #[schema(value_type = Option<Object>)]
    pub usage: Option<Usage>,
    /// What its sandbox used when its lease was renewed last, while it lives and as far as its host counts it: `at` (when
    /// that was), `cpu_us`, `cpus_milli` (thousandths of a processor since the renewal before), `memory_bytes`,
    /// `memory_peak_bytes`, `pids`. What is not counted is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub live: Option<Measured>,
    /// When it was submitted, in microseconds since the Unix epoch, as all times here.
    #[schema(value_type = i64)]
    pub queued_at: UnixMicros,
    /// Until when it pauses in the queue before it is granted anew, because its lease expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub retry_at: Option<UnixMicros>,
    /// Hosts that could not make its sandbox: the `agent` of each, and `until` when it is granted to others only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub passed_over: Vec<PassedOver>,
    /// The host that keeps room for it, as it waits for more memory than any has left: its `agent`, and `until` when, unless
    /// it says so again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub room_kept: Option<RoomKept>,
    /// When it was claimed last.
    #[schema(value_type = Option<i64>)]
    pub claimed_at: Option<UnixMicros>,
    /// When its command was started last.
    #[schema(value_type = Option<i64>)]
    pub started_at: Option<UnixMicros>,
    /// When it ended.
    #[schema(value_type = Option<i64>)]
    pub ended_at: Option<UnixMicros>,
    /// When its log was deleted, because the server keeps logs no longer after the end of a run.
    #[schema(value_type = Option<i64>)]
    pub logs_deleted_at: Option<UnixMicros>,
    /// The trace to which it belongs, if to any: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_legible")]
    #[schema(value_type = Option<String>)]
    pub trace_id: Option<TraceId>,
}

impl From<holm_domain::run::Run> for RunView {
    fn from(run: holm_domain::run::Run) -> Self {
        Self {
            id: run.id,
            org: run.org,
            project: run.project,
            spec: run.spec,
            state: run.state,
            attempt: run.attempt,
            fence: run.fence,
            agent: run.lease.map(|lease| lease.agent),
            live: run.lease.and_then(|lease| lease.measured),
            cancel: run.cancel,
            sandbox: run.sandbox,
            result: run.result,
            outcome: run.outcome,
            usage: run.usage,
            queued_at: run.queued_at,
            retry_at: run.retry_at,
            passed_over: run.passed_over,
            room_kept: run.room_kept,
            claimed_at: run.claimed_at,
            started_at: run.started_at,
            ended_at: run.ended_at,
            logs_deleted_at: run.logs_deleted_at,
            trace_id: run.trace.map(|trace| trace.context.trace),
        }
    }
}

/// `GET /v1/runs`: the query.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListRuns {
    /// Only runs of the project of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Only runs in one of these states, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only runs with all of these labels: `key=value`, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How many at most: 1 to 200, 50 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A page of runs, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunPage {
    /// The runs.
    pub runs: Vec<RunView>,
    /// Runs of this page that cannot be read, because their rows are damaged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub unreadable: Vec<RunId>,
    /// Present while there are more.
    pub next_cursor: Option<String>,
}

/// `POST /v1/runs/{id}/cancel`: the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRun {
    /// Whether to kill at once instead of asking the command to end first.
    #[serde(default)]
    pub kill: bool,
}

/// A page of events of a run, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventPage {
    /// The events.
    #[schema(value_type = Vec<Object>)]
    pub events: Vec<Event>,
    /// The number of the newest event that was looked at: give it as `after` to go on.
    pub last_seq: u64,
}

/// `GET …/logs` and `…/events`: the query.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct After {
    /// Only what has a larger sequence; 0 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// How many at most: 1 to 10,000, 1,000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        limits::LeaseConfig,
        run::{Admission, admit},
    };

    use super::*;

    #[test]
    fn an_answer_is_read_whatever_it_says_of_a_trace() {
        let admission = Admission {
            id: "run_00000000000000000000000001".parse().unwrap(),
            org: "org_00000000000000000000000001".parse().unwrap(),
            project: "prj_00000000000000000000000001".parse().unwrap(),
            created_by: "tok_00000000000000000000000001".parse().unwrap(),
        };
        let run = admit(admission, RunSpec::new(["true"]), UnixMicros(1), &LeaseConfig::default()).run;
        let mut answer = serde_json::to_value(RunView::from(run)).unwrap();
        let good = "0af7651916cd43dd8448eb211c80319c";
        for (said, read) in [
            (serde_json::json!(good), good.parse().ok()),
            (serde_json::json!("nonsense"), None),
            (serde_json::json!({ "id": good }), None),
            (serde_json::Value::Null, None),
        ] {
            answer["trace_id"] = said;
            let view: RunView = serde_json::from_str(&answer.to_string()).unwrap();
            assert_eq!(view.trace_id, read, "{answer}");
        }
    }
}
