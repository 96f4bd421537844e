//! Orgs: what each may have and do at most.

use std::collections::BTreeMap;

use holm_domain::OrgId;
use serde::{Deserialize, Serialize};

/// What an org may have and do at most, on all servers together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrgLimitsView {
    /// The org.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// Its name.
    pub org_name: String,
    /// Each limit by its name: `runs_running_max`, `runs_queued_max`, `submits_per_minute`, `log_bytes_per_second`,
    /// `api_writes_per_minute`, `agent_writes_per_minute`.
    pub limits: BTreeMap<String, OrgLimitView>,
    /// How many of its runs hold a lease, or `runs_running_max` where that is less.
    pub runs_running: u64,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrgLimitView {
    /// What counts for the org.
    pub value: u64,
    /// Whether that was set for this org; else it is what this server was told.
    pub is_own: bool,
}

/// `POST /v1/orgs/{org}/limits`: the body.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetOrgLimits {
    /// New values by the names of limits; `null` takes one back to what the server was told. The others stay.
    pub limits: BTreeMap<String, Option<u64>>,
}
