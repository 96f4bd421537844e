//! Hosts.

use holm_domain::AgentId;

use super::{Client, ClientError};
use crate::hosts::{HostList, HostView};

impl Client {
    /// All hosts of the org.
    pub async fn host_list(&self) -> Result<HostList, ClientError> {
        self.inner.get("/v1/hosts").json().await
    }

    /// Has a host take no new runs.
    pub async fn host_cordon(&self, id: AgentId) -> Result<HostView, ClientError> {
        self.inner.post(format!("/v1/hosts/{id}/cordon")).json().await
    }

    /// Has a host take new runs again.
    pub async fn host_uncordon(&self, id: AgentId) -> Result<HostView, ClientError> {
        self.inner.post(format!("/v1/hosts/{id}/uncordon")).json().await
    }
}
