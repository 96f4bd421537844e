//! What a run token stands for.

use holm_domain::{AgentId, OrgId, ProjectId, RunId, UnixMicros};
use serde::{Deserialize, Serialize};

/// `GET /v1/run-token`: what the run token of the request stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunTokenView {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// Its org.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// Its project.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// The agent that holds the lease.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// The number of the lease.
    pub fence: u64,
    /// When the token expires, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub expires_at: UnixMicros,
}
