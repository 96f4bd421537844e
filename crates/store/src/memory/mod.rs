//! The store in memory: what the other engines do, in the plainest form. The conformance suite holds them to the same.

mod runs;
mod tenants;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use holm_domain::{
    AgentId, OrgId, ProjectId, RunId, TokenId, UnixMicros,
    access::Token,
    host::Host,
    run::{Event, Run},
};

use crate::{Doomed, DoomedPart, Org, Project, Segment};

#[derive(Debug, Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    orgs: BTreeMap<OrgId, Org>,
    projects: BTreeMap<ProjectId, Project>,
    tokens: BTreeMap<TokenId, Token>,
    hosts: BTreeMap<AgentId, Host>,
    runs: BTreeMap<RunId, Row>,
    doomed: BTreeMap<(DoomedPart, RunId), Doomed>,
    idempotency: BTreeMap<(OrgId, String), ([u8; 32], RunId)>,
}

/// A run with all that belongs to it.
#[derive(Debug)]
struct Row {
    run: Run,
    deadline: Option<UnixMicros>,
    /// The fence under which appends are taken; 0 while there is no lease.
    fence: u64,
    next_log_seq: u64,
    events: Vec<Stored>,
    segments: Vec<Segment>,
}

/// An event, and for one that an agent told: under which fence and with which number of its own.
#[derive(Debug)]
struct Stored {
    event: Event,
    source: Option<(u64, u64)>,
}

impl Memory {
    /// No operation leaves the state half changed, so it may be used after a panic of a thread that held the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
