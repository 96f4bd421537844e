//! One attempt as its agent sees it: what is told to the control plane next, and what its answers mean.
//!
//! The order is the product's: start, output, events, where it takes long word that the sandbox has ended, and the end of the run
//! last. One request an attempt is under way at a time, and is repeated until it is answered.

use std::time::Duration;

use holm_api::agent::{AppendEvents, Fenced, FinishRun, LOG_GAP_FIELD, SandboxEnded, StartRun};
use holm_domain::{
    BootMicros, ErrorCode,
    lease::holder::{Held, Input},
    run::{Cancel, Outcome, Reason, SandboxInfo},
};

use crate::{
    Mutant,
    network::{About, Answer, Process, Request},
    shim::{Spool, event},
    world::{Event, World},
};

/// The most lines, and the most events, of a request.
const AT_ONCE: u64 = 4;
/// How many of a thousand sandboxes a host cannot make.
const HOST_FAILS: u64 = 100;
/// In how many of a thousand such cases its agent dies over it.
const HOST_FAILS_WHOLLY: u64 = 500;

/// How far a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Preparing,
    Made,
    NotMade(Outcome),
}

/// What an agent knows of an attempt. All of it is lost with its process.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) deadline: BootMicros,
    pub(crate) cancel: Option<Cancel>,
    /// Until when an earlier process held the lease under which it is made again: not before that it is still held was said.
    found: Option<BootMicros>,
    phase: Phase,
    /// The sequence of the next line to be sent.
    cursor: u64,
    /// Whether the server has said what it has.
    is_aligned: bool,
    is_start_told: bool,
    events_told: u64,
    /// Whether the end of the sandbox is told before the rest of the output.
    tells_end: bool,
    /// The end of the run where it is not what the shim says: the output is incomplete.
    lacking: Option<Outcome>,
    /// Where the store says that the log goes on, in answer to the end.
    goes_on_at: Option<u64>,
    waits: bool,
}

/// What can be seen of a sandbox.
struct Seen {
    started: bool,
    end: Option<Outcome>,
    spool: Option<Spool>,
    events: u64,
    has_word: bool,
}

impl Attempt {
    /// One that was granted a moment ago.
    pub(crate) fn claimed(first_seq: u64, deadline: BootMicros, tells_end: bool) -> Self {
        Self {
            deadline,
            cancel: None,
            found: None,
            phase: Phase::Preparing,
            cursor: first_seq,
            is_aligned: false,
            is_start_told: false,
            events_told: 0,
            tells_end,
            lacking: None,
            goes_on_at: None,
            waits: false,
        }
    }

    /// One whose shim was found.
    fn found(first_seq: u64, deadline: BootMicros, tells_end: bool) -> Self {
        Self { phase: Phase::Made, ..Self::claimed(first_seq, deadline, tells_end) }
    }
}

impl World {
    pub(crate) fn attempt(&mut self, host: usize, held: Held) -> Option<&mut Attempt> {
        self.hosts[host].agent.as_mut()?.attempts.get_mut(&held)
    }

    /// After a start: which attempts go on, and how.
    pub(crate) fn survey(&mut self, host: usize) {
        let now = self.boot_now(host);
        let boot = self.hosts[host].boot;
        let found: Vec<_> = self.hosts[host].disk.journal.iter().map(|(held, record)| (*held, *record)).collect();
        for (held, record) in found {
            let is_this_boot = record.boot == boot;
            let shim = self.hosts[host].disk.shims.get(&held).filter(|shim| shim.has_begun);
            let deadline = match shim {
                None if is_this_boot && now < record.deadline => {
                    self.kill_shim(host, held);
                    self.hosts[host].disk.remove(held);
                    self.begin(host, held, record.first_seq, record.deadline);
                    let is_heedless = self.setting.mutant == Some(Mutant::MadeAgainUnasked);
                    if let Some(attempt) = self.attempt(host, held).filter(|_| !is_heedless) {
                        attempt.found = Some(record.deadline);
                    }
                    record.deadline
                }
                Some(shim) if is_this_boot || shim.word.is_some() => {
                    let is_known = shim.is_alive || shim.word.is_some();
                    let deadline = if is_known { shim.deadline() } else { record.deadline };
                    let attempt = Attempt::found(record.first_seq, deadline, self.chance.is(400));
                    let Some(agent) = &mut self.hosts[host].agent else { return };
                    agent.attempts.insert(held, attempt);
                    deadline
                }
                _ => {
                    self.kill_shim(host, held);
                    self.hosts[host].disk.remove(held);
                    continue;
                }
            };
            let name = self.name(held);
            self.note(format_args!("h{host} takes up {name}"));
            self.counts.taken_up += 1;
            self.hold(host, Input::Found { held, deadline });
            self.nudge(host, held);
        }
    }

    /// A sandbox was prepared: its shim gets its orders, if the lease still allows it.
    pub(crate) fn prepared(&mut self, Process { host, life }: Process, held: Held) {
        let now = self.boot_now(host);
        let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| agent.life == life) else { return };
        let may_start = agent.holder.may_start(held, now);
        let Some(attempt) = agent.attempts.get_mut(&held).filter(|attempt| attempt.phase == Phase::Preparing) else {
            return;
        };
        if attempt.found.is_some_and(|found| attempt.deadline <= found) && may_start {
            return self.later(self.plan.lease.ttl / 50, Event::Prepared(Process { host, life }, held));
        }
        if attempt.cancel.is_some() {
            attempt.phase = Phase::NotMade(Outcome::cancelled("cancelled before the command was started"));
            return self.nudge(host, held);
        }
        if !may_start {
            return self.let_go(host, held);
        }
        if self.chance.is(HOST_FAILS) {
            attempt.phase = Phase::NotMade(Outcome::failed(Reason::HostFailed, "it cannot be made"));
            // What keeps a host from making a sandbox often ends its agent as well.
            if self.chance.is(HOST_FAILS_WHOLLY) {
                let soon = self.chance.span(Duration::ZERO, self.plan.lease.ttl / 200);
                self.later(soon, Event::AgentFails(Process { host, life }));
            }
            return self.nudge(host, held);
        }
        attempt.phase = Phase::Made;
        let (deadline, first_seq) = (attempt.deadline, attempt.cursor);
        self.brief(host, held, deadline, first_seq);
    }

    /// Has an agent look at an attempt soon.
    pub(crate) fn nudge(&mut self, host: usize, held: Held) {
        let soon = self.chance.span(Duration::ZERO, Duration::from_millis(2));
        self.look_after(host, held, soon);
    }

    fn look_after(&mut self, host: usize, held: Held, pause: Duration) {
        if let Some(agent) = &self.hosts[host].agent {
            let process = Process { host, life: agent.life };
            self.later(pause, Event::Look(process, held));
        }
    }

    fn seen(&self, host: usize, held: Held, attempt: &Attempt) -> Seen {
        let nothing = Seen { started: false, end: None, spool: None, events: 0, has_word: false };
        match &attempt.phase {
            Phase::Preparing => nothing,
            Phase::NotMade(outcome) => Seen { end: Some(outcome.clone()), ..nothing },
            Phase::Made => {
                let Some(shim) = self.hosts[host].disk.shims.get(&held) else { return nothing };
                let lost = || {
                    let reason = if shim.started { Reason::GuestLost } else { Reason::HostFailed };
                    Outcome::failed(reason, "the shim is gone")
                };
                let end = shim.word.clone().or_else(|| (!shim.is_alive).then(lost));
                let (started, events, has_word) = (shim.started, shim.events, shim.word.is_some());
                Seen { started, end, spool: Some(shim.spool), events, has_word }
            }
        }
    }

    /// Whether the sandbox of an attempt is known to be dead.
    pub(crate) fn has_ended(&self, host: usize, held: Held) -> bool {
        let attempt = self.hosts[host].agent.as_ref().and_then(|agent| agent.attempts.get(&held));
        attempt.is_some_and(|attempt| self.seen(host, held, attempt).end.is_some())
    }

    /// An agent looks at an attempt, and tells what is to be told next.
    pub(crate) fn look(&mut self, Process { host, life }: Process, held: Held) {
        let agent = self.hosts[host].agent.as_ref().filter(|agent| agent.life == life);
        let attempt = agent.and_then(|agent| agent.attempts.get(&held)).filter(|attempt| !attempt.waits).cloned();
        let Some(mut attempt) = attempt else { return };
        let seen = self.seen(host, held, &attempt);
        if seen.end.as_ref().is_some_and(|end| end.reason == Some(Reason::LeaseExpired)) {
            return self.let_go(host, held);
        }
        let next = self.next_request(host, held, &mut attempt, seen);
        attempt.waits = next.is_some();
        if let Some(known) = self.attempt(host, held) {
            *known = attempt;
        }
        if let Some((request, about)) = next {
            self.send(host, request, about);
        }
    }

    fn next_request(&self, host: usize, held: Held, attempt: &mut Attempt, seen: Seen) -> Option<(Request, About)> {
        let Held { run, fence } = held;
        let on = &self.hosts[host];
        let (agent, instance) = (on.id, on.agent.as_ref()?.instance);
        if seen.started && !attempt.is_start_told {
            let sandbox =
                SandboxInfo { agent, runtime: "process".to_owned(), image_digest: None, unenforced: Vec::new() };
            return Some((Request::Start(run, StartRun { instance, fence, sandbox }), About::Start(held)));
        }
        if let Some(outcome) = seen.end.clone().filter(|_| attempt.tells_end) {
            let body = SandboxEnded { agent, instance, fence, outcome };
            return Some((Request::Ended(run, body), About::Ended(held)));
        }
        if let Some(spool) = seen.spool.filter(|_| attempt.lacking.is_none()) {
            if !attempt.is_aligned {
                // What lies before was acknowledged to an earlier process.
                attempt.cursor = attempt.cursor.max(spool.kept_from);
            }
            if attempt.cursor < spool.kept_from {
                attempt.lacking = Some(Outcome::failed(Reason::SpoolFailed, "the store lacks what it acknowledged"));
            } else if let Some((bytes, to)) = spool.batch(fence, attempt.cursor, AT_ONCE) {
                let by = Fenced { agent, instance, fence };
                return Some((Request::Append(run, by, bytes), About::Append(held, to)));
            }
        }
        if attempt.events_told < seen.events {
            let (first, to) = (attempt.events_told, seen.events.min(attempt.events_told + AT_ONCE));
            let events = (first..to).map(|index| event(fence, index).into()).collect();
            let body = AppendEvents { agent, instance, fence, first_seq: first + 1, events };
            return Some((Request::Events(run, body), About::Events(held, to)));
        }
        let end = seen.end?;
        let told = seen.spool.filter(|_| seen.has_word && attempt.lacking.is_none()).map_or(0, |spool| spool.next);
        let next_log_seq = attempt.goes_on_at.unwrap_or(attempt.cursor.max(told));
        let outcome = attempt.lacking.clone().unwrap_or(end);
        let body = FinishRun { agent, instance, fence, outcome, usage: None, result: None, next_log_seq };
        Some((Request::Finish(run, body), About::Finish(held)))
    }

    /// What an answer, or none, means for an attempt.
    pub(crate) fn heard_of_attempt(&mut self, host: usize, about: About, answer: Option<Answer>) {
        let (About::Start(held)
        | About::Append(held, _)
        | About::Events(held, _)
        | About::Ended(held)
        | About::Finish(held)) = about
        else {
            return;
        };
        let is_lenient = self.setting.mutant == Some(Mutant::LostAcknowledgement);
        let Some(attempt) = self.attempt(host, held) else { return };
        attempt.waits = false;
        match (about, answer) {
            (About::Append(_, to), None) if is_lenient => self.acknowledged(host, held, to),
            (_, None) => {}
            (About::Start(_), Some(Answer::Done)) => attempt.is_start_told = true,
            (About::Events(_, to), Some(Answer::Done)) => attempt.events_told = to,
            (About::Ended(_), Some(Answer::Done)) => attempt.tells_end = false,
            (About::Append(..), Some(Answer::Appended(next))) => self.acknowledged(host, held, next),
            (About::Finish(_), Some(Answer::Done)) => return self.let_go(host, held),
            (_, Some(Answer::Refused(problem))) => match problem.code {
                ErrorCode::StaleFence => return self.let_go(host, held),
                ErrorCode::LogGap if problem.field.as_deref() == Some(LOG_GAP_FIELD) => {
                    let stored = problem.value.and_then(|value| value.parse().ok()).unwrap_or_default();
                    self.gap(host, held, about, stored);
                }
                code => self.violated(format!("an operation was refused with {code}: {problem}")),
            },
            (about, answer) => self.violated(format!("{about:?} was answered with {answer:?}")),
        }
        let pause = self.chance.span(Duration::ZERO, self.plan.lease.ttl / 100);
        self.look_after(host, held, pause);
    }

    /// Everything before `next` is stored, says the server.
    fn acknowledged(&mut self, host: usize, held: Held, next: u64) {
        let Some(attempt) = self.attempt(host, held) else { return };
        attempt.is_aligned = true;
        attempt.cursor = next;
        let Some(shim) = self.hosts[host].disk.shims.get_mut(&held) else { return };
        shim.spool.kept_from = shim.spool.kept_from.max(next.min(shim.spool.next));
        let gone_before = shim.spool.kept_from;
        if gone_before > self.checks.head(held.run) {
            let name = self.name(held);
            self.violated(format!("lines of {name} before {gone_before} are neither in the spool nor in the store"));
        }
    }

    /// The log goes on at `stored`, says the server.
    fn gap(&mut self, host: usize, held: Held, about: About, stored: u64) {
        let Some(attempt) = self.attempt(host, held) else { return };
        if let About::Append(..) = about {
            attempt.is_aligned = true;
            attempt.cursor = stored;
            return;
        }
        if attempt.goes_on_at.is_some() {
            return self.let_go(host, held);
        }
        if stored <= attempt.cursor {
            let lacking = Outcome::failed(Reason::SpoolFailed, "the store lacks output that it had acknowledged");
            attempt.lacking = Some(lacking);
        }
        attempt.goes_on_at = Some(stored);
    }
}
