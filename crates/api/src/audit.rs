//! The audit log of an org, as it is read.

use std::collections::BTreeMap;

use holm_domain::{
    OrgId, UnixMicros,
    audit::{Digest, Head, Record},
};
use serde::{Deserialize, Serialize};

/// `GET /v1/audit`: the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListAudit {
    /// Only records with a larger number; from the first one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// At most so many, 1 to 500; 100 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// The number and the digest of a record, which stand for all up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditHead {
    /// The number; 0 where there are no records.
    pub seq: u64,
    /// The digest, as 64 hexadecimal digits; zeros where there are no records.
    #[schema(value_type = String)]
    pub digest: Digest,
}

impl From<Head> for AuditHead {
    fn from(Head { seq, digest }: Head) -> Self {
        Self { seq, digest }
    }
}

impl From<AuditHead> for Head {
    fn from(AuditHead { seq, digest }: AuditHead) -> Self {
        Self { seq, digest }
    }
}

/// A record of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditRecord {
    /// Its number, from 1 and without gaps.
    pub seq: u64,
    /// When it was done, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub at: UnixMicros,
    /// Who did it: a token, or the join token of a host, as `tok_…`; an agent as `agt_…`; or `server`.
    pub actor: String,
    /// What was done, such as `secret.created`.
    pub action: String,
    /// To what: its id or its name.
    pub subject: String,
    /// What else is to be known, by name.
    pub details: BTreeMap<String, String>,
    /// The digest of the record before, as 64 hexadecimal digits; zeros in the first.
    #[schema(value_type = String)]
    pub previous: Digest,
    /// Its digest, over that and all that it says.
    #[schema(value_type = String)]
    pub digest: Digest,
}

impl From<Record> for AuditRecord {
    fn from(record: Record) -> Self {
        let Record { org: _, seq, at, actor, action, subject, details, previous, digest } = record;
        Self { seq, at, actor, action, subject, details, previous, digest }
    }
}

impl AuditRecord {
    /// The record as one of the log of `org`, to be verified.
    pub fn of(self, org: OrgId) -> Record {
        let Self { seq, at, actor, action, subject, details, previous, digest } = self;
        Record { org, seq, at, actor, action, subject, details, previous, digest }
    }
}

/// `GET /v1/audit`: records of the org, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditPage {
    /// The org whose log this is; the digests are over it as well.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// The last record of the log when this was asked for, among these or not.
    pub head: AuditHead,
    /// The records.
    pub records: Vec<AuditRecord>,
}
