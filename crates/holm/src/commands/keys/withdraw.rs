//! `holm keys withdraw`: has what a key signed be refused.

use holm_domain::KeyId;

use crate::{commands::for_each, session::Session};

/// Withdraws each key and prints its id.
pub async fn execute(session: &Session, keys: &[KeyId]) -> anyhow::Result<u8> {
    let client = &session.client().await?;
    let output = session.output;
    let withdraw = |id: KeyId| async move { client.key_withdraw(id).await };
    for_each(session, keys, withdraw, |key| {
        if output.json {
            output.value_line(key)?;
        } else {
            output.line(key.id.to_string())?;
        }
        Ok(())
    })
    .await
}
