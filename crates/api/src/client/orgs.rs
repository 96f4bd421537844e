//! Orgs.

use super::{Client, ClientError};
use crate::orgs::{OrgLimitsView, SetOrgLimits};

impl Client {
    /// What an org, by its name or its id, may have and do at most.
    pub async fn org_limits(&self, org: &str) -> Result<OrgLimitsView, ClientError> {
        self.inner.get(format!("/v1/orgs/{org}/limits")).json().await
    }

    /// Sets limits of an org.
    pub async fn org_limits_set(&self, org: &str, body: &SetOrgLimits) -> Result<OrgLimitsView, ClientError> {
        self.inner.post(format!("/v1/orgs/{org}/limits")).body_json(body).json().await
    }
}
