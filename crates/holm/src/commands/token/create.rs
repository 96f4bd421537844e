//! `holm token create`: a new token; its secret is shown this once.

use clap::Args;
use holm_api::tokens::CreateToken;
use holm_domain::access::Role;

use crate::{commands::Usage, session::Session, units};

/// The flags of `holm token create`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm token create ci                       may create and read runs
  holm token create host-7 --role agent      for `holm agent` on another machine
  holm token create graphs --role monitor    reads the metrics of the server, and nothing else
  holm token create visitor --expires 8h")]
pub struct CreateArgs {
    /// A name for people
    pub name: String,
    /// What it may do: admin, member, agent or monitor
    #[arg(long, default_value = "member", value_parser = ["admin", "member", "agent", "monitor"])]
    pub role: String,
    /// How long it works, such as 30d; for ever where it is left out
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<String>,
}

/// Makes the token and prints the secret alone, so that it can be piped into a file.
pub async fn execute(session: &Session, args: &CreateArgs) -> anyhow::Result<u8> {
    let role = Role::parse(&args.role)
        .ok_or_else(|| Usage::new("--role", &args.role, "give admin, member, agent or monitor"))?;
    let expires_in_s = match &args.expires {
        Some(text) => Some(units::duration(text).map_err(|problem| Usage::new("--expires", text, problem))?.as_secs()),
        None => None,
    };
    let body = CreateToken { name: args.name.clone(), role, expires_in_s };
    let new = session.client().await?.token_create(&body).await?;
    let output = session.output;
    if output.json {
        output.value(&new)?;
    } else {
        output.note(format!("token {} with the role {}; its secret is shown this once:", new.token.id, args.role));
        output.line(&new.secret)?;
    }
    Ok(0)
}
