//! `holm keys rotate`: a new key signs, or a new data key seals.

use clap::Args;

use crate::session::Session;

/// The flags of `holm keys rotate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm keys rotate              a new key signs; what was signed before is good until it expires
  holm keys rotate --envelope   what is secret in the database is sealed anew

Both are done at once, without downtime, and may be repeated. Only admins of the org `default` may do it.")]
pub struct RotateArgs {
    /// Make a new data key and seal anew what is secret in the database; signing keys stay
    #[arg(long)]
    pub envelope: bool,
}

/// Rotates and prints the id of the new key.
pub async fn execute(session: &Session, args: &RotateArgs) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let output = session.output;
    if args.envelope {
        let rotated = client.envelope_rotate().await?;
        if output.json {
            output.value(&rotated)?;
        } else {
            output.note(format!("secrets that were sealed anew: {}; the data key that seals now:", rotated.resealed));
            output.line(rotated.id.to_string())?;
        }
        return Ok(0);
    }
    let key = client.key_rotate().await?;
    if output.json {
        output.value(&key)?;
    } else {
        output.line(key.id.to_string())?;
    }
    Ok(0)
}
