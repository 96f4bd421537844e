//! `holm token ls`: the tokens of the org, without their secrets.

use crate::{
    commands::{ago, instant},
    output::{Cell, Tone, escaped},
    session::Session,
};

/// Lists tokens.
pub async fn execute(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.token_list().await?;
    let output = session.output;
    if output.json {
        output.value(&list.tokens)?;
        return Ok(0);
    }
    let rows: Vec<[Cell; 5]> = list
        .tokens
        .iter()
        .map(|token| {
            let state = match (token.revoked_at, token.expires_at) {
                (Some(at), _) => Cell(Tone::Bad, format!("revoked {}", ago(at))),
                (None, Some(at)) => Cell(Tone::Plain, format!("until {}", instant(at))),
                (None, None) => Cell(Tone::Good, "works".to_owned()),
            };
            let role = token.role.as_str();
            [token.id.to_string().into(), escaped(&token.name).into(), role.into(), ago(token.created_at).into(), state]
        })
        .collect();
    output.table(["TOKEN", "NAME", "ROLE", "CREATED", "STATE"], &rows)?;
    Ok(0)
}
