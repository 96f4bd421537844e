//! Orgs: make them, list them; what each may have and do at most.

use std::collections::BTreeMap;

use holm_domain::{OrgId, UnixMicros};
use serde::{Deserialize, Serialize};

use crate::tokens::NewToken;

/// What an org may have and do at most, on all servers together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrgLimitsView {
    /// The org.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// Its name.
    pub org_name: String,
    /// Each limit by its name: `runs_running_max`, `runs_queued_max`, `submits_per_minute`, `log_bytes_per_second`,
    /// `api_writes_per_minute`, `agent_writes_per_minute`,
    /// `appends_per_minute`, `lease_requests_per_minute`, `renewals_per_minute`.
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

/// `POST /v1/orgs`: the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOrg {
    /// Its name: 1 to 63 small letters, digits and hyphens; the first is a letter.
    pub name: String,
}

/// An org as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrgView {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: OrgId,
    /// Its name.
    pub name: String,
    /// When it was made, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub created_at: UnixMicros,
}

/// A new org, with the secret of its first token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewOrg {
    /// The org.
    pub org: OrgView,
    /// Its first token, which has the role `admin`.
    pub admin: NewToken,
}

/// All orgs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrgList {
    /// By name.
    pub orgs: Vec<OrgView>,
}

/// A pool of hosts of the default org, and whom it serves beside that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// The orgs with which it is shared, by name.
    pub orgs: Vec<OrgView>,
    /// How many hosts are in it.
    pub hosts: u32,
    /// How many runs are running on them.
    pub runs_running: u64,
}

/// All pools that are shared, or have hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolList {
    /// By name.
    pub pools: Vec<PoolView>,
}
