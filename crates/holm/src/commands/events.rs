//! `holm events`: what happened to a run.

use holm_api::runs::After;
use holm_domain::{
    RunId,
    run::{Event, EventKind},
};

use super::instant;
use crate::{output::escaped, session::Session};

/// Lists the events of a run, and follows them if asked.
pub async fn execute(session: &Session, run: RunId, follow: bool) -> anyhow::Result<u8> {
    let client = session.client().await?;
    if follow {
        let mut follower = client.run_events_follow(run, 0);
        while let Some(event) = follower.next().await? {
            tell(session, &event)?;
        }
        return Ok(0);
    }
    let mut after = 0;
    loop {
        let page = client.run_events(run, &After { after: Some(after), limit: None }).await?;
        page.events.iter().try_for_each(|event| tell(session, event))?;
        if page.events.is_empty() || page.last_seq <= after {
            return Ok(0);
        }
        after = page.last_seq;
    }
}

fn tell(session: &Session, event: &Event) -> anyhow::Result<()> {
    let output = session.output;
    if output.json {
        return Ok(output.value_line(event)?);
    }
    Ok(output.line(format!("{}  {}", instant(event.at), sentence(&event.kind)))?)
}

fn sentence(kind: &EventKind) -> String {
    match kind {
        EventKind::Queued => "queued".to_owned(),
        EventKind::Claimed { agent, fence } => format!("claimed by {agent} (fence {fence})"),
        EventKind::Started { sandbox } => format!("started in a sandbox of `{}`", escaped(&sandbox.runtime)),
        EventKind::CancelRequested { how } => format!("asked to end ({})", format!("{how:?}").to_lowercase()),
        EventKind::LeaseExpired { agent, fence } => format!("the lease of {agent} expired (fence {fence})"),
        EventKind::Requeued => "back in the queue".to_owned(),
        EventKind::EgressRefused { host, port, protocol, count } => {
            let (host, protocol) = (escaped(host), escaped(protocol));
            format!("egress refused: {protocol} {host}:{port}, {count} times")
        }
        EventKind::ResultRefused { problem } => format!("the result was refused: {}", escaped(problem)),
        EventKind::Ended { outcome } => {
            let message = outcome.message.as_deref().map(|text| format!(": {}", escaped(text))).unwrap_or_default();
            format!("ended, exit code {}{message}", outcome.exit_code())
        }
    }
}
