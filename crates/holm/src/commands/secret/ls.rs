//! `holm secret ls`: the secrets of the org and of its projects, without their values.

use holm_api::secrets::SecretView;

use crate::{
    commands::ago,
    output::{Cell, escaped},
    session::Session,
};

/// Lists secrets.
pub async fn execute(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.secret_list().await?;
    let output = session.output;
    if output.json {
        output.value(&list.secrets)?;
        return Ok(0);
    }
    let row = |secret: &SecretView| -> [Cell; 4] {
        let scope = secret.project.as_deref().map_or_else(|| "org".to_owned(), escaped);
        [secret.name.as_str().into(), scope.into(), secret.version.to_string().into(), ago(secret.updated_at).into()]
    };
    output.table(["NAME", "SCOPE", "VERSION", "UPDATED"], &list.secrets.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}
