//! `holm audit`: records of the audit log, the newest last.

use clap::Args;
use holm_api::{
    audit::{AuditPage, AuditRecord, ListAudit},
    client::{Client, ClientError},
};
use holm_domain::UnixMicros;

use super::PAGE;
use crate::{
    commands::instant,
    output::{Cell, escaped},
    session::Session,
    units,
};

/// Which records are shown.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only from this time on: RFC 3339, or a duration before now such as `24h`
    #[arg(long, value_name = "TIME", value_parser = units::time)]
    since: Option<UnixMicros>,
    /// The first records after this number, instead of the last ones
    #[arg(long, value_name = "SEQ", conflicts_with = "since")]
    after: Option<u64>,
    /// At most so many
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Shows records.
pub async fn execute(session: &Session, args: &ListArgs) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let page = match args.after {
        Some(after) => following(&client, after, args.limit).await?,
        None => newest(&client, args.since, args.limit).await?,
    };
    let output = session.output;
    if output.json {
        output.value(&page)?;
        return Ok(0);
    }
    let heading = ["SEQ", "WHEN", "WHO", "WHAT", "SUBJECT", "DETAILS"];
    output.table(heading, &page.records.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}

fn row(record: &AuditRecord) -> [Cell; 6] {
    let AuditRecord { seq, at, actor, action, subject, details, .. } = record;
    let details: Vec<String> = details.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let texts = [actor, action, subject, &details.join(" ")].map(|text| Cell::from(escaped(text)));
    let [who, what, subject, details] = texts;
    [seq.to_string().into(), instant(*at).into(), who, what, subject, details]
}

/// The first records after `after`.
async fn following(client: &Client, after: u64, limit: u32) -> Result<AuditPage, ClientError> {
    let ask = async |after, limit: u32| {
        client.audit_list(&ListAudit { after: Some(after), limit: Some(limit.min(PAGE)) }).await
    };
    let (mut page, mut left) = (ask(after, limit).await?, limit.saturating_sub(PAGE));
    while let Some(last) = page.records.last().filter(|_| left > 0) {
        let next = ask(last.seq, left).await?;
        if next.records.is_empty() {
            break;
        }
        left = left.saturating_sub(PAGE);
        page.records.extend(next.records);
    }
    Ok(page)
}

/// The last records, or those of them since an instant: read from the end, page by page.
async fn newest(client: &Client, since: Option<UnixMicros>, limit: u32) -> Result<AuditPage, ClientError> {
    let since = since.unwrap_or(UnixMicros(i64::MIN));
    let first = client.audit_list(&ListAudit { after: None, limit: Some(1) }).await?;
    let (mut pages, mut upto, mut left) = (Vec::new(), first.head.seq, limit);
    while left > 0 && upto > 0 {
        let count = left.min(PAGE).min(u32::try_from(upto).unwrap_or(PAGE));
        let after = upto.saturating_sub(count.into());
        let page = client.audit_list(&ListAudit { after: Some(after), limit: Some(count) }).await?;
        let goes_on = page.records.first().is_some_and(|record| record.at >= since);
        pages.push(page.records);
        if !goes_on {
            break;
        }
        (upto, left) = (after, left - count);
    }
    let records = pages.into_iter().rev().flatten().filter(|record| record.at >= since).collect();
    Ok(AuditPage { records, ..first })
}
