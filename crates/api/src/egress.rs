//! What a run reached, and what it was refused.

use holm_domain::{UnixMicros, egress::record::Record};
use serde::{Deserialize, Serialize};

/// A connection or a request that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EgressRecord {
    /// Its number within the run, among those of all entries of its log.
    pub seq: u64,
    /// When it was recorded, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub at: UnixMicros,
    /// What is recorded of it.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub record: Record,
}

/// A page of records, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EgressPage {
    /// The records.
    pub records: Vec<EgressRecord>,
    /// The number of the newest entry that was looked at: give it as `after` to go on.
    pub last_seq: u64,
    /// Whether the run has ended and nothing follows `last_seq`.
    pub complete: bool,
}
