//! `holm hosts revoke`: takes the key of a host, or a join token, out of use.

use holm_domain::{AgentId, TokenId};

use super::named;
use crate::session::Session;

/// Revokes the key of a host, or a join token that is not used yet, and prints its id.
pub async fn execute(session: &Session, wanted: &str) -> anyhow::Result<u8> {
    let (client, output) = (session.client().await?, session.output);
    if let Ok(join) = wanted.parse::<TokenId>() {
        client.join_revoke(join).await?;
        if output.json {
            output.value(&join)?
        } else {
            output.line(join.to_string())?
        }
        return Ok(0);
    }
    // One that has enrolled and never registered is in no list.
    let id = match wanted.parse::<AgentId>() {
        Ok(id) => id,
        Err(_) => named(&client.host_list().await?.hosts, wanted)?.id,
    };
    let revoked = client.host_revoke(id).await?;
    if output.json {
        output.value(&revoked)?;
    } else {
        output.line(revoked.agent.to_string())?;
    }
    Ok(0)
}
