//! `holm audit verify`: computes the digest of each record anew, and compares with what was kept.

use clap::Args;
use holm_api::{
    audit::{AuditHead, ListAudit},
    client::Client,
};
use holm_domain::{
    OrgId,
    audit::{Head, Record, Wrong, verify},
};

use super::PAGE;
use crate::session::Session;

/// The flags of `holm audit verify`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm audit verify                    prints the last record, such as 1234:9f86d081…
  holm audit verify > audit.head
  holm audit verify --head \"$(cat audit.head)\"

Keep what it prints where nobody can write who can write the database, and give it as --head later:
only so is it found when records were cut off at the end, or all of them were written anew. With a
record that is wrong the exit code is 1, and the first of them is named.")]
pub struct VerifyArgs {
    /// The number and digest of a record, as they were kept
    #[arg(long, value_name = "SEQ:DIGEST")]
    head: Option<Head>,
}

/// Verifies the log and prints its head.
pub async fn execute(session: &Session, args: &VerifyArgs) -> anyhow::Result<u8> {
    let output = session.output;
    match whole(&session.client().await?, args.head).await? {
        Ok(head) if output.json => output.value(&AuditHead::from(head))?,
        Ok(head) => output.line(head.to_string())?,
        Err(wrong) => {
            output.error(format!("the audit log was changed: {wrong}"));
            return Ok(1);
        }
    }
    Ok(0)
}

/// Reads all of the log and checks it.
async fn whole(client: &Client, kept: Option<Head>) -> anyhow::Result<Result<Head, Wrong>> {
    let (mut check, mut kept) = (None, Vec::from_iter(kept));
    loop {
        let after = check.as_ref().map(|(_, at): &(OrgId, Head)| at.seq);
        let page = client.audit_list(&ListAudit { after, limit: Some(PAGE) }).await?;
        let (org, at) = check.unwrap_or_else(|| {
            // What the server calls the end must be there as well.
            kept.push(page.head.into());
            (page.org, Head::default())
        });
        let is_last = page.records.len() < PAGE as usize;
        let records: Vec<Record> = page.records.into_iter().map(|record| record.of(page.org)).collect();
        match part(org, &records, at, &kept) {
            Ok(end) if is_last => return Ok(kept.iter().try_for_each(|kept| kept.is_reached_by(end)).map(|()| end)),
            Ok(at) => check = Some((org, at)),
            Err(wrong) => return Ok(Err(wrong)),
        }
    }
}

fn part(org: OrgId, records: &[Record], from: Head, kept: &[Head]) -> Result<Head, Wrong> {
    let at = verify(org, records, from)?;
    kept.iter().try_for_each(|kept| kept.stands_in(records))?;
    Ok(at)
}
