//! A control plane in memory for tests: the real state machine of `domain`, and faults on order.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use holm_api::agent::{
    AppendEvents, Appended, ClaimedRun, Directive, DirectiveKind, Fenced, FinishRun, Poll, Polled, Register,
    Registered, Renew, Renewed, RenewedLease, SandboxEnded, StartRun,
};
use holm_api::run_secrets::{AskSecrets, Place, RunSecret, SealedSecrets, seal};
use holm_domain::{
    AgentId, InstanceId, OrgId, ProjectId, RunId, TokenId, UnixMicros,
    egress::credential::Credential,
    host::{Capacity, refusal},
    lease::{
        Claimant,
        grant::{self, Finish, FinishRefused},
    },
    limits::LeaseConfig,
    log::{BatchError, parse_all},
    run::{Admission, Cancel, EventKind, Run, RunSpec, RunState, admit},
    trace::TraceContext,
};
use uuid::Uuid;

use super::{ControlError, ControlPlane};
use crate::clock;

/// An operation at which a fault may be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    Renew,
    Start,
    Secrets,
    Logs,
    Events,
    Changes,
    Ended,
    Finish,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not carried out, so many times.
    NotDone(u32),
    /// It is carried out and the answer is lost, so many times.
    AnswerLost(u32),
    /// It never answers; whether it is carried out before.
    Hang { is_done: bool },
    /// It is refused for good.
    Refused,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) output: BTreeMap<RunId, Vec<(u64, Vec<u8>)>>,
    pub(crate) events: BTreeMap<RunId, BTreeMap<(u64, u64), EventKind>>,
    pub(crate) changes: BTreeMap<RunId, Vec<u8>>,
    pub(crate) finishes: u32,
    pub(crate) faults: BTreeMap<Op, Fault>,
    pub(crate) hung: Vec<Op>,
    pub(crate) agents: Vec<AgentId>,
    /// The labels of the host as they were told last.
    pub(crate) labels: BTreeMap<String, String>,
    /// The processes that registered, in order; the last one is heard.
    pub(crate) instances: Vec<InstanceId>,
    /// How many answers that grant something are lost.
    pub(crate) grants_lost: u32,
    /// Whether a poll was told that a lease is lost.
    pub(crate) is_stale_told: bool,
    /// What the last poll said is held.
    pub(crate) held: Vec<RunId>,
    /// Whoever brings this event is refused with all that comes with it.
    pub(crate) unwelcome: Option<EventKind>,
    /// Under which span every run is recorded.
    pub(crate) trace: Option<TraceContext>,
    /// Whether no agent is known any more.
    pub(crate) is_forgetful: bool,
    next: u128,
}

#[derive(Debug, Clone)]
pub(crate) struct Scripted {
    world: Arc<Mutex<World>>,
    pub(crate) config: LeaseConfig,
}

fn now() -> UnixMicros {
    UnixMicros(clock::boot_now().0 as i64)
}

impl Scripted {
    pub(crate) fn new(ttl: Duration) -> Self {
        let (margin, retry_pause) = (Duration::from_millis(200), Duration::ZERO);
        let config = LeaseConfig { ttl, margin, retry_pause, ..LeaseConfig::default() };
        Self { world: Arc::default(), config }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn submit(&self, spec: RunSpec) -> RunId {
        let mut world = self.world();
        world.next += 1;
        let id = RunId::from_uuid(Uuid::from_u128(world.next));
        let admission = Admission {
            id,
            org: OrgId::from_uuid(Uuid::nil()),
            project: ProjectId::from_uuid(Uuid::nil()),
            created_by: TokenId::from_uuid(Uuid::nil()),
        };
        world.runs.insert(id, admit(admission, spec, now(), &self.config).run);
        id
    }

    pub(crate) fn cancel(&self, id: RunId, how: Cancel) {
        let mut world = self.world();
        let decision = world.runs[&id].request_cancel(how, now()).unwrap();
        world.runs.insert(id, decision.run);
    }

    /// Takes the lease away as if it had expired.
    pub(crate) fn expire(&self, id: RunId) {
        let mut world = self.world();
        let late = now().plus(Duration::from_secs(10_000));
        let decision = grant::expire(&world.runs[&id], late, &self.config).unwrap();
        world.runs.insert(id, Run { queue_deadline_at: late, ..decision.run });
    }

    pub(crate) fn fault(&self, op: Op, fault: Fault) {
        self.world().faults.insert(op, fault);
    }

    pub(crate) fn run(&self, id: RunId) -> Run {
        self.world().runs[&id].clone()
    }

    /// The output as the command wrote it; panics if an entry is missing or there twice.
    pub(crate) fn text(&self, id: RunId) -> String {
        let world = self.world();
        let entries = world.output.get(&id).cloned().unwrap_or_default();
        for (index, (seq, _)) in entries.iter().enumerate() {
            assert_eq!(*seq, index as u64 + 1);
        }
        String::from_utf8(entries.into_iter().flat_map(|(_, data)| data).collect()).unwrap()
    }

    async fn faulty<T>(
        &self,
        op: Op,
        act: impl FnOnce(&mut World) -> Result<T, ControlError> + Send,
    ) -> Result<T, ControlError> {
        let gone = || Err(ControlError::Unavailable("a fault was ordered".to_owned()));
        let fault = self.world().faults.get(&op).copied();
        match fault {
            None => act(&mut self.world()),
            Some(Fault::Refused) => Err(ControlError::Refused("a fault was ordered".to_owned())),
            Some(Fault::NotDone(times)) => {
                self.count_down(op, times.checked_sub(1).map(Fault::NotDone));
                if times == 0 { act(&mut self.world()) } else { gone() }
            }
            Some(Fault::AnswerLost(times)) => {
                self.count_down(op, times.checked_sub(1).map(Fault::AnswerLost));
                let answer = act(&mut self.world());
                if times == 0 { answer } else { gone() }
            }
            Some(Fault::Hang { is_done }) => {
                if is_done {
                    act(&mut self.world())?;
                }
                self.world().hung.push(op);
                std::future::pending().await
            }
        }
    }

    fn count_down(&self, op: Op, left: Option<Fault>) {
        let mut world = self.world();
        match left {
            Some(fault) => world.faults.insert(op, fault),
            None => world.faults.remove(&op),
        };
    }

    /// Refuses whoever is not the newest process.
    fn heard(&self, instance: InstanceId) -> Result<(), ControlError> {
        match self.world().instances.last() {
            Some(newest) if *newest == instance => Ok(()),
            _ => Err(ControlError::Superseded),
        }
    }

    fn poll_once(&self, body: &Poll, received: UnixMicros) -> Polled {
        let mut world = self.world();
        world.held = body.held.iter().map(|lease| lease.run).collect();
        let by = Claimant { agent: body.agent, instance: body.instance };
        let mut polled = Polled::default();
        let mut free = if refusal(&world.labels, None).is_some() { Capacity::default() } else { body.free };
        let ttl_ms = (now().since(received) + self.config.ttl).as_millis() as u64;
        let is_unlisted = |run: &Run| {
            run.claimed_at.is_some_and(|at| at <= received) && !body.held.iter().any(|held| held.run == run.id)
        };
        let unlisted: Vec<Run> = world.runs.values().filter(|run| is_unlisted(run)).cloned().collect();
        for run in unlisted.into_iter().take(body.claims_max as usize) {
            let Some(decision) = grant::claim_again(&run, by, now(), &self.config) else { continue };
            polled.claimed.push(granted(&world, &decision.run, ttl_ms));
            world.runs.insert(run.id, decision.run);
        }
        let queued: Vec<RunId> =
            world.runs.values().filter(|run| run.state == RunState::Queued).map(|run| run.id).collect();
        for id in queued {
            let demand = holm_domain::schedule::demand(&world.runs[&id].spec);
            let is_full = polled.claimed.len() as u32 >= body.claims_max;
            if is_full || demand.runs > free.runs || demand.memory_bytes > free.memory_bytes {
                continue;
            }
            free = free.less(&demand);
            let Some(decision) = grant::claim(&world.runs[&id], by, now(), &self.config) else { continue };
            let run = decision.run;
            polled.claimed.push(granted(&world, &run, ttl_ms));
            world.runs.insert(id, run);
        }
        for lease in &body.held {
            let run = &world.runs[&lease.run];
            let what = match (grant::held(run, body.agent, lease.fence), run.cancel) {
                (Err(_), _) => DirectiveKind::Stale,
                (Ok(_), Some(Cancel::Kill)) if lease.cancel < run.cancel => DirectiveKind::Kill,
                (Ok(_), Some(Cancel::Terminate)) if lease.cancel < run.cancel => DirectiveKind::Terminate,
                _ => continue,
            };
            polled.directives.push(Directive { run: lease.run, fence: lease.fence, what });
        }
        world.is_stale_told |= polled.directives.iter().any(|directive| directive.what == DirectiveKind::Stale);
        polled
    }
}

fn granted(world: &World, run: &Run, ttl_ms: u64) -> ClaimedRun {
    ClaimedRun {
        run: run.id,
        org: run.org,
        project: run.project,
        fence: run.fence,
        ttl_ms,
        runtime: run.spec.runtime.clone().unwrap_or_else(|| "test".to_owned()),
        spec: run.spec.clone(),
        next_log_seq: world.output.get(&run.id).map_or(1, |entries| entries.len() as u64 + 1),
        run_token: None,
        trace: world.trace,
    }
}

/// A secret, whose value follows from its name.
fn valued(credential: &Credential) -> RunSecret {
    let value = format!("value-of-{}", credential.secret).into();
    RunSecret { name: credential.secret.clone(), version: 1, value }
}

fn held(world: &World, run: RunId, agent: AgentId, fence: u64) -> Result<(), ControlError> {
    grant::held(&world.runs[&run], agent, fence).map(drop).map_err(|_| ControlError::StaleFence)
}

impl ControlPlane for Scripted {
    async fn register(&self, body: Register) -> Result<Registered, ControlError> {
        let mut world = self.world();
        world.agents.push(body.agent);
        world.labels = body.labels;
        let is_late = world.instances.iter().rev().skip(1).any(|earlier| *earlier == body.instance);
        if is_late {
            return Err(ControlError::Superseded);
        }
        world.instances.retain(|known| *known != body.instance);
        world.instances.push(body.instance);
        world.is_forgetful = false;
        Ok(Registered {
            lease_ttl_ms: self.config.ttl.as_millis() as u64,
            renew_every_ms: self.config.renew_every().as_millis() as u64,
        })
    }

    async fn poll(&self, body: Poll) -> Result<Polled, ControlError> {
        let until = tokio::time::Instant::now() + Duration::from_millis(body.wait_ms);
        let received = now();
        loop {
            if self.world().is_forgetful {
                return Err(ControlError::Unregistered);
            }
            self.heard(body.instance)?;
            let polled = self.poll_once(&body, received);
            let grants_lost = self.world().grants_lost;
            if !polled.claimed.is_empty() && grants_lost > 0 {
                self.world().grants_lost -= 1;
                return Err(ControlError::Unavailable("the answer was lost".to_owned()));
            }
            if polled != Polled::default() || tokio::time::Instant::now() >= until {
                return Ok(polled);
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    async fn renew(&self, body: Renew) -> Result<Renewed, ControlError> {
        let config = self.config;
        self.heard(body.instance)?;
        self.faulty(Op::Renew, |world| {
            let mut leases = Vec::new();
            let by = Claimant { agent: body.agent, instance: body.instance };
            for lease in body.leases {
                let run = world.runs[&lease.run].clone();
                let renewed = grant::renew(&run, by, (lease.fence, lease.usage), now(), &config).ok();
                let ttl_ms = renewed.as_ref().map(|_| config.ttl.as_millis() as u64);
                let (run_id, fence, cancel) = (lease.run, lease.fence, run.cancel);
                leases.push(RenewedLease { run: run_id, fence, ttl_ms, cancel, run_token: None });
                world.runs.extend(renewed.map(|decision| (lease.run, decision.run)));
            }
            Ok(Renewed { leases })
        })
        .await
    }

    async fn start(&self, run: RunId, body: StartRun) -> Result<(), ControlError> {
        self.heard(body.instance)?;
        self.faulty(Op::Start, |world| {
            let agent = body.sandbox.agent;
            let decision = grant::start(&world.runs[&run], agent, body.fence, body.sandbox, now())
                .map_err(|_| ControlError::StaleFence)?;
            world.runs.extend(decision.map(|decision| (run, decision.run)));
            Ok(())
        })
        .await
    }

    async fn secrets(&self, run: RunId, body: AskSecrets) -> Result<SealedSecrets, ControlError> {
        self.heard(body.instance)?;
        self.faulty(Op::Secrets, |world| {
            held(world, run, body.agent, body.fence)?;
            let secrets: Vec<RunSecret> = world.runs[&run].spec.credentials.iter().map(valued).collect();
            let place = Place { run, fence: body.fence };
            seal(body.key, place, &secrets).map_err(|error| ControlError::Refused(error.to_string()))
        })
        .await
    }

    async fn append_logs(&self, run: RunId, fenced: Fenced, batches: Bytes) -> Result<Appended, ControlError> {
        self.heard(fenced.instance)?;
        self.faulty(Op::Logs, |world| {
            held(world, run, fenced.agent, fenced.fence)?;
            let stored = world.output.entry(run).or_default();
            let refused = |error: BatchError| ControlError::Refused(error.to_string());
            for batch in parse_all(&batches).map_err(refused)? {
                let next = stored.len() as u64 + 1;
                if batch.first_seq() > next {
                    return Err(ControlError::LogGap { next_seq: Some(next) });
                }
                let entries = batch.read().map_err(refused)?;
                let new = entries.iter().filter(|entry| entry.seq >= next);
                stored.extend(new.map(|entry| (entry.seq, entry.data.to_vec())));
            }
            Ok(Appended { next_seq: stored.len() as u64 + 1 })
        })
        .await
    }

    async fn append_events(&self, run: RunId, body: AppendEvents) -> Result<(), ControlError> {
        self.heard(body.instance)?;
        self.faulty(Op::Events, |world| {
            held(world, run, body.agent, body.fence)?;
            let events: Vec<EventKind> = body.events.into_iter().map(Into::into).collect();
            if world.unwelcome.as_ref().is_some_and(|unwelcome| events.contains(unwelcome)) {
                return Err(ControlError::Refused("it is not welcome".to_owned()));
            }
            let stored = world.events.entry(run).or_default();
            for (seq, event) in (body.first_seq..).zip(events) {
                stored.entry((body.fence, seq)).or_insert(event);
            }
            Ok(())
        })
        .await
    }

    async fn put_changes(
        &self,
        run: RunId,
        fenced: Fenced,
        file: std::fs::File,
        length: u64,
    ) -> Result<(), ControlError> {
        self.heard(fenced.instance)?;
        self.faulty(Op::Changes, |world| {
            held(world, run, fenced.agent, fenced.fence)?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(file, length), &mut bytes).unwrap();
            world.changes.insert(run, bytes);
            Ok(())
        })
        .await
    }

    async fn ended(&self, run: RunId, body: SandboxEnded) -> Result<(), ControlError> {
        let config = self.config;
        self.heard(body.instance)?;
        self.faulty(Op::Ended, |world| {
            let decided = grant::sandbox_ended(&world.runs[&run], body.agent, body.fence, body.outcome, now(), &config);
            match decided {
                Ok(decision) => world.runs.extend(decision.map(|decision| (run, decision.run))),
                Err(FinishRefused::Stale(_)) => return Err(ControlError::StaleFence),
                Err(error) => return Err(ControlError::Refused(error.to_string())),
            }
            Ok(())
        })
        .await
    }

    async fn finish(&self, run: RunId, body: FinishRun) -> Result<(), ControlError> {
        self.heard(body.instance)?;
        let config = self.config;
        self.faulty(Op::Finish, |world| {
            let stored = world.output.get(&run).map_or(1, |entries| entries.len() as u64 + 1);
            if held(world, run, body.agent, body.fence).is_ok() && body.next_log_seq != stored {
                return Err(ControlError::LogGap { next_seq: Some(stored) });
            }
            if body.outcome.message.as_ref().is_some_and(|message| message.len() > 4_096) || body.result.is_some() {
                return Err(ControlError::Refused("as the server does with what is too long".to_owned()));
            }
            let FinishRun { agent, fence, outcome, usage, result, .. } = body;
            let decided =
                grant::finish(&world.runs[&run], agent, fence, Finish { outcome, usage, result }, now(), &config);
            match decided {
                Ok(Some(decision)) => {
                    world.finishes += 1;
                    world.runs.insert(run, decision.run);
                    Ok(())
                }
                Ok(None) => Ok(()),
                Err(FinishRefused::Stale(_)) => Err(ControlError::StaleFence),
                Err(error) => Err(ControlError::Refused(error.to_string())),
            }
        })
        .await
    }
}
