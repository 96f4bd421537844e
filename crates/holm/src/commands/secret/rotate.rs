//! `holm secret rotate`: gives a secret its next value.

use clap::Args;
use holm_api::secrets::RotateSecret;

use super::{bound, print, value::Given};
use crate::session::Session;

/// The flags of `holm secret rotate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm secret rotate github                            asks for the value, and does not show it
  holm secret rotate github --from-env GITHUB_TOKEN
  holm secret rotate db.password --project web --from-file password
  holm secret rotate model --for 'POST api.example.org/v2' --from-env MODEL_API_KEY

It stays bound to what it was, unless `--for` says otherwise; `holm secret bind` needs no value.
The value of before is removed. `holm keys rotate --envelope` seals anew what is kept, and changes
no value.")]
pub struct RotateArgs {
    #[command(flatten)]
    given: Given,
    /// To where runs may have it brought from now on, in the place of what was said before; as with `holm secret set`
    #[arg(long = "for", value_name = "RULE")]
    bound: Vec<String>,
}

/// Replaces the value and prints the version of the new one.
pub async fn execute(session: &Session, args: &RotateArgs) -> anyhow::Result<u8> {
    let Given { name, project, .. } = &args.given;
    let bound = if args.bound.is_empty() { None } else { Some(bound(&args.bound)?) };
    let value = args.given.value(session.output).await?;
    let body = RotateSecret { value, bound, project: project.clone() };
    print(session, &session.client().await?.secret_rotate(name, &body).await?)
}
