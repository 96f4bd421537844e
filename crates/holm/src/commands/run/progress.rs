//! What happens until a run says something: one line on a terminal, rewritten, gone when output starts.
//!
//! What always holds: nothing is shown or asked in a pipe, with `--quiet` or with `--json`, and nothing before
//! [`SHOW_AFTER`], so that a quick run shows nothing. Following does not wait for it.

use std::time::Duration;

use holm_api::{
    client::{Client, ClientError},
    runs::RunView,
};
use holm_domain::{
    AgentId, RunId,
    run::{RootSource, RunState},
};
use tokio::time::{Instant, sleep_until};

use super::super::waiting;
use crate::{config::Target, output::escaped, session::Session, status_line::StatusLine, units::show_duration};

/// How long nothing is shown.
const SHOW_AFTER: Duration = Duration::from_millis(300);
/// How often the run is looked at: at first, and in the end.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// The line, and when it is brought up to date.
pub struct Progress {
    line: StatusLine,
    begun: Instant,
    next: Instant,
    wait: Duration,
    /// The name of the host that was asked for last.
    host: Option<(AgentId, String)>,
}

impl Progress {
    /// `is_detached` runs are not waited for, so they have nothing to show.
    pub fn new(session: &Session, is_detached: bool) -> Self {
        let begun = Instant::now();
        let mut line = StatusLine::new(session.output);
        if is_detached {
            line.end();
        }
        Self { line, begun, next: begun + SHOW_AFTER, wait: LOOK_EVERY.0, host: None }
    }

    /// Shows `text` if `work` takes long.
    pub async fn during<T>(&mut self, text: String, work: impl Future<Output = T>) -> T {
        let show = async {
            sleep_until(self.begun + SHOW_AFTER).await;
            self.line.show(&text);
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            done = work => done,
            never = show => match never {},
        }
    }

    /// Waits until it is time, and brings the line up to date. May be dropped while it waits; never ready without a line.
    pub async fn step(&mut self, client: &Client, id: RunId) {
        if !self.line.is_on() {
            return std::future::pending().await;
        }
        sleep_until(self.next).await;
        match self.look(client, id).await {
            Ok(Some(text)) => self.line.show(&format!("{text} ({})", show_duration(self.elapsed()))),
            Ok(None) => self.line.end(),
            // Who follows the output tries again as well, and tells it if that is in vain.
            Err(error) if error.is_transient() => self.line.show("the server does not answer; trying again"),
            Err(_) => self.line.end(),
        }
        self.next = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(LOOK_EVERY.1);
    }

    /// Takes the line away for good: something else is to be said.
    pub fn end(&mut self) {
        self.line.end();
    }

    /// Whole seconds: the line is read by people.
    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.begun.elapsed().as_secs())
    }

    /// What is said of the run; nothing once its command was started.
    async fn look(&mut self, client: &Client, id: RunId) -> Result<Option<String>, ClientError> {
        let run = client.run_get(id).await?;
        Ok(match run.state {
            RunState::Queued => Some(format!("queued: {}", waiting::why(client, &run).await?)),
            RunState::Claimed => {
                let host = self.host_of(client, &run).await?;
                Some(preparing(&run.spec.root, &host))
            }
            RunState::Resuming => Some("resuming".to_owned()),
            RunState::Running | RunState::Paused | RunState::Finishing | RunState::Ended => None,
        })
    }

    async fn host_of(&mut self, client: &Client, run: &RunView) -> Result<String, ClientError> {
        let Some(agent) = run.agent else { return Ok("a host".to_owned()) };
        if let Some((known, name)) = &self.host
            && *known == agent
        {
            return Ok(name.clone());
        }
        let hosts = client.host_list().await?.hosts;
        let found = hosts.iter().find(|host| host.id == agent);
        let name = found.map_or_else(|| agent.to_string(), |host| escaped(&host.name));
        self.host = Some((agent, name.clone()));
        Ok(name)
    }
}

fn preparing(root: &RootSource, host: &str) -> String {
    match root {
        RootSource::Host {} => format!("starting on {host}"),
        RootSource::Dir { path } => format!("starting on {host} with dir:{}", escaped(path)),
        // Unpacked at its first use; whether this is the first is the agent's to know.
        RootSource::Tar { path } => format!("preparing tar:{} on {host}", escaped(path)),
    }
}

/// What is waited for before a run is there.
pub fn server(session: &Session) -> String {
    match session.config.target() {
        Ok(Target::Named { endpoint, .. }) => format!("waiting for {endpoint}"),
        // An error here is one of the submission, which tells it.
        Ok(Target::Local) | Err(_) => "waiting for the server of this machine".to_owned(),
    }
}
