//! The keys of the deployment.

use holm_domain::KeyId;

use super::{Client, ClientError};
use crate::keys::{EnvelopeRotated, KeyList, KeyView};

impl Client {
    /// All signing keys.
    pub async fn key_list(&self) -> Result<KeyList, ClientError> {
        self.inner.get("/v1/keys").json().await
    }

    /// Has a new key sign from now on.
    pub async fn key_rotate(&self) -> Result<KeyView, ClientError> {
        self.inner.post("/v1/keys/rotate").json().await
    }

    /// Has what a key signed be refused.
    pub async fn key_withdraw(&self, id: KeyId) -> Result<KeyView, ClientError> {
        self.inner.post(format!("/v1/keys/{id}/withdraw")).json().await
    }

    /// Seals anew, by a new data key, what the data key of before had sealed.
    pub async fn envelope_rotate(&self) -> Result<EnvelopeRotated, ClientError> {
        self.inner.post("/v1/keys/envelope/rotate").json().await
    }
}
