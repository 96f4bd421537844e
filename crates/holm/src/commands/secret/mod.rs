//! `holm secret …`: secrets of the org and of its projects.

pub mod bind;
pub mod ls;
pub mod rm;
pub mod rotate;
pub mod set;
mod value;

use holm_api::secrets::SecretView;
use holm_domain::egress::bound::Bound;

use super::Usage;
use crate::session::Session;

/// To where a secret may be brought, as it is sent; refused before a value is asked for.
fn bound(texts: &[String]) -> Result<Vec<String>, Usage> {
    let bound = Bound::read(texts).map_err(|bad| Usage::new("--for", &texts.join(", "), bad.to_string()))?;
    Ok(bound.texts())
}

/// Prints the version that a secret has now.
fn print(session: &Session, secret: &SecretView) -> anyhow::Result<u8> {
    if session.output.json {
        session.output.value(secret)?;
    } else {
        session.output.line(secret.version.to_string())?;
    }
    Ok(0)
}
