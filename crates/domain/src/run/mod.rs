//! A run: one workload from submission to its end.
//!
//! [`Run`] is the whole of what is decided about one workload; the modules beside this one say what it is asked to do
//! ([`spec`]), how it ended ([`outcome`]), what it used ([`usage`]) and what is told of it ([`event`]). The transitions that
//! involve a lease are in [`crate::lease::grant`]; those that do not are here.
//!
//! What always holds: a run that has ended never changes again, but that its log is deleted once; its lease is there exactly
//! while its state is one that an agent owns; a run whose sandbox has ended is never queued again; `fence` never decreases;
//! every state that is not final has a deadline ([`Run::deadline`]).

pub mod event;
pub mod outcome;
pub mod spec;
pub mod usage;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

pub use event::{Event, EventKind, REFUSED_PROTOCOLS};
pub use outcome::{ExitStatus, Outcome, OutcomeKind, Reason};
pub use spec::{Mount, RootSource, RunSpec, WorkDir};
pub use usage::{LiveUsage, Measured, Usage};

use crate::{
    AgentId, OrgId, ProjectId, RunId, TokenId, UnixMicros,
    lease::Lease,
    limits::LeaseConfig,
    trace::{RunTrace, if_legible},
};

/// Where a run is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for an agent.
    Queued,
    /// An agent holds it and prepares its sandbox.
    Claimed,
    /// Its command was started.
    Running,
    /// Its sandbox is held in a snapshot; the agent that has the snapshot keeps the lease.
    Paused,
    /// Its sandbox is being restored.
    Resuming,
    /// Its sandbox has ended, and what it left is being stored. It is never executed again.
    Finishing,
    /// It is over; see the outcome.
    Ended,
}

impl RunState {
    /// Every state, for filters and tests.
    pub const ALL: [RunState; 7] = [
        RunState::Queued,
        RunState::Claimed,
        RunState::Running,
        RunState::Paused,
        RunState::Resuming,
        RunState::Finishing,
        RunState::Ended,
    ];

    /// The word used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            RunState::Queued => "queued",
            RunState::Claimed => "claimed",
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::Resuming => "resuming",
            RunState::Finishing => "finishing",
            RunState::Ended => "ended",
        }
    }

    /// The state of that word.
    pub fn parse(text: &str) -> Option<RunState> {
        RunState::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether an agent owns a run in this state.
    pub const fn is_leased(self) -> bool {
        !matches!(self, RunState::Queued | RunState::Ended)
    }
}

/// How urgently a run is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancel {
    /// Ask the command to end (SIGTERM), and kill it after ten seconds.
    Terminate,
    /// Kill at once.
    Kill,
}

impl Cancel {
    /// The word used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cancel::Terminate => "terminate",
            Cancel::Kill => "kill",
        }
    }

    /// What a word of the store says.
    pub fn parse(text: &str) -> Option<Cancel> {
        [Cancel::Terminate, Cancel::Kill].into_iter().find(|cancel| cancel.as_str() == text)
    }
}

/// The end of a sandbox whose run has not ended yet, because its output or its changes are still being stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// How the run ends if all of that is stored.
    pub outcome: Outcome,
    /// Until when that may take.
    pub deadline_at: UnixMicros,
}

/// The place in which a run executes or executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// The agent that holds it.
    pub agent: AgentId,
    /// The runtime that made it.
    pub runtime: String,
    /// The digest of the image that was booted, where the image has one.
    pub image_digest: Option<String>,
    /// What was asked for and could not be enforced on that host, each with the reason.
    pub unenforced: Vec<String>,
}

/// A host that could not make the sandbox of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// The agent of the host.
    pub agent: AgentId,
    /// Until when the run is not granted to it.
    pub until: UnixMicros,
}

/// The host that keeps room for a run which waits for more than any has left: it takes nothing that stands behind the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomKept {
    /// The agent of the host.
    pub agent: AgentId,
    /// Until when, unless it says so again.
    pub until: UnixMicros,
}

/// One workload from submission to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its identity.
    pub id: RunId,
    /// The org it belongs to.
    pub org: OrgId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// The token that submitted it.
    pub created_by: TokenId,
    /// What it is asked to do.
    pub spec: RunSpec,
    /// Where it is on its way.
    pub state: RunState,
    /// The number of its newest lease; 0 before the first.
    pub fence: u64,
    /// How many times it was claimed.
    pub attempt: u32,
    /// The right of one agent to work on it, while there is one.
    pub lease: Option<Lease>,
    /// The host on which it must be claimed, because its snapshot lies there.
    pub affinity: Option<AgentId>,
    /// Whether it is to be ended, and how urgently.
    pub cancel: Option<Cancel>,
    /// The place in which it executes or executed last.
    pub sandbox: Option<SandboxInfo>,
    /// How its sandbox ended, while the state is [`RunState::Finishing`].
    pub ending: Option<Ending>,
    /// The structured result that its command left, if it did.
    pub result: Option<serde_json::Value>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What its last sandbox used, where that was told.
    pub usage: Option<Usage>,
    /// When it was submitted.
    pub queued_at: UnixMicros,
    /// When it is given up if no agent has claimed it.
    pub queue_deadline_at: UnixMicros,
    /// Until when it is in the queue without being granted to anybody: a pause after its lease expired.
    // Left out where there is none: who does not know it yet need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<UnixMicros>,
    /// How many of its attempts ended because a host could not make its sandbox.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub host_failures: u32,
    /// Hosts that could not make its sandbox, each for a while.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
    /// The host that keeps room for it while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_kept: Option<RoomKept>,
    /// When it was claimed last.
    pub claimed_at: Option<UnixMicros>,
    /// When its command was started last.
    pub started_at: Option<UnixMicros>,
    /// When it ended.
    pub ended_at: Option<UnixMicros>,
    /// When its log was deleted, if it was.
    pub logs_deleted_at: Option<UnixMicros>,
    /// To which trace it belongs, if to any. Nothing that is decided depends on it.
    // Left out where there is none: who does not know it yet need not.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_legible")]
    pub trace: Option<RunTrace>,
    /// The number of this state; it grows by one with every saved change.
    pub version: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A new state of a run and what is told of the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The run as it is to be saved; its version is one more than before.
    pub run: Run,
    /// What happened, in order.
    pub events: Vec<EventKind>,
}

/// Everything that names a new run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The new identity.
    pub id: RunId,
    /// The org.
    pub org: OrgId,
    /// The project.
    pub project: ProjectId,
    /// Who asks.
    pub created_by: TokenId,
}

/// Takes a run into the queue. The spec must have been validated by [`RunSpec::validate`].
pub fn admit(admission: Admission, spec: RunSpec, now: UnixMicros, config: &LeaseConfig) -> Decision {
    let Admission { id, org, project, created_by } = admission;
    let queue_deadline_at = now.plus(spec.queue_timeout(config));
    let run = Run {
        id,
        org,
        project,
        created_by,
        spec,
        state: RunState::Queued,
        fence: 0,
        attempt: 0,
        lease: None,
        affinity: None,
        cancel: None,
        sandbox: None,
        ending: None,
        result: None,
        outcome: None,
        usage: None,
        queued_at: now,
        queue_deadline_at,
        retry_at: None,
        host_failures: 0,
        passed_over: Vec::new(),
        room_kept: None,
        claimed_at: None,
        started_at: None,
        ended_at: None,
        logs_deleted_at: None,
        trace: None,
        version: 1,
    };
    Decision { run, events: vec![EventKind::Queued] }
}

impl Run {
    /// When somebody must look after this run if nothing happened until then; nothing for a run that has ended.
    ///
    /// The owner of the deadline is the server's reaping task: a queued run is given up, an expired lease is taken away, and
    /// the pause after that, or of a host that is passed over, is ended.
    pub fn deadline(&self, config: &LeaseConfig) -> Option<UnixMicros> {
        match (self.state, &self.lease) {
            (RunState::Ended, _) => None,
            (_, Some(lease)) => Some(lease.expires_at.plus(config.margin)),
            (_, None) => {
                let pauses = self.passed_over.iter().map(|host| host.until).chain(self.retry_at);
                pauses.chain([self.queue_deadline_at]).min()
            }
        }
    }

    /// Where it stands in the queue of its org, in which the earliest is first: when it was submitted, and by its priority
    /// earlier or later. Nowhere while it pauses.
    pub fn queue_at(&self) -> Option<UnixMicros> {
        let ahead = Duration::from_secs(60 * u64::from(self.spec.priority.unsigned_abs()));
        let at = if self.spec.priority < 0 { self.queued_at.plus(ahead) } else { self.queued_at.minus(ahead) };
        Some(at).filter(|_| self.retry_at.is_none())
    }

    /// Whether it is not granted to the host of `agent` for now, because that could not make its sandbox.
    pub fn passes_over(&self, agent: AgentId) -> bool {
        self.passed_over.iter().any(|host| host.agent == agent)
    }

    /// Ends the pause of a queued run that is over.
    pub fn end_pause(&self, now: UnixMicros) -> Option<Decision> {
        self.retry_at.filter(|at| self.state == RunState::Queued && *at <= now)?;
        let run = Self { retry_at: None, version: self.version + 1, ..self.clone() };
        Some(Decision { run, events: Vec::new() })
    }

    /// Passes over no longer those hosts whose time for that is over.
    pub fn reconsider(&self, now: UnixMicros) -> Option<Decision> {
        let mut run = self.clone();
        run.passed_over.retain(|host| host.until > now);
        if self.state != RunState::Queued || run.passed_over.len() == self.passed_over.len() {
            return None;
        }
        run.version += 1;
        Some(Decision { run, events: Vec::new() })
    }

    /// Asks that the run end. A queued run ends at once; an owned one is ended by its agent. Asking again, or asking for a
    /// run that has ended, changes nothing and is no error.
    pub fn request_cancel(&self, how: Cancel, now: UnixMicros) -> Option<Decision> {
        if self.state == RunState::Ended || self.cancel >= Some(how) {
            return None;
        }
        let mut run = self.clone();
        run.cancel = Some(how);
        run.version += 1;
        let asked = EventKind::CancelRequested { how };
        if run.state != RunState::Queued {
            return Some(Decision { run, events: vec![asked] });
        }
        let ended = run.end(Outcome::cancelled("cancelled while it was queued"), now);
        Some(Decision { run, events: vec![asked, ended] })
    }

    /// Gives a queued run up whose time in the queue is over.
    pub fn give_up(&self, now: UnixMicros) -> Option<Decision> {
        if self.state != RunState::Queued || now < self.queue_deadline_at {
            return None;
        }
        let mut run = self.clone();
        run.version += 1;
        let ended = run.end(Outcome::failed(Reason::QueueDeadline, "no agent claimed the run in time"), now);
        Some(Decision { run, events: vec![ended] })
    }

    /// Gives up the log of a run that ended `retention` ago or earlier: the run as it is to be saved. Nothing for any other
    /// run, and for one whose log was given up before.
    pub fn delete_log(&self, now: UnixMicros, retention: Duration) -> Option<Self> {
        let ended_at = self.ended_at.filter(|_| self.state == RunState::Ended && self.logs_deleted_at.is_none())?;
        (ended_at.plus(retention) <= now).then(|| {
            let mut run = self.clone();
            run.logs_deleted_at = Some(now);
            run.version += 1;
            run
        })
    }

    /// The labels of the run.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.spec.labels
    }

    /// Notes that the run waits in the queue once more, for what is told of it.
    pub(crate) fn waits_again(&mut self, now: UnixMicros) {
        self.state = RunState::Queued;
        if let Some(trace) = &mut self.trace {
            trace.waits_since = now;
        }
    }

    /// Makes the run final and takes its lease away.
    pub(crate) fn end(&mut self, outcome: Outcome, now: UnixMicros) -> EventKind {
        self.state = RunState::Ended;
        self.lease = None;
        self.ending = None;
        self.retry_at = None;
        self.passed_over.clear();
        self.ended_at = Some(now);
        self.outcome = Some(outcome.clone());
        EventKind::Ended { outcome }
    }
}
