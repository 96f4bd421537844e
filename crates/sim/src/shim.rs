//! The process beside each sandbox: the product's verdict on when it ends, a spool of lines, and events.
//!
//! A sandbox dies with its shim. A shim is scheduled late by up to the plan's share of the margin.

use bytes::Bytes;
use holm_domain::{
    BootMicros, UnixMicros,
    lease::holder::Held,
    log::{BatchBuilder, Stream},
    run::{EventKind, ExitStatus, Outcome},
};
use holm_shim::{
    deadline::{Action, Input, Terms, Verdict},
    outcome::{Circumstances, Ending, classify},
};

use crate::{
    Mutant,
    check::Wrote,
    world::{Event, World},
};

/// The lines of one sandbox, from the first that was not acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spool {
    /// The sequence of its first line, there or not.
    first: u64,
    /// The sequence of the first line that is there.
    pub(crate) kept_from: u64,
    /// The sequence of the next line.
    pub(crate) next: u64,
}

/// A deadline that no simulation reaches: twelve days.
const NEVER: BootMicros = BootMicros(1 << 40);

/// What a line says: its lease and its place in the output, from 0.
fn line(fence: u64, index: u64) -> String {
    format!("{fence} {index}\n")
}

/// The lease and the place that a line says.
pub(crate) fn place_of_line(text: &str) -> Option<(u64, u64)> {
    let (fence, index) = text.strip_suffix('\n')?.split_once(' ')?;
    Some((fence.parse().ok()?, index.parse().ok()?))
}

/// An event that says its lease and its place among the events of that, from 0.
pub(crate) fn event(fence: u64, index: u64) -> EventKind {
    EventKind::EgressRefused {
        host: fence.to_string(),
        port: 0,
        protocol: "dns".to_owned(),
        count: index,
        reason: None,
    }
}

/// The lease and the place that an event of a shim says; nothing for any other.
pub(crate) fn place_of_event(event: &EventKind) -> Option<(u64, u64)> {
    match event {
        EventKind::EgressRefused { host, count, .. } => Some((host.parse().ok()?, *count)),
        _ => None,
    }
}

impl Spool {
    /// A batch of up to `most` lines from `from` on, and the sequence after them.
    pub(crate) fn batch(&self, fence: u64, from: u64, most: u64) -> Option<(Bytes, u64)> {
        let to = self.next.min(from + most);
        let mut builder = BatchBuilder::new(from);
        for seq in from..to {
            builder.push(UnixMicros(0), Stream::Stdout, false, line(fence, seq - self.first).as_bytes());
        }
        let mut bytes = Vec::new();
        let written = builder.finish(|batch| {
            bytes.extend_from_slice(batch);
            Ok::<_, std::convert::Infallible>(())
        });
        (written.is_ok() && to > from).then(|| (bytes.into(), to))
    }
}

/// A shim that got its orders, and what it left.
#[derive(Debug)]
pub(crate) struct Shim {
    /// Which of all shims.
    pub(crate) number: u64,
    verdict: Verdict,
    /// Whether its process lives.
    pub(crate) is_alive: bool,
    /// Whether it has begun with its orders.
    pub(crate) has_begun: bool,
    /// Whether its sandbox lives.
    is_live: bool,
    /// Whether the command was started.
    pub(crate) started: bool,
    pub(crate) spool: Spool,
    /// How many events it has written.
    pub(crate) events: u64,
    lines_left: u64,
    /// How it ended; on disk.
    pub(crate) word: Option<Outcome>,
    alarm: u64,
}

/// Where a shim is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) host: usize,
    pub(crate) held: Held,
    pub(crate) number: u64,
}

impl Shim {
    /// Until when it knows its lease to last.
    pub(crate) fn deadline(&self) -> BootMicros {
        self.verdict.deadline()
    }
}

impl World {
    /// Gives a new shim its orders.
    pub(crate) fn brief(&mut self, host: usize, held: Held, deadline: BootMicros, first_seq: u64) {
        let is_limited = self.setting.mutant != Some(Mutant::NoShimDeadline);
        let terms = Terms {
            fence: held.fence,
            deadline: if is_limited { deadline } else { NEVER },
            time_limit: self.plan.time_limit,
            terminate_grace: self.plan.lease.ttl / 4,
        };
        self.shims += 1;
        let shim = Shim {
            number: self.shims,
            verdict: Verdict::new(terms),
            is_alive: true,
            has_begun: false,
            is_live: false,
            started: false,
            spool: Spool { first: first_seq, kept_from: first_seq, next: first_seq },
            events: 0,
            lines_left: self.chance.between(0, self.plan.lines_max),
            word: None,
            alarm: 0,
        };
        let place = Place { host, held, number: shim.number };
        self.hosts[host].disk.shims.insert(held, shim);
        let soon = self.chance.span(std::time::Duration::ZERO, self.plan.lease.ttl / 20);
        self.later(soon, Event::Launch(place));
    }

    fn lateness(&mut self) -> std::time::Duration {
        self.chance.span(std::time::Duration::ZERO, self.plan.late_max)
    }

    /// The shim at a place, if its process lives.
    fn shim_at(&mut self, Place { host, held, number }: Place) -> Option<&mut Shim> {
        let shim = self.hosts[host].disk.shims.get_mut(&held);
        shim.filter(|shim| shim.number == number && shim.is_alive)
    }

    /// The shim begins: it launches its sandbox, unless its lease is over.
    pub(crate) fn launch(&mut self, place: Place) {
        let now = self.boot_now(place.host);
        let Some(shim) = self.shim_at(place) else { return };
        shim.has_begun = true;
        if shim.verdict.step(Input::Tick, now) == Some(Action::Kill) || shim.verdict.is_killed() {
            return self.sandbox_over(place, Ending::NotLaunched("the lease ended before the launch".to_owned()));
        }
        shim.is_live = true;
        shim.started = true;
        shim.verdict.step(Input::Started, now);
        let name = self.name(place.held);
        self.note(format_args!("h{} launch {name}", place.host));
        self.counts.launches += 1;
        let overlaps = self.checks.sandbox_lives(place.held);
        self.counts.overlaps += u64::from(overlaps);
        if overlaps && !self.setting.late_shims {
            self.violated(format!("two sandboxes of {name} live at once"));
        }
        self.set_alarm(place);
        self.next_line(place);
        self.nudge(place.host, place.held);
    }

    fn next_line(&mut self, place: Place) {
        let pause = self.chance.span(std::time::Duration::ZERO, self.plan.work_max);
        let Some(shim) = self.shim_at(place) else { return };
        let pause = pause / (u32::try_from(shim.lines_left).unwrap_or(u32::MAX).max(1));
        self.later(pause, Event::Line(place));
    }

    /// The command writes a line, and may do what makes an event, or it ends.
    pub(crate) fn write_line(&mut self, place: Place) {
        let now = self.boot_now(place.host);
        let tells_event = self.chance.is(400);
        let Some(shim) = self.shim_at(place).filter(|shim| shim.is_live) else { return };
        if shim.lines_left == 0 {
            shim.verdict.step(Input::Finished, now);
            shim.verdict.step(Input::Dismiss, now);
            return self.sandbox_over(place, Ending::Exited(ExitStatus::Code(0)));
        }
        shim.lines_left -= 1;
        shim.spool.next += 1;
        shim.events += u64::from(tells_event);
        let wrote = Wrote { lines: shim.spool.next - shim.spool.first, events: shim.events };
        self.checks.wrote(place.held, wrote);
        self.next_line(place);
        self.nudge(place.host, place.held);
    }

    /// Time passed for a shim.
    pub(crate) fn alarm(&mut self, place: Place, alarm: u64) {
        if self.shim_at(place).is_some_and(|shim| shim.alarm == alarm) {
            self.tell_shim(place.host, place.held, Input::Tick);
        }
    }

    fn set_alarm(&mut self, place: Place) {
        let late = self.lateness();
        let Some(shim) = self.shim_at(place) else { return };
        shim.alarm += 1;
        let alarm = shim.alarm;
        let Some(next) = shim.verdict.next_tick() else { return };
        let at = self.hosts[place.host].clock.when(next).max(self.now).plus(late);
        self.agenda.add(at, Event::Alarm(place, alarm));
    }

    /// Tells a shim what happened, and has it obey its verdict.
    pub(crate) fn tell_shim(&mut self, host: usize, held: Held, input: Input) {
        let now = self.boot_now(host);
        let grace = self.chance.span(std::time::Duration::ZERO, self.plan.lease.ttl / 2);
        let Some(shim) = self.hosts[host].disk.shims.get_mut(&held).filter(|shim| shim.is_alive) else { return };
        let place = Place { host, held, number: shim.number };
        match shim.verdict.step(input, now) {
            Some(Action::Kill) if shim.has_begun && !shim.verdict.has_ended() => {
                self.counts.kills += u64::from(input == Input::Tick);
                return self.sandbox_over(place, Ending::Lost("it was killed".to_owned()));
            }
            Some(Action::Terminate) => {
                // The command ends by itself within some time, or after its grace.
                shim.lines_left = 0;
                self.later(grace, Event::Line(place));
            }
            _ => {}
        }
        self.set_alarm(place);
    }

    /// Everything in the sandbox has died, and the shim says how.
    fn sandbox_over(&mut self, place: Place, ending: Ending) {
        let now = self.boot_now(place.host);
        let time_limit = self.plan.time_limit;
        let Some(shim) = self.shim_at(place) else { return };
        shim.verdict.step(Input::Ended, now);
        let circumstances = Circumstances { causes: shim.verdict.causes(), time_limit, ..Circumstances::default() };
        let outcome = classify(ending, circumstances);
        let reason = outcome.reason;
        shim.word = Some(outcome);
        shim.is_live = false;
        self.checks.sandbox_died(place.held);
        let name = self.name(place.held);
        self.note(format_args!("h{} over {name} {reason:?}", place.host));
        self.nudge(place.host, place.held);
    }

    /// The process of a shim dies, and its sandbox with it. Its word stays where it had left one.
    pub(crate) fn kill_shim(&mut self, host: usize, held: Held) {
        let Some(shim) = self.hosts[host].disk.shims.get_mut(&held).filter(|shim| shim.is_alive) else { return };
        shim.is_alive = false;
        if std::mem::take(&mut shim.is_live) {
            self.checks.sandbox_died(held);
        }
        let name = self.name(held);
        self.note(format_args!("h{host} shim of {name} dies"));
        self.nudge(host, held);
    }
}
