//! `holm audit …`: what was done in the org and by whom.

mod list;
mod verify;

use clap::{Args, Subcommand};

use crate::session::Session;

/// The most records that are asked for at once.
const PAGE: u32 = 500;

/// The flags of `holm audit`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  holm audit                           the last hundred records, the newest last
  holm audit --since 24h --limit 1000
  holm audit --after 1200 --json       what came after one that was seen
  holm audit verify                    that nothing of the log was changed

Each change of secrets, tokens, keys, hosts, orgs and pools is a record, and so is each secret
that is given to a run. No record bears a value of a secret, or a token. For admins of the org.")]
pub struct AuditArgs {
    /// What to do with the log; without it, it is shown
    #[command(subcommand)]
    pub command: Option<Audit>,
    #[command(flatten)]
    list: list::ListArgs,
}

/// What to do with the audit log.
#[derive(Debug, Clone, Subcommand)]
pub enum Audit {
    /// Check that no record was changed, removed or put in between, and print the number and digest of the last
    Verify(verify::VerifyArgs),
}

/// Shows the log, or verifies it.
pub async fn execute(session: &Session, args: &AuditArgs) -> anyhow::Result<u8> {
    match &args.command {
        None => list::execute(session, &args.list).await,
        Some(Audit::Verify(args)) => verify::execute(session, args).await,
    }
}
