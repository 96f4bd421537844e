//! `holm hosts revoke`: takes the key of a host, or a join token, out of use.

use holm_api::hosts::{HostIdentity, HostView, RevokeHost};
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
    let hosts = client.host_list().await?.hosts;
    let (id, which) = match (wanted.parse::<AgentId>(), named(&hosts, wanted)) {
        (_, Ok(host)) => (host.id, key_of(host)),
        // One that has enrolled and never registered is in no list.
        (Ok(id), Err(_)) => (id, RevokeHost::default()),
        (Err(_), Err(error)) => return Err(error),
    };
    let revoked = client.host_revoke(id, &which).await?;
    if output.json {
        output.value(&revoked)?;
    } else {
        output.line(revoked.agent.to_string())?;
    }
    Ok(0)
}

/// The key that the host has now: should the request come once more after the host has enrolled anew, it means this one still.
fn key_of(host: &HostView) -> RevokeHost {
    match host.identity {
        Some(HostIdentity::Key { key, .. }) => RevokeHost { key: Some(key) },
        Some(HostIdentity::Token { .. }) | None => RevokeHost::default(),
    }
}
