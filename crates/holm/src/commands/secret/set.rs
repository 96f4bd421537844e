//! `holm secret set`: keeps a new secret.

use clap::Args;
use holm_api::secrets::CreateSecret;

use super::{bound, print, value::Given};
use crate::session::Session;

/// The flags of `holm secret set`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm secret set github --for api.github.com          asks for the value, and does not show it
  pass show github | holm secret set github --for api.github.com --for github.com/team
  holm secret set model --for 'POST api.example.org/v1' --from-env MODEL_API_KEY
  holm secret set db.password --project web --for db.example.org:8443 --from-file password

Runs send it to where it is bound by `--for`, and nowhere else. With `--for anywhere` any member
of the org can read it, by sending it to a host of his own.

One line break at the end of a file, or of standard input, is cut off. What example files have in the place
of a secret (`changeme`, `<token>`, `your-api-key`) is refused. For admins of the org.")]
pub struct SetArgs {
    #[command(flatten)]
    given: Given,
    /// To where runs may have it brought: one host, and port, path and methods perhaps; or `anywhere`. Give it for each
    #[arg(long = "for", value_name = "RULE", required = true)]
    bound: Vec<String>,
}

/// Keeps the secret and prints its version.
pub async fn execute(session: &Session, args: &SetArgs) -> anyhow::Result<u8> {
    let Given { name, project, .. } = &args.given;
    let bound = bound(&args.bound)?;
    let value = args.given.value(session.output).await?;
    let body = CreateSecret { name: name.to_string(), value, bound, project: project.clone() };
    print(session, &session.client().await?.secret_create(&body).await?)
}
