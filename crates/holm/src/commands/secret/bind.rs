//! `holm secret bind`: says to where a secret may be brought.

use clap::Args;
use holm_api::secrets::BindSecret;
use holm_domain::secret::SecretName;

use super::bound;
use crate::session::Session;

/// The flags of `holm secret bind`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm secret bind github --for api.github.com --for github.com/team
  holm secret bind db.password --project web --for 'POST db.example.org:8443/query'

What is given takes the place of all that was said before. It holds for runs that wait as well:
one that wants the secret elsewhere fails when a host takes it. For admins of the org.")]
pub struct BindArgs {
    /// The secret
    pub name: SecretName,
    /// To where runs may have it brought: one host, and port, path and methods perhaps; or `anywhere`. Give it for each
    #[arg(long = "for", value_name = "RULE", required = true)]
    pub bound: Vec<String>,
    /// The one of this project, and not that of the whole org
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
}

/// Binds the secret and prints to what.
pub async fn execute(session: &Session, args: &BindArgs) -> anyhow::Result<u8> {
    let body = BindSecret { bound: bound(&args.bound)?, project: args.project.clone() };
    let secret = session.client().await?.secret_bind(&args.name, &body).await?;
    if session.output.json {
        session.output.value(&secret)?;
    } else {
        for rule in secret.bound.texts() {
            session.output.line(rule)?;
        }
    }
    Ok(0)
}
