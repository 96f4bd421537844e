//! `holm hosts cordon` and `holm hosts uncordon`: whether a host takes new runs.

use super::named;
use crate::session::Session;

/// Has a host take no new runs, or take them again, and prints its id.
pub async fn execute(session: &Session, host: &str, is_cordoned: bool) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let id = named(&client.host_list().await?.hosts, host)?.id;
    let host = if is_cordoned { client.host_cordon(id).await? } else { client.host_uncordon(id).await? };
    let output = session.output;
    if output.json {
        output.value(&host)?;
    } else {
        output.line(host.id.to_string())?;
    }
    Ok(0)
}
