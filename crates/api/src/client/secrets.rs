//! Secrets of orgs and projects.

use holm_domain::secret::SecretName;

use super::{Client, ClientError};
use crate::secrets::{BindSecret, CreateSecret, DeleteSecret, RotateSecret, SecretList, SecretView};

impl Client {
    /// Keeps a new secret.
    pub async fn secret_create(&self, body: &CreateSecret) -> Result<SecretView, ClientError> {
        self.inner.post("/v1/secrets").body_json(body).json().await
    }

    /// Gives a secret its next value.
    pub async fn secret_rotate(&self, name: &SecretName, body: &RotateSecret) -> Result<SecretView, ClientError> {
        self.inner.put(format!("/v1/secrets/{name}")).body_json(body).json().await
    }

    /// Binds a secret to what is given, and to nothing else.
    pub async fn secret_bind(&self, name: &SecretName, body: &BindSecret) -> Result<SecretView, ClientError> {
        self.inner.put(format!("/v1/secrets/{name}/for")).body_json(body).json().await
    }

    /// All secrets of the org and of its projects, without their values.
    pub async fn secret_list(&self) -> Result<SecretList, ClientError> {
        self.inner.get("/v1/secrets").json().await
    }

    /// Removes a secret.
    pub async fn secret_delete(&self, name: &SecretName, of: &DeleteSecret) -> Result<(), ClientError> {
        self.inner.delete(format!("/v1/secrets/{name}")).query(of).no_content().await
    }
}
