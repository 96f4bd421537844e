//! Orgs.

use holm_domain::AgentId;

use super::{Client, ClientError};
use crate::orgs::{CreateOrg, NewOrg, OrgLimitsView, OrgList, PoolList, PoolView, SetOrgLimits};

impl Client {
    /// Makes an org; the answer is the only one that bears the secret of its first token.
    pub async fn org_create(&self, body: &CreateOrg) -> Result<NewOrg, ClientError> {
        self.inner.post("/v1/orgs").body_json(body).json().await
    }

    /// All orgs.
    pub async fn org_list(&self) -> Result<OrgList, ClientError> {
        self.inner.get("/v1/orgs").json().await
    }

    /// All pools of hosts.
    pub async fn pool_list(&self) -> Result<PoolList, ClientError> {
        self.inner.get("/v1/pools").json().await
    }

    /// Puts a host into a pool.
    pub async fn pool_add(&self, pool: &str, host: AgentId) -> Result<PoolView, ClientError> {
        self.inner.post(format!("/v1/pools/{pool}/hosts/{host}")).json().await
    }

    /// Takes a host out of a pool.
    pub async fn pool_remove(&self, pool: &str, host: AgentId) -> Result<PoolView, ClientError> {
        self.inner.delete(format!("/v1/pools/{pool}/hosts/{host}")).json().await
    }

    /// Has a pool serve an org.
    pub async fn pool_share(&self, pool: &str, org: &str) -> Result<PoolView, ClientError> {
        self.inner.post(format!("/v1/pools/{pool}/orgs/{org}")).json().await
    }

    /// Has a pool serve an org no longer.
    pub async fn pool_unshare(&self, pool: &str, org: &str) -> Result<PoolView, ClientError> {
        self.inner.delete(format!("/v1/pools/{pool}/orgs/{org}")).json().await
    }

    /// What an org, by its name or its id, may have and do at most.
    pub async fn org_limits(&self, org: &str) -> Result<OrgLimitsView, ClientError> {
        self.inner.get(format!("/v1/orgs/{org}/limits")).json().await
    }

    /// Sets limits of an org.
    pub async fn org_limits_set(&self, org: &str, body: &SetOrgLimits) -> Result<OrgLimitsView, ClientError> {
        self.inner.post(format!("/v1/orgs/{org}/limits")).body_json(body).json().await
    }
}
