//! `holm secret …`: secrets of the org and of its projects.

pub mod ls;
pub mod rm;
pub mod rotate;
pub mod set;
mod value;

use holm_api::secrets::SecretView;

use crate::session::Session;

/// Prints the version that a secret has now.
fn print(session: &Session, secret: &SecretView) -> anyhow::Result<u8> {
    if session.output.json {
        session.output.value(secret)?;
    } else {
        session.output.line(secret.version.to_string())?;
    }
    Ok(0)
}
