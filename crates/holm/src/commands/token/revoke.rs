//! `holm token revoke`: takes tokens out of use.

use holm_domain::TokenId;

use crate::{commands::for_each, session::Session};

/// Revokes each token and prints its id.
pub async fn execute(session: &Session, tokens: &[TokenId]) -> anyhow::Result<u8> {
    let client = &session.client().await?;
    let output = session.output;
    let revoke = |id: TokenId| async move { client.token_revoke(id).await.map(|()| id) };
    for_each(session, tokens, revoke, |id| {
        if output.json {
            output.value_line(id)?;
        } else {
            output.line(id.to_string())?;
        }
        Ok(())
    })
    .await
}
