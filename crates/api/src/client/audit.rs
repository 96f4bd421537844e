//! Requests about the audit log.

use super::{Client, ClientError};
use crate::audit::{AuditPage, ListAudit};

impl Client {
    /// Records of the audit log of the org, oldest first.
    pub async fn audit_list(&self, query: &ListAudit) -> Result<AuditPage, ClientError> {
        self.inner.get("/v1/audit").query(query).json().await
    }
}
