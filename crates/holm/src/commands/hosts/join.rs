//! `holm hosts join` and `holm hosts joins`: the tokens with which hosts enrol.

use clap::Args;
use holm_api::hosts::{CreateJoin, JoinView};

use crate::{
    commands::{Usage, ago, instant},
    output::{Cell, Tone, escaped},
    session::Session,
    units,
};

/// The flags of `holm hosts join`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  (umask 77; holm hosts join host-7 > join-token)                         at the server
  holm agent --server https://holm.example --join-token-file join-token   on the host

The host makes a key of its own, and uses the token up: what has enrolled needs none any more.")]
pub struct JoinArgs {
    /// A name for people, such as that of the host
    pub name: String,
    /// How long the token works, at most 7d [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<String>,
}

/// Makes a join token and prints the secret alone, so that it can be piped into a file.
pub async fn execute(session: &Session, args: &JoinArgs) -> anyhow::Result<u8> {
    let expires_in_s = match &args.expires {
        Some(text) => Some(units::duration(text).map_err(|problem| Usage::new("--expires", text, problem))?.as_secs()),
        None => None,
    };
    let new = session.client().await?.join_create(&CreateJoin { name: args.name.clone(), expires_in_s }).await?;
    let output = session.output;
    if output.json {
        output.value(&new)?;
    } else {
        let until = instant(new.join.expires_at);
        output.note(format!("join token {}, for one host until {until}; its secret is shown this once:", new.join.id));
        output.line(&new.secret)?;
    }
    Ok(0)
}

/// Lists join tokens.
pub async fn list(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.join_list().await?;
    let output = session.output;
    if output.json {
        output.value(&list.joins)?;
        return Ok(0);
    }
    let row = |join: &JoinView| -> [Cell; 4] {
        [join.id.to_string().into(), escaped(&join.name).into(), ago(join.created_at).into(), state(join)]
    };
    let rows: Vec<[Cell; 4]> = list.joins.iter().map(row).collect();
    output.table(["JOIN TOKEN", "NAME", "CREATED", "STATE"], &rows)?;
    Ok(0)
}

fn state(join: &JoinView) -> Cell {
    match (join.agent.zip(join.used_at), join.revoked_at) {
        (Some((agent, at)), _) => Cell(Tone::Plain, format!("enrolled {agent} {}", ago(at))),
        (None, Some(at)) => Cell(Tone::Bad, format!("revoked {}", ago(at))),
        (None, None) => Cell(Tone::Plain, format!("until {}", instant(join.expires_at))),
    }
}
