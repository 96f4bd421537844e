//! Hosts.

use holm_domain::{AgentId, TokenId};

use super::{Client, ClientError};
use crate::hosts::{CreateJoin, HostKeyView, HostList, HostView, JoinList, NewJoin, RevokeHost};

impl Client {
    /// All hosts of the org.
    pub async fn host_list(&self) -> Result<HostList, ClientError> {
        self.inner.get("/v1/hosts").json().await
    }

    /// Makes a join token; the answer is the only one that bears its secret.
    pub async fn join_create(&self, body: &CreateJoin) -> Result<NewJoin, ClientError> {
        self.inner.post("/v1/hosts/joins").body_json(body).json().await
    }

    /// All join tokens of the org.
    pub async fn join_list(&self) -> Result<JoinList, ClientError> {
        self.inner.get("/v1/hosts/joins").json().await
    }

    /// Takes a join token out of use.
    pub async fn join_revoke(&self, id: TokenId) -> Result<(), ClientError> {
        self.inner.delete(format!("/v1/hosts/joins/{id}")).no_content().await
    }

    /// Has a key of a host be refused: the one that is named, or the newest.
    pub async fn host_revoke(&self, id: AgentId, which: &RevokeHost) -> Result<HostKeyView, ClientError> {
        self.inner.post(format!("/v1/hosts/{id}/revoke")).query(which).json().await
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
