//! `holm hosts drain`: cordons a host and waits until its runs have ended.
//!
//! What always holds: nothing is ended, and the host stays cordoned however the wait ends.

use std::time::Duration;

use clap::Args;
use holm_api::{
    client::{Client, ClientError},
    hosts::HostView,
};
use holm_domain::AgentId;
use tokio::time::{Instant, sleep};

use super::named;
use crate::{commands::Usage, output::escaped, session::Session, units};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long the host must be seen without a run: a claim that was being made when it was cordoned comes within that.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The flags of `holm hosts drain`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm hosts drain isle --timeout 2h && ssh isle reboot

No run is ended. The host stays cordoned, also when the time is over (exit code 1), until `holm hosts uncordon`.")]
pub struct DrainArgs {
    /// The host: its name or its id
    #[arg(value_name = "HOST")]
    pub host: String,
    /// How long to wait, such as 30m; for ever where it is left out
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
}

/// Cordons the host, waits, and prints its id.
pub async fn execute(session: &Session, args: &DrainArgs) -> anyhow::Result<u8> {
    let begun = Instant::now();
    let timeout = args.timeout.as_ref().map(|text| {
        let limit = units::duration(text).map_err(|problem| Usage::new("--timeout", text, problem));
        limit.map(|limit| (limit, text))
    });
    let timeout = timeout.transpose()?;
    let client = session.client().await?;
    let id = named(&client.host_list().await?.hosts, &args.host)?.id;
    let mut wait = Wait { held: None, free_since: None };
    let mut host = client.host_cordon(id).await?;
    while !wait.is_over(session, &host, Instant::now())? {
        if let Some((limit, text)) = timeout
            && begun.elapsed() + LOOK_EVERY > limit
        {
            let (name, held) = (escaped(&host.name), runs(host.runs_held));
            anyhow::bail!(
                "{name} still has {held} after {text}; it stays cordoned, wait again or cancel them (`holm ps`)"
            );
        }
        sleep(LOOK_EVERY).await;
        host = look(&client, id).await?.unwrap_or(host);
    }
    let output = session.output;
    if output.json {
        output.value(&host)?;
    } else {
        output.line(host.id.to_string())?;
    }
    Ok(0)
}

/// What was seen so far.
struct Wait {
    held: Option<u32>,
    free_since: Option<Instant>,
}

impl Wait {
    /// Whether the host has been without a run for long enough. Says how many are left, where that changed.
    fn is_over(&mut self, session: &Session, host: &HostView, now: Instant) -> anyhow::Result<bool> {
        anyhow::ensure!(
            host.cordon.is_some(),
            "somebody uncordoned {} meanwhile; it takes new runs, and is not drained",
            escaped(&host.name)
        );
        if host.runs_held > 0 {
            self.free_since = None;
            if self.held != Some(host.runs_held) {
                session.output.note(format!("{} has {}; waiting", escaped(&host.name), runs(host.runs_held)));
            }
        }
        self.held = Some(host.runs_held);
        Ok(host.runs_held == 0 && *self.free_since.get_or_insert(now) + SETTLED_AFTER <= now)
    }
}

fn runs(count: u32) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

/// The host as it is now; nothing while the server does not answer.
async fn look(client: &Client, id: AgentId) -> Result<Option<HostView>, ClientError> {
    match client.host_list().await {
        Ok(list) => Ok(list.hosts.into_iter().find(|host| host.id == id)),
        Err(error) if error.is_transient() => Ok(None),
        Err(error) => Err(error),
    }
}
