//! Hosts.

use super::{Client, ClientError};
use crate::hosts::HostList;

impl Client {
    /// All hosts of the org.
    pub async fn host_list(&self) -> Result<HostList, ClientError> {
        self.inner.get("/v1/hosts").json().await
    }
}
