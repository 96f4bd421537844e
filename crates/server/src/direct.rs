//! The operations of a server called in process, and its reaper, one round at a time.
//!
//! The same functions that the handlers and the tasks call, with the caller's token given and not looked up. For whoever
//! drives servers by a clock of their own ([`crate::Clock::manual`]), as the simulator does: nothing happens but what is
//! called, and nothing of it waits for real time unless a poll asks for it.
//!
//! Left out: HTTP, authentication, and the tasks that no lease hangs on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use holm_api::{
    agent::{
        AppendEvents, Appended, Fenced, FinishRun, Poll, Polled, Register, Registered, Renew, Renewed, SandboxEnded,
        StartRun,
    },
    problem::Problem,
    runs::CreateRun,
};
use holm_domain::{
    RunId,
    access::Token,
    run::{Cancel, Run},
};

use crate::{Server, account::Account, app::App, auth::speaker::Speaker, ops, problem::Failure, tasks::Reaper};

/// What an operation yields, or the problem that its caller is told.
pub type Answer<T> = Result<T, Box<Problem>>;

/// A server whose operations are called in process, by the holder of one token.
#[derive(Debug)]
pub struct Direct {
    app: Arc<App>,
    token: Token,
    speaker: Speaker,
    reaper: tokio::sync::Mutex<Reaper>,
}

impl Server {
    /// This server, called in process by the holder of `token`.
    pub fn direct(self, token: Token) -> Direct {
        Direct { reaper: Reaper::new(&self.app).into(), app: self.app, speaker: Speaker::of(&token), token }
    }
}

fn told<T>(result: Result<T, Failure>) -> Answer<T> {
    result.map_err(|failure| Box::new(failure.into_problem()))
}

impl Direct {
    /// The same server, called by the holder of another token.
    pub fn for_holder_of(&self, token: Token) -> Self {
        let (app, reaper) = (Arc::clone(&self.app), Reaper::new(&self.app).into());
        Self { app, reaper, speaker: Speaker::of(&token), token }
    }

    /// Takes a host in, or brings its record up to date.
    pub async fn agent_register(&self, body: Register) -> Answer<Registered> {
        told(ops::hosts::agent_register(&self.app, &self.speaker, body).await)
    }

    /// Grants what the agent can take, and tells it about what it holds.
    pub async fn lease_poll(&self, body: Poll) -> Answer<Polled> {
        told(ops::leases::lease_poll(&self.app, &self.speaker, body, &Account::of_token(&self.token)).await)
    }

    /// Extends leases.
    pub async fn lease_renew(&self, body: Renew) -> Answer<Renewed> {
        told(ops::leases::renew::lease_renew(&self.app, &self.speaker, body).await)
    }

    /// Records that the command of a run was started.
    pub async fn run_start(&self, id: RunId, body: StartRun) -> Answer<()> {
        told(ops::leases::run_start(&self.app, &self.speaker, id, body).await)
    }

    /// Stores what of `batches` is new.
    pub async fn log_append(&self, id: RunId, by: Fenced, batches: Bytes) -> Answer<Appended> {
        told(ops::logs::log_append(&self.app, &self.speaker, id, by, batches).await)
    }

    /// Stores what an agent tells of a run that is new.
    pub async fn event_append(&self, id: RunId, body: AppendEvents) -> Answer<()> {
        told(ops::events::event_append(&self.app, &self.speaker, id, body).await)
    }

    /// Records that the sandbox of a run has ended.
    pub async fn run_sandbox_ended(&self, id: RunId, body: SandboxEnded) -> Answer<()> {
        told(ops::leases::run_sandbox_ended(&self.app, &self.speaker, id, body).await)
    }

    /// Ends a run as its agent says it ended.
    pub async fn run_finish(&self, id: RunId, body: FinishRun) -> Answer<()> {
        told(ops::leases::run_finish(&self.app, &self.speaker, id, body).await)
    }

    /// Takes a run into the queue, once for each key.
    pub async fn run_create(&self, body: CreateRun, key: String) -> Answer<Run> {
        told(ops::runs::run_create(&self.app, &self.token, body, Some(key), None).await.map(|created| created.run))
    }

    /// Asks that a run end.
    pub async fn run_cancel(&self, id: RunId, how: Cancel) -> Answer<Run> {
        told(ops::runs::run_cancel(&self.app, self.token.org, id, how, &Account::of_token(&self.token)).await)
    }

    /// One round of the reaper; returns how long it rests at most until the next.
    pub async fn reap(&self) -> Duration {
        self.reaper.lock().await.round(&self.app).await
    }
}
