//! Tokens, and who am I.

use holm_domain::TokenId;

use super::{Client, ClientError};
use crate::tokens::{CreateToken, NewToken, TokenList, WhoAmI};

impl Client {
    /// Makes a token; the answer is the only one that bears its secret.
    pub async fn token_create(&self, body: &CreateToken) -> Result<NewToken, ClientError> {
        self.inner.post("/v1/tokens").body_json(body).json().await
    }

    /// All tokens of the org.
    pub async fn token_list(&self) -> Result<TokenList, ClientError> {
        self.inner.get("/v1/tokens").json().await
    }

    /// Takes a token out of use.
    pub async fn token_revoke(&self, id: TokenId) -> Result<(), ClientError> {
        self.inner.delete(format!("/v1/tokens/{id}")).no_content().await
    }

    /// Whose token this client has.
    pub async fn whoami(&self) -> Result<WhoAmI, ClientError> {
        self.inner.get("/v1/whoami").json().await
    }
}
