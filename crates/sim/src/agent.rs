//! An agent: its process, registration, polls and renewals around the product's holder of leases.
//!
//! As the product's keeper does it: one fence is one attempt, what the holder says is passed on before anything else, and a
//! process that was superseded ends and is started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use holm_api::agent::{
    ClaimedRun, DirectiveKind, HeldLease, Poll, Polled, Register, Registered, Renew, RenewLease, Renewed,
};
use holm_domain::{
    AgentId, BootMicros, ErrorCode, InstanceId,
    host::{Capacity, RuntimeInfo},
    lease::holder::{Action, Held, Holder, HolderConfig, Input, StopReason},
    run::Cancel,
};
use holm_shim::deadline;

use crate::{
    Mutant,
    attempt::Attempt,
    disk::{Disk, Record},
    network::{About, Answer, Call, Process, Request},
    plan::PART_WAIT,
    time::{At, BootClock},
    world::{Event, World},
};

/// The pause between a poll and the one that follows it.
const ASK_GAP: Duration = Duration::from_millis(10);
/// How long a lease is held until its agent asks about it.
const LISTEN_AFTER: Duration = Duration::from_millis(25);
/// Memory that never runs out, in bytes.
const PLENTY: u64 = 1 << 40;

/// One process of an agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) life: u32,
    pub(crate) instance: InstanceId,
    pub(crate) holder: Holder,
    pub(crate) attempts: BTreeMap<Held, Attempt>,
    pub(crate) calls: BTreeMap<u64, Call>,
    over: BTreeSet<Held>,
    is_registered: bool,
    /// Whether a poll that offers what is free waits for its answer.
    offers: bool,
    /// The leases of which the poll asks that waits for word.
    listens: BTreeSet<Held>,
    wakes_at: Option<BootMicros>,
}

/// A host, and the process of its agent while there is one.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: AgentId,
    pub(crate) clock: BootClock,
    pub(crate) boot: u32,
    pub(crate) lives: u32,
    /// Until when the agent stands still.
    pub(crate) paused_until: At,
    pub(crate) disk: Disk,
    pub(crate) agent: Option<Agent>,
}

impl Host {
    fn process(&self, host: usize) -> Option<Process> {
        self.agent.as_ref().map(|agent| Process { host, life: agent.life })
    }
}

impl World {
    /// Starts the agent of a host, if none runs.
    pub(crate) fn start_agent(&mut self, host: usize) {
        if self.hosts[host].agent.is_some() {
            return;
        }
        let instance = InstanceId::from_uuid(self.chance.uuid());
        let on = &mut self.hosts[host];
        on.lives += 1;
        on.paused_until = At::default();
        on.agent = Some(Agent {
            life: on.lives,
            instance,
            holder: Holder::new(HolderConfig::default()),
            attempts: BTreeMap::new(),
            calls: BTreeMap::new(),
            over: BTreeSet::new(),
            is_registered: false,
            offers: false,
            listens: BTreeSet::new(),
            wakes_at: None,
        });
        let after = on.disk.instance.replace(instance);
        let life = on.lives;
        self.note(format_args!("h{host} agent starts, life {life}"));
        self.register(host, after);
    }

    fn register(&mut self, host: usize, after: Option<InstanceId>) {
        let Some(agent) = &self.hosts[host].agent else { return };
        let body = Register {
            agent: self.hosts[host].id,
            instance: agent.instance,
            after,
            name: format!("host {host}"),
            version: "0".to_owned(),
            capacity: self.capacity(0),
            runtimes: vec![RuntimeInfo {
                name: "process".to_owned(),
                capabilities: vec!["root.host".to_owned()],
                unenforced: Vec::new(),
            }],
            labels: BTreeMap::new(),
        };
        self.send(host, Request::Register(body), About::Register(after));
    }

    fn capacity(&self, taken: usize) -> Capacity {
        let runs = self.plan.places.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        Capacity { runs, cpus_milli: PLENTY, memory_bytes: PLENTY }
    }

    /// How many runs the agent of a host could begin, once it is registered.
    pub(crate) fn room(&self, host: usize) -> u32 {
        let on = &self.hosts[host];
        let is_registered = on.agent.as_ref().is_some_and(|agent| agent.is_registered);
        if is_registered { self.capacity(on.disk.journal.len()).runs } else { 0 }
    }

    /// Offers what is free, unless that is nothing, or it is offered.
    pub(crate) fn claim(&mut self, Process { host, life }: Process) {
        let taken = self.hosts[host].disk.journal.len();
        let (room, free) = (self.room(host), self.capacity(taken));
        let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| agent.life == life) else { return };
        if agent.offers || room == 0 {
            return;
        }
        agent.offers = true;
        let wait = if taken == 0 { self.plan.poll_wait } else { self.plan.poll_wait.min(PART_WAIT) };
        self.ask(host, wait, free, About::Claim);
    }

    /// Asks for word of what is held, unless it is asked for all of that.
    pub(crate) fn listen(&mut self, Process { host, life }: Process) {
        let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| agent.life == life) else { return };
        let held: BTreeSet<Held> = agent.attempts.keys().copied().collect();
        if !agent.is_registered || held.is_subset(&agent.listens) {
            return;
        }
        // The request before is given up.
        agent.calls.retain(|_, call| !matches!(call.about, About::Listen));
        agent.listens = held;
        self.ask(host, self.plan.poll_wait, Capacity::default(), About::Listen);
    }

    fn ask(&mut self, host: usize, wait: Duration, free: Capacity, about: About) {
        let Some(agent) = &self.hosts[host].agent else { return };
        let held = agent.attempts.iter().map(|(held, attempt)| HeldLease {
            run: held.run,
            fence: held.fence,
            cancel: attempt.cancel,
        });
        let poll = Poll {
            agent: self.hosts[host].id,
            instance: agent.instance,
            wait_ms: crate::time::micros(wait) / 1_000,
            claims_max: free.runs,
            free,
            held: held.collect(),
        };
        self.send(host, Request::Poll(poll), about);
    }

    /// What an agent makes of an answer, or of none.
    pub(crate) fn hear(&mut self, host: usize, call: Call, answer: Option<Answer>) {
        if let Some(Answer::Refused(problem)) = &answer
            && problem.code == ErrorCode::AgentSuperseded
        {
            return self.superseded(host);
        }
        // As if the answer had been asked for when it came.
        let is_mutant = self.setting.mutant == Some(Mutant::DeadlineFromAnswer);
        let asked_at = if is_mutant { self.boot_now(host) } else { call.asked_at };
        match (call.about, answer) {
            (About::Register(_), Some(Answer::Registered(times))) => self.registered(host, times),
            (About::Register(after), _) => self.register(host, after),
            (about @ (About::Claim | About::Listen), Some(Answer::Polled(polled))) => {
                self.polled(host, asked_at, polled);
                self.ask_again(host, about, ASK_GAP);
            }
            (about @ (About::Claim | About::Listen), _) => {
                let pause = self.chance.span(Duration::ZERO, self.plan.lease.ttl / 4);
                self.ask_again(host, about, pause);
            }
            (About::Renew, Some(Answer::Renewed(renewed))) => self.renewed(host, asked_at, renewed),
            (About::Renew, _) => {}
            (about, answer) => self.heard_of_attempt(host, about, answer),
        }
    }

    fn superseded(&mut self, host: usize) {
        self.note(format_args!("h{host} agent is superseded"));
        self.hosts[host].agent = None;
        let pause = self.plan.lease.ttl / 10;
        self.later(pause, Event::StartAgent(host));
    }

    fn registered(&mut self, host: usize, times: Registered) {
        let Some(agent) = &mut self.hosts[host].agent else { return };
        let renew_every = Duration::from_millis(times.renew_every_ms);
        agent.holder = Holder::new(HolderConfig { renew_every, retry_every: renew_every / 4 });
        agent.is_registered = true;
        self.survey(host);
        self.ask_again(host, About::Claim, Duration::ZERO);
        self.ask_again(host, About::Listen, Duration::ZERO);
    }

    /// An agent asks again after a pause: for work or, where it did that before, for word.
    fn ask_again(&mut self, host: usize, about: About, pause: Duration) {
        let Some(agent) = &mut self.hosts[host].agent else { return };
        let process = Process { host, life: agent.life };
        if let About::Listen = about {
            agent.listens.clear();
            return self.later(pause, Event::Listen(process));
        }
        agent.offers = false;
        self.later(pause, Event::Claim(process));
    }

    fn polled(&mut self, host: usize, asked_at: BootMicros, polled: Polled) {
        for claimed in polled.claimed {
            self.claimed(host, claimed, asked_at);
        }
        for directive in polled.directives {
            let held = Held { run: directive.run, fence: directive.fence };
            let input = match directive.what {
                DirectiveKind::Terminate => Input::CancelRequested { held, how: Cancel::Terminate },
                DirectiveKind::Kill => Input::CancelRequested { held, how: Cancel::Kill },
                DirectiveKind::Stale => Input::Refused { held },
            };
            self.hold(host, input);
        }
    }

    fn claimed(&mut self, host: usize, claimed: ClaimedRun, asked_at: BootMicros) {
        let held = Held { run: claimed.run, fence: claimed.fence };
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if agent.attempts.contains_key(&held) || agent.over.contains(&held) {
            return;
        }
        let ttl = Duration::from_millis(claimed.ttl_ms);
        let now = self.boot_now(host);
        let Some(agent) = &mut self.hosts[host].agent else { return };
        let actions = agent.holder.step(Input::Claimed { held, ttl, asked_at }, now);
        for action in actions {
            match action {
                Action::Start { held: started, deadline } if started == held => {
                    self.begin(host, held, claimed.next_log_seq, deadline);
                }
                other => self.obey(host, other),
            }
        }
        self.set_wake(host);
    }

    /// Journals an attempt and prepares its sandbox.
    pub(crate) fn begin(&mut self, host: usize, held: Held, first_seq: u64, deadline: BootMicros) {
        let tells_end = self.chance.is(400);
        let most = if self.chance.is(100) { self.plan.lease.ttl } else { self.plan.lease.ttl / 50 };
        let preparing = self.chance.span(Duration::ZERO, most);
        let on = &mut self.hosts[host];
        on.disk.journal.insert(held, Record { boot: on.boot, first_seq, deadline });
        let Some(agent) = &mut on.agent else { return };
        agent.attempts.insert(held, Attempt::claimed(first_seq, deadline, tells_end));
        let process = Process { host, life: agent.life };
        self.later(preparing, Event::Prepared(process, held));
        self.later(LISTEN_AFTER, Event::Listen(process));
    }

    fn renewed(&mut self, host: usize, asked_at: BootMicros, renewed: Renewed) {
        for lease in renewed.leases {
            let held = Held { run: lease.run, fence: lease.fence };
            match lease.ttl_ms {
                Some(ttl_ms) => {
                    self.hold(host, Input::Renewed { held, ttl: Duration::from_millis(ttl_ms), asked_at });
                    if let Some(how) = lease.cancel {
                        self.hold(host, Input::CancelRequested { held, how });
                    }
                }
                None => self.hold(host, Input::Refused { held }),
            }
        }
    }

    /// Feeds the holder and obeys it.
    pub(crate) fn hold(&mut self, host: usize, input: Input) {
        let now = self.boot_now(host);
        let Some(agent) = &mut self.hosts[host].agent else { return };
        for action in agent.holder.step(input, now) {
            self.obey(host, action);
        }
        self.set_wake(host);
    }

    fn obey(&mut self, host: usize, action: Action) {
        match action {
            Action::Start { held, .. } => {
                let name = self.name(held);
                self.violated(format!("the holder starts {name}, which nobody was granted"));
            }
            Action::Extend { held, deadline } => {
                if let Some(attempt) = self.attempt(host, held) {
                    attempt.deadline = attempt.deadline.max(deadline);
                }
                self.tell_shim(host, held, deadline::Input::Extend { fence: held.fence, deadline });
            }
            Action::Renew { held } => self.renew(host, &held),
            Action::Stop { held, reason: StopReason::Cancelled(how) } => {
                if let Some(attempt) = self.attempt(host, held) {
                    attempt.cancel = attempt.cancel.max(Some(how));
                }
                self.tell_shim(host, held, deadline::Input::Cancel(how));
            }
            // The sandbox is dead and only the report is left: it is taken or refused by its fence.
            Action::Stop { held, reason: StopReason::Expired } if self.has_ended(host, held) => {}
            Action::Stop { held, .. } => {
                self.tell_shim(host, held, deadline::Input::Stop);
                self.let_go(host, held);
            }
        }
    }

    fn renew(&mut self, host: usize, held: &[Held]) {
        let Some(agent) = &self.hosts[host].agent else { return };
        let leases = held.iter().map(|held| RenewLease { run: held.run, fence: held.fence, usage: None }).collect();
        let body = Renew { agent: self.hosts[host].id, instance: agent.instance, leases };
        self.send(host, Request::Renew(body), About::Renew);
    }

    fn set_wake(&mut self, host: usize) {
        let on = &mut self.hosts[host];
        let Some(agent) = &mut on.agent else { return };
        let next = agent.holder.next_tick();
        if next == agent.wakes_at {
            return;
        }
        agent.wakes_at = next;
        let process = Process { host, life: agent.life };
        if let Some(next) = next {
            let at = on.clock.when(next).max(self.now);
            self.agenda.add(at, Event::Wake(process, next));
        }
    }

    /// Time passed for an agent.
    pub(crate) fn wake(&mut self, Process { host, life }: Process, due: BootMicros) {
        let agent = self.hosts[host].agent.as_mut();
        let Some(agent) = agent.filter(|agent| agent.life == life && agent.wakes_at == Some(due)) else { return };
        agent.wakes_at = None;
        self.hold(host, Input::Tick);
    }

    /// An attempt is over: nothing of it is left.
    pub(crate) fn let_go(&mut self, host: usize, held: Held) {
        let Some(agent) = &mut self.hosts[host].agent else { return };
        if agent.attempts.remove(&held).is_none() {
            return;
        }
        agent.over.insert(held);
        self.kill_shim(host, held);
        self.hosts[host].disk.remove(held);
        self.hold(host, Input::Released { held });
        if let Some(process) = self.hosts[host].process(host) {
            self.later(Duration::from_millis(1), Event::Claim(process));
        }
    }
}
