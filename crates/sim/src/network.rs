//! Between agents and servers: what is lost, doubled, late and out of order, in both directions.
//!
//! A message that is late overtakes and is overtaken. A direction that is cut lets nothing through: what is under way is
//! lost, or held until it is not cut any more. An answer comes to the process that asked or to nobody, and to that one as
//! long as it waits.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use holm_api::{
    agent::{
        AppendEvents, Fenced, FinishRun, Poll, Polled, Register, Registered, Renew, RenewLease, Renewed, SandboxEnded,
        StartRun,
    },
    problem::Problem,
};
use holm_domain::{
    BootMicros, InstanceId, RunId,
    lease::{Lease, holder::Held},
    run::SandboxInfo,
};

use crate::{
    Mutant,
    servers::Job,
    time::At,
    work::{Asked, Purpose},
    world::{Event, World},
};

/// How long a message takes that is not late.
const USUAL: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

/// What an agent asks of a server.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Register(Register),
    Poll(Poll),
    Renew(Renew),
    Start(RunId, StartRun),
    Append(RunId, Fenced, Bytes),
    Events(RunId, AppendEvents),
    Ended(RunId, SandboxEnded),
    Finish(RunId, FinishRun),
}

/// What a server answers.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Registered(Registered),
    Polled(Polled),
    Renewed(Renewed),
    /// The sequence that the next entry must have.
    Appended(u64),
    Done,
    Refused(Box<Problem>),
}

/// What an agent asked, as it remembers it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum About {
    /// With the process before this one.
    Register(Option<InstanceId>),
    Claim,
    Listen,
    Renew,
    Start(Held),
    /// Output up to, and without, this sequence.
    Append(Held, u64),
    /// So many events from the first on.
    Events(Held, u64),
    Ended(Held),
    Finish(Held),
}

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) asked_at: BootMicros,
    pub(crate) about: About,
}

/// One process of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) host: usize,
    pub(crate) life: u32,
}

/// A direction between a host and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    pub(crate) host: usize,
    pub(crate) server: usize,
    pub(crate) is_there: bool,
}

/// The directions that are cut, each until when.
pub(crate) type Cuts = BTreeMap<Way, At>;

impl Request {
    /// The leases under which a request may write.
    pub(crate) fn leases(&self) -> Vec<Held> {
        let (run, fence) = match self {
            Self::Register(_) | Self::Poll(_) => return Vec::new(),
            Self::Renew(body) => {
                return body.leases.iter().map(|lease| Held { run: lease.run, fence: lease.fence }).collect();
            }
            Self::Start(run, body) => (run, body.fence),
            Self::Append(run, by, _) => (run, by.fence),
            Self::Events(run, body) => (run, body.fence),
            Self::Ended(run, body) => (run, body.fence),
            Self::Finish(run, body) => (run, body.fence),
        };
        vec![Held { run: *run, fence }]
    }

    /// The same for `of` alone, under the lease that its run has.
    fn under(self, of: RunId, lease: Lease) -> Self {
        let Lease { agent, instance, fence, .. } = lease;
        match self {
            Self::Renew(body) => {
                let leases = body.leases.into_iter().filter(|lease| lease.run == of);
                let leases = leases.map(|lease| RenewLease { fence, ..lease }).collect();
                Self::Renew(Renew { agent, instance, leases })
            }
            Self::Start(run, body) => {
                let sandbox = SandboxInfo { agent, ..body.sandbox };
                Self::Start(run, StartRun { instance, fence, sandbox })
            }
            Self::Append(run, _, bytes) => Self::Append(run, Fenced { agent, instance, fence }, bytes),
            Self::Events(run, body) => Self::Events(run, AppendEvents { agent, instance, fence, ..body }),
            Self::Ended(run, body) => Self::Ended(run, SandboxEnded { agent, instance, fence, ..body }),
            Self::Finish(run, body) => Self::Finish(run, FinishRun { agent, instance, fence, ..body }),
            Self::Register(_) | Self::Poll(_) => self,
        }
    }
}

impl World {
    /// Sends a request of the agent on `host` to some server; the answer, or that none came, is heard later.
    pub(crate) fn send(&mut self, host: usize, request: Request, about: About) -> u64 {
        let server = self.chance.index(self.servers.count());
        let asked_at = self.boot_now(host);
        self.calls += 1;
        let call = self.calls;
        let Some(agent) = &mut self.hosts[host].agent else { return call };
        agent.calls.insert(call, Call { asked_at, about });
        let process = Process { host, life: agent.life };
        let patience = match about {
            About::Renew => self.plan.lease.ttl * 2,
            About::Claim | About::Listen => self.plan.poll_wait + self.plan.lease.ttl / 4,
            _ => self.plan.lease.ttl / 4,
        };
        self.later(patience, Event::Unanswered { process, call });
        for delay in self.delays() {
            self.later(delay, Event::Arrive { server, process, call, request: request.clone() });
        }
        call
    }

    /// How long each copy of a message takes; none where it is lost.
    fn delays(&mut self) -> Vec<Duration> {
        let Some(noise) = self.noise() else { return vec![self.chance.span(USUAL.0, USUAL.1)] };
        if self.chance.is(noise.lost) {
            self.counts.lost += 1;
            return Vec::new();
        }
        let is_doubled = self.chance.is(noise.doubled);
        self.counts.doubled += u64::from(is_doubled);
        let copies = 1 + usize::from(is_doubled);
        let mut delays = Vec::with_capacity(copies);
        for _ in 0..copies {
            let is_late = self.chance.is(noise.delayed);
            self.counts.delayed += u64::from(is_late);
            let most = if is_late { self.plan.delay_max } else { USUAL.1 };
            delays.push(self.chance.span(USUAL.0, most));
        }
        delays
    }

    /// Whether a way is cut for what arrives now; what is held arrives after that.
    fn is_cut(&mut self, way: Way, message: impl FnOnce() -> Event) -> bool {
        let Some(until) = self.cuts.get(&way).copied().filter(|until| self.now < *until) else { return false };
        self.counts.cut_off += 1;
        if self.chance.is(self.plan.noise.held) {
            let at = until.plus(self.chance.span(USUAL.0, USUAL.1));
            self.agenda.add(at, message());
        }
        true
    }

    /// A request arrives at a server, which begins to answer it.
    pub(crate) fn arrive(&mut self, server: usize, process: Process, call: u64, request: Request) {
        let host = process.host;
        let way = Way { host, server, is_there: true };
        if self.is_cut(way, || Event::Arrive { server, process, call, request: request.clone() }) {
            return;
        }
        let job = Job::Answer(self.forwarded(request.clone()));
        let marks = self.checks.marks();
        self.work(server, job, Purpose::Answer(Box::new(Asked { process, call, request, marks })));
    }

    /// A server has an answer, and sends it.
    pub(crate) fn answer(&mut self, server: usize, asked: Asked, answer: Answer) {
        let Asked { process, call, request, marks } = asked;
        let host = process.host;
        self.note(format_args!("s{server} h{host} {} -> {}", self.tell(&request), self.tell_answer(&answer)));
        self.check_accepted(&request, &answer, &marks);
        if let (Request::Register(body), Answer::Registered(_)) = (&request, &answer)
            && let Err(error) = self.servers.share(body.agent)
        {
            return self.violated(format!("h{host} cannot be put into the pool: {error}"));
        }
        for delay in self.delays() {
            self.later(delay, Event::Answer { server, process, call, answer: answer.clone() });
        }
    }

    /// What a server gets to see of a request.
    fn forwarded(&self, request: Request) -> Request {
        let is_forged = match (self.setting.mutant, &request) {
            (Some(Mutant::NoFenceCheck), _)
            | (Some(Mutant::NoFenceCheckOfRenewals), Request::Renew(_))
            | (Some(Mutant::NoFenceCheckOfStarts), Request::Start(..))
            | (Some(Mutant::NoFenceCheckOfAppends), Request::Append(..))
            | (Some(Mutant::NoFenceCheckOfEvents), Request::Events(..))
            | (Some(Mutant::NoFenceCheckOfSandboxEnds), Request::Ended(..))
            | (Some(Mutant::NoFenceCheckOfFinishes), Request::Finish(..)) => true,
            (_, _) => false,
        };
        let newer = request.leases().into_iter().filter(|_| is_forged).find_map(|held| {
            let lease = self.lease_of(held.run).filter(|lease| lease.fence != held.fence);
            lease.map(|lease| (held.run, lease))
        });
        match newer {
            Some((run, lease)) => request.under(run, lease),
            None => request,
        }
    }

    /// The lease under which a run is stored.
    fn lease_of(&self, run: RunId) -> Option<Lease> {
        let run = self.servers.read(self.servers.run_get(run));
        run.ok().flatten().and_then(|run| run.lease)
    }

    /// An answer arrives at the process that asked.
    pub(crate) fn answered(&mut self, server: usize, process: Process, call: u64, answer: Answer) {
        let Process { host, life } = process;
        let way = Way { host, server, is_there: false };
        if self.is_cut(way, || Event::Answer { server, process, call, answer: answer.clone() }) {
            return;
        }
        let agent = self.hosts[host].agent.as_mut().filter(|agent| agent.life == life);
        let Some(call) = agent.and_then(|agent| agent.calls.remove(&call)) else { return };
        self.hear(host, call, Some(answer));
    }

    /// No answer came in time.
    pub(crate) fn unanswered(&mut self, Process { host, life }: Process, call: u64) {
        let agent = self.hosts[host].agent.as_mut().filter(|agent| agent.life == life);
        let Some(call) = agent.and_then(|agent| agent.calls.remove(&call)) else { return };
        self.hear(host, call, None);
    }

    fn tell(&self, request: &Request) -> String {
        let lease = |held: Held| self.name(held);
        match request {
            Request::Register(_) => "register".to_owned(),
            Request::Poll(poll) => {
                let held = poll.held.iter().map(|held| lease(Held { run: held.run, fence: held.fence }));
                format!("poll for {} with [{}]", poll.claims_max, held.collect::<Vec<_>>().join(" "))
            }
            Request::Renew(body) => {
                let held = body.leases.iter().map(|held| lease(Held { run: held.run, fence: held.fence }));
                format!("renew [{}]", held.collect::<Vec<_>>().join(" "))
            }
            Request::Start(run, body) => format!("start {}", lease(Held { run: *run, fence: body.fence })),
            Request::Append(run, by, bytes) => {
                format!("append {} bytes {}", lease(Held { run: *run, fence: by.fence }), bytes.len())
            }
            Request::Events(run, body) => {
                let lease = lease(Held { run: *run, fence: body.fence });
                format!("events {lease} {} from {}", body.events.len(), body.first_seq)
            }
            Request::Ended(run, body) => {
                format!("ended {} {:?}", lease(Held { run: *run, fence: body.fence }), body.outcome.kind)
            }
            Request::Finish(run, body) => {
                let lease = lease(Held { run: *run, fence: body.fence });
                format!("finish {lease} {:?} at {}", body.outcome.kind, body.next_log_seq)
            }
        }
    }

    fn tell_answer(&self, answer: &Answer) -> String {
        match answer {
            Answer::Registered(_) | Answer::Done => "done".to_owned(),
            Answer::Polled(polled) => {
                let claimed = polled.claimed.iter().map(|claimed| {
                    let held = Held { run: claimed.run, fence: claimed.fence };
                    format!("{} for {} from {}", self.name(held), claimed.ttl_ms, claimed.next_log_seq)
                });
                let directives = polled.directives.iter().map(|directive| {
                    let held = Held { run: directive.run, fence: directive.fence };
                    format!("{} {:?}", self.name(held), directive.what)
                });
                format!("[{}]", claimed.chain(directives).collect::<Vec<_>>().join(", "))
            }
            Answer::Renewed(renewed) => {
                let leases = renewed.leases.iter().map(|lease| {
                    let held = Held { run: lease.run, fence: lease.fence };
                    format!("{} {:?} {:?}", self.name(held), lease.ttl_ms, lease.cancel)
                });
                format!("[{}]", leases.collect::<Vec<_>>().join(", "))
            }
            Answer::Appended(next) => format!("next {next}"),
            Answer::Refused(problem) => match &problem.value {
                Some(value) if problem.code == holm_domain::ErrorCode::LogGap => format!("log_gap {value}"),
                _ => problem.code.as_str().to_owned(),
            },
        }
    }
}
