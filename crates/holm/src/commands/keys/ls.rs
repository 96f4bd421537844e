//! `holm keys ls`: the signing keys, and until when what they signed is good.

use holm_domain::keys::KeyState;

use crate::{
    commands::{ago, instant},
    output::{Cell, Tone},
    session::Session,
};

/// Lists signing keys.
pub async fn execute(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.key_list().await?;
    let output = session.output;
    if output.json {
        output.value(&list.keys)?;
        return Ok(0);
    }
    let rows: Vec<[Cell; 3]> = list
        .keys
        .iter()
        .map(|key| {
            let state = match (key.state, key.retires_at, key.withdrawn_at) {
                (KeyState::Withdrawn, _, Some(at)) => Cell(Tone::Bad, format!("withdrawn {}", ago(at))),
                (KeyState::Verifying, Some(at), _) => Cell(Tone::Plain, format!("verifying until {}", instant(at))),
                (KeyState::Retired, Some(at), _) => Cell(Tone::Plain, format!("retired {}", ago(at))),
                (KeyState::Signing, ..) => Cell(Tone::Good, "signing".to_owned()),
                (state, ..) => Cell(Tone::Plain, state.as_str().to_owned()),
            };
            [key.id.to_string().into(), ago(key.created_at).into(), state]
        })
        .collect();
    output.table(["KEY", "CREATED", "STATE"], &rows)?;
    Ok(0)
}
