//! `holm secret rm`: removes a secret.

use clap::Args;
use holm_api::secrets::DeleteSecret;
use holm_domain::secret::SecretName;

use crate::session::Session;

/// The flags of `holm secret rm`.
#[derive(Debug, Clone, Args)]
pub struct RmArgs {
    /// The secret
    pub name: SecretName,
    /// The one of this project, and not that of the whole org
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
}

/// Removes the secret and prints its name.
pub async fn execute(session: &Session, args: &RmArgs) -> anyhow::Result<u8> {
    let of = DeleteSecret { project: args.project.clone() };
    session.client().await?.secret_delete(&args.name, &of).await?;
    if session.output.json {
        session.output.value(&args.name)?;
    } else {
        session.output.line(args.name.as_str())?;
    }
    Ok(0)
}
