//! `holm show --egress`: what runs reached, and what they were refused.

use std::time::Duration;

use holm_api::{client::Client, egress::EgressRecord, runs::After};
use holm_domain::{RunId, egress::record::Record};

use super::instant;
use crate::{
    output::escaped,
    session::Session,
    units::{show_bytes, show_duration},
};

/// Lists what each run reached so far, a line each; with `--json` an object each.
pub async fn execute(session: &Session, runs: &[RunId]) -> anyhow::Result<u8> {
    let client = session.client().await?;
    for run in runs {
        list(session, &client, *run).await?;
    }
    Ok(0)
}

async fn list(session: &Session, client: &Client, run: RunId) -> anyhow::Result<()> {
    let mut after = 0;
    loop {
        let page = client.run_egress(run, &After { after: Some(after), limit: None }).await?;
        for record in &page.records {
            if session.output.json {
                session.output.value_line(record)?;
            } else {
                session.output.line(line(record))?;
            }
        }
        if page.last_seq <= after {
            return Ok(());
        }
        after = page.last_seq;
    }
}

/// A record for people.
fn line(told: &EgressRecord) -> String {
    let Record { host, port, address, request, refused, sent, received, duration_ms } = &told.record;
    let became = refused.as_deref().map_or("ok".to_owned(), |refused| format!("refused ({})", escaped(refused)));
    let place = format!("{}:{port}", escaped(host));
    let what = match request {
        Some(request) => {
            let status = request.status.map(|status| format!(" {status}")).unwrap_or_default();
            let names = request.secrets.iter().map(|name| format!(" +{name}")).collect::<String>();
            format!("{} https://{place}{}{status}{names}", escaped(&request.method), escaped(&request.path))
        }
        None => {
            format!("connect {place}{}", address.as_deref().map(|at| format!(" ({})", escaped(at))).unwrap_or_default())
        }
    };
    let took = show_duration(Duration::from_millis(*duration_ms));
    format!(
        "{}  {became}  {what}  {took}, sent {}, received {}",
        instant(told.at),
        show_bytes(*sent),
        show_bytes(*received)
    )
}
