//! `holm secret set`: keeps a new secret.

use clap::Args;
use holm_api::secrets::CreateSecret;

use super::{print, value::Given};
use crate::session::Session;

/// The flags of `holm secret set`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm secret set github                               asks for the value, and does not show it
  pass show github | holm secret set github            takes it from standard input
  holm secret set github --from-env GITHUB_TOKEN
  holm secret set db.password --project web --from-file password

One line break at the end of a file, or of standard input, is cut off. What example files have in the place
of a secret (`changeme`, `<token>`, `your-api-key`) is refused. For admins of the org.")]
pub struct SetArgs {
    #[command(flatten)]
    given: Given,
}

/// Keeps the secret and prints its version.
pub async fn execute(session: &Session, args: &SetArgs) -> anyhow::Result<u8> {
    let Given { name, project, .. } = &args.given;
    let value = args.given.value(session.output).await?;
    let body = CreateSecret { name: name.to_string(), value, project: project.clone() };
    print(session, &session.client().await?.secret_create(&body).await?)
}
