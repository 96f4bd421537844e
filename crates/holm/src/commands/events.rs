//! `holm events`: what happened to a run.

use std::time::Duration;

use holm_api::{
    client::{Client, ClientError},
    runs::After,
};
use holm_domain::{
    RunId,
    run::{Event, EventKind},
};

use super::instant;
use crate::{output::escaped, session::Session};

/// How many events are shown along with a run.
const SHOWN_MAX: usize = 1_000;

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

/// The first events of a run, [`SHOWN_MAX`] at most, and whether there are more.
pub async fn first(client: &Client, run: RunId) -> Result<(Vec<Event>, bool), ClientError> {
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let page = client.run_events(run, &After { after: Some(after), limit: None }).await?;
        if page.events.is_empty() || page.last_seq <= after {
            return Ok((events, false));
        }
        after = page.last_seq;
        events.extend(page.events);
        if events.len() > SHOWN_MAX {
            events.truncate(SHOWN_MAX);
            return Ok((events, true));
        }
    }
}

fn tell(session: &Session, event: &Event) -> anyhow::Result<()> {
    let output = session.output;
    if output.json {
        return Ok(output.value_line(event)?);
    }
    Ok(output.line(line(event))?)
}

/// An event for people.
pub fn line(event: &Event) -> String {
    format!("{}  {}", instant(event.at), sentence(&event.kind))
}

fn sentence(kind: &EventKind) -> String {
    match kind {
        EventKind::Queued => "queued".to_owned(),
        EventKind::Claimed { agent, fence } => format!("claimed by {agent} (fence {fence})"),
        EventKind::Started { sandbox } => format!("started in a sandbox of `{}`", escaped(&sandbox.runtime)),
        EventKind::CancelRequested { how } => format!("asked to end ({})", format!("{how:?}").to_lowercase()),
        EventKind::LeaseExpired { agent, fence } => format!("the lease of {agent} expired (fence {fence})"),
        EventKind::HostFailed { agent, fence, problem } => {
            format!("the host of {agent} could not make its sandbox (fence {fence}): {}", escaped(problem))
        }
        EventKind::Requeued => "back in the queue".to_owned(),
        EventKind::EgressRefused { host, port, protocol, count, reason } => {
            let (host, protocol) = (escaped(host), escaped(protocol));
            let reason = reason.as_deref().map(|reason| format!(": {}", escaped(reason))).unwrap_or_default();
            format!("egress refused: {protocol} {host}:{port}, {count} times{reason}")
        }
        EventKind::ResultRefused { problem } => format!("the result was refused: {}", escaped(problem)),
        EventKind::SandboxUndying { waited_ms } => {
            let waited = Duration::from_millis(*waited_ms);
            format!("the sandbox was killed and has not died within {waited:?}; the run ends when it has")
        }
        EventKind::EventRefused { problem } => format!("an event was refused: {}", escaped(problem)),
        EventKind::Ended { outcome } => {
            let message = outcome.message.as_deref().map(|text| format!(": {}", escaped(text))).unwrap_or_default();
            format!("ended, exit code {}{message}", outcome.exit_code())
        }
    }
}
