//! The servers: the real operations over one store in memory, each with a clock of its own.

use std::time::Duration;

use holm_api::{problem::Problem, runs::CreateRun};
use holm_domain::{
    OrgId, ProjectId, RunId, TokenId, UnixMicros,
    access::{Role, Token},
    limits::LeaseConfig,
    run::{Cancel, RunSpec},
};
use holm_server::{Clock, Config, Server, direct::Direct};
use holm_store::{Org, Project, Store};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::{
    network::{Answer, Request},
    time::{At, micros},
};

/// The time of day when a simulation begins.
const BEGUN: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// Why there are no servers to simulate.
#[derive(Debug, thiserror::Error)]
pub enum NoServers {
    /// There is no executor.
    #[error("no executor: {0}")]
    Runtime(#[from] std::io::Error),
    /// The store does not take what has to be there.
    #[error("the store in memory: {0}")]
    Store(#[from] holm_store::Error),
    /// The times of the plan cannot be.
    #[error("the times of the plan: {0}")]
    Times(#[from] holm_domain::error::InvalidField),
}

struct Machine {
    clock: Clock,
    /// Until when its clock was moved.
    moved: At,
    /// How far its time of day is ahead, in microseconds.
    ahead: i64,
    life: u32,
    server: Option<Direct>,
}

/// All servers on one store.
pub(crate) struct Servers {
    // Its time stands still: whatever reads tokio's clock within an operation reads the same twice.
    runtime: Runtime,
    pub(crate) store: Store,
    pub(crate) org: OrgId,
    token: Token,
    lease: LeaseConfig,
    machines: Vec<Machine>,
}

impl Servers {
    /// Servers whose times of day are ahead by so much.
    pub(crate) fn new(lease: LeaseConfig, ahead: &[i64]) -> Result<Self, NoServers> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let store = Store::memory();
        let org = OrgId::from_uuid(Uuid::from_u128(1));
        let token = Token {
            id: TokenId::from_uuid(Uuid::from_u128(2)),
            org,
            role: Role::Agent,
            name: "simulated".to_owned(),
            hash: [0; 32],
            created_at: BEGUN,
            expires_at: None,
            revoked_at: None,
        };
        let project = ProjectId::from_uuid(Uuid::from_u128(3));
        runtime.block_on(async {
            store.org_create(&Org { id: org, name: "org".to_owned(), created_at: BEGUN }).await?;
            store.project_create(&Project { id: project, org, name: "default".to_owned(), created_at: BEGUN }).await?;
            store.token_create(&token).await
        })?;
        let machine = |&ahead| Machine { clock: Clock::default(), moved: At::default(), ahead, life: 0, server: None };
        let machines = ahead.iter().map(machine).collect();
        let mut servers = Self { runtime, store, org, token, lease, machines };
        for index in 0..servers.count() {
            servers.start(index, At::default())?;
        }
        Ok(servers)
    }

    pub(crate) fn count(&self) -> usize {
        self.machines.len()
    }

    /// Starts a server, which reads the time of day of its machine once.
    pub(crate) fn start(&mut self, index: usize, at: At) -> Result<u32, NoServers> {
        let machine = &mut self.machines[index];
        machine.clock = Clock::manual(UnixMicros(BEGUN.plus(Duration::from_micros(at.0)).0 + machine.ahead));
        machine.moved = at;
        machine.life += 1;
        let config = Config { lease: self.lease, clock: machine.clock.clone(), ..Config::default() };
        machine.server = Some(Server::new(config, self.store.clone())?.direct(self.token.clone()));
        Ok(machine.life)
    }

    pub(crate) fn stop(&mut self, index: usize) {
        self.machines[index].server = None;
    }

    pub(crate) fn life(&self, index: usize) -> u32 {
        self.machines[index].life
    }

    /// Sets the time of day of a server's machine so far ahead of true, in microseconds.
    pub(crate) fn set_ahead(&mut self, index: usize, at: At, ahead: i64) {
        let machine = &mut self.machines[index];
        machine.move_to(at);
        machine.clock.set_by(ahead - machine.ahead);
        machine.ahead = ahead;
    }

    /// What a server answers to `request`; nothing where it is down.
    pub(crate) fn call(&mut self, index: usize, at: At, request: Request) -> Option<Answer> {
        let machine = &mut self.machines[index];
        machine.move_to(at);
        let server = machine.server.as_ref()?;
        let answer = self.runtime.block_on(answer(server, request));
        Some(answer.unwrap_or_else(Answer::Refused))
    }

    /// One round of a server's reaper; returns how long it rests, or nothing where it is down.
    pub(crate) fn reap(&mut self, index: usize, at: At) -> Option<Duration> {
        let machine = &mut self.machines[index];
        machine.move_to(at);
        let server = machine.server.as_mut()?;
        Some(self.runtime.block_on(server.reap()))
    }

    /// Takes a run in, on a server that is up.
    pub(crate) fn create(&mut self, index: usize, at: At, spec: RunSpec) -> Option<RunId> {
        let machine = &mut self.machines[index];
        machine.move_to(at);
        let created = self.runtime.block_on(machine.server.as_ref()?.run_create(CreateRun { project: None, spec }));
        created.ok().map(|run| run.id)
    }

    /// Asks for the end of a run, on a server that is up.
    pub(crate) fn cancel(&mut self, index: usize, at: At, id: RunId, how: Cancel) -> bool {
        let machine = &mut self.machines[index];
        machine.move_to(at);
        machine.server.as_ref().is_some_and(|server| self.runtime.block_on(server.run_cancel(id, how)).is_ok())
    }

    /// Reads the store.
    pub(crate) fn read<T>(&self, read: impl Future<Output = T>) -> T {
        self.runtime.block_on(read)
    }
}

impl Machine {
    fn move_to(&mut self, at: At) {
        self.clock.advance(Duration::from_micros(micros(at.since(self.moved))));
        self.moved = at;
    }
}

async fn answer(server: &Direct, request: Request) -> Result<Answer, Box<Problem>> {
    Ok(match request {
        Request::Register(body) => Answer::Registered(server.agent_register(body).await?),
        Request::Poll(body) => Answer::Polled(server.lease_poll(body).await?),
        Request::Renew(body) => Answer::Renewed(server.lease_renew(body).await?),
        Request::Start(run, body) => server.run_start(run, body).await.map(|()| Answer::Done)?,
        Request::Append(run, by, bytes) => Answer::Appended(server.log_append(run, by, bytes).await?.next_seq),
        Request::Ended(run, body) => server.run_sandbox_ended(run, body).await.map(|()| Answer::Done)?,
        Request::Finish(run, body) => server.run_finish(run, body).await.map(|()| Answer::Done)?,
    })
}
