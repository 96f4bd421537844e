//! When what must hold is looked at: whenever the store may have changed, and at the end.

use std::collections::BTreeMap;

use holm_domain::{
    RunId,
    lease::holder::Held,
    run::{Event, OutcomeKind, Reason, Run},
};
use holm_store::{RUNS_PAGE_MAX, RunFilter, Segment};

use crate::{
    check::Mark,
    network::{Answer, Request},
    time::At,
    world::World,
};

/// The most events of a run that are read to judge it, and the most bytes of its log.
const READ_MAX: (u32, usize) = (10_000, 1 << 24);

/// A run waits although a host has room for it.
#[derive(Debug)]
pub(crate) struct Unclaimed {
    since: At,
    /// How many claims there had been.
    claims: u64,
}

impl World {
    /// Checks how every run is stored now. Runs that are in the store are known from then on, whether or not anybody was
    /// told of them.
    pub(crate) fn look_at_store(&mut self) {
        let stored = match self.servers.read(self.stored()) {
            Ok(stored) => stored,
            Err(error) => return self.violated(format!("the runs cannot be read: {error}")),
        };
        for (run, head, events) in stored {
            let index = self.meet(run.id);
            let (state, fence, version) = (run.state, run.fence, run.version);
            match self.checks.look(run, head, events) {
                Ok(false) => {}
                Ok(true) => {
                    self.note(format_args!("r{index} {} fence {fence} version {version}", state.as_str()));
                    self.counts.requeued += u64::from(fence > 0);
                }
                Err(problem) => return self.violated(format!("r{index}: {problem}")),
            }
        }
    }

    /// Sees whether a run waits for a host that has room for it.
    pub(crate) fn see_unclaimed(&mut self) {
        let (is_queued, claims) = self.checks.queue();
        let is_calm = self.now >= self.plan.calm_from();
        let waits = is_calm && is_queued && (0..self.hosts.len()).any(|host| self.room(host) > 0);
        let known = self.unclaimed.take().filter(|known| known.claims == claims);
        self.unclaimed = waits.then(|| known.unwrap_or(Unclaimed { since: self.now, claims }));
    }

    /// Checks that no run has waited too long for a host that had room for it all the while.
    pub(crate) fn check_claims(&mut self) {
        let max = self.plan.unclaimed_max();
        if self.unclaimed.as_ref().is_some_and(|unclaimed| self.now.since(unclaimed.since) > max) {
            self.violated(format!("a run waits, a host has room for it, and in {max:?} nobody has claimed it"));
        }
    }

    /// Every run, of each org oldest first, with the sequence that its log goes on at and how many events it has.
    async fn stored(&self) -> holm_store::Result<Vec<(Run, u64, u64)>> {
        let (store, mut stored) = (&self.servers.store, Vec::new());
        for org in self.servers.orgs() {
            for row in store.run_list(org, &RunFilter::default(), None, RUNS_PAGE_MAX).await?.into_iter().rev() {
                let run = row.run?;
                let head = store.log_head(org, run.id).await?;
                let known = self.checks.events(run.id);
                let new = store.event_page(org, run.id, known, READ_MAX.0).await?;
                stored.push((run, head, known + new.len() as u64));
            }
        }
        Ok(stored)
    }

    /// Checks that an operation under some leases has written nothing since `before` for a run that had a newer fence then.
    pub(crate) fn check_written(&mut self, leases: &[Held], before: &BTreeMap<RunId, Mark>) {
        for held in leases {
            let Some(mark) = before.get(&held.run).filter(|mark| held.fence < mark.fence) else { continue };
            if self.checks.marks().get(&held.run) != Some(mark) {
                let (name, newest) = (self.name(*held), mark.fence);
                self.violated(format!("an operation under {name} wrote, and the newest fence was {newest}"));
            }
        }
    }

    /// Checks that nothing was taken under a fence that was not the newest when the server began with it, as `marks` tells,
    /// and that no output is given up.
    pub(crate) fn check_accepted(&mut self, request: &Request, answer: &Answer, marks: &BTreeMap<RunId, Mark>) {
        if let (Request::Finish(run, body), Answer::Done) = (request, answer) {
            let held = Held { run: *run, fence: body.fence };
            self.checks.finished(held);
            if body.outcome.reason == Some(Reason::SpoolFailed) {
                let name = self.name(held);
                self.violated(format!("output of {name} was given up"));
            }
        }
        let taken: Vec<Held> = match answer {
            Answer::Refused(_) => Vec::new(),
            Answer::Renewed(renewed) => {
                let renewed = renewed.leases.iter().filter(|lease| lease.ttl_ms.is_some());
                renewed.map(|lease| Held { run: lease.run, fence: lease.fence }).collect()
            }
            _ => request.leases(),
        };
        for held in taken {
            let newest = marks.get(&held.run).map_or(0, |mark| mark.fence);
            if held.fence < newest {
                let name = self.name(held);
                self.violated(format!("an operation under {name} was taken, and the newest fence is {newest}"));
            }
        }
    }

    /// A run, its events and its log.
    async fn left_of(&self, id: RunId) -> holm_store::Result<(Option<Run>, Vec<Event>, Vec<Segment>)> {
        let Some(run) = self.servers.run_get(id).await? else { return Ok((None, Vec::new(), Vec::new())) };
        let store = &self.servers.store;
        let events = store.event_page(run.org, id, 0, READ_MAX.0).await?;
        let log = store.log_read(run.org, id, 0, READ_MAX.1).await?;
        Ok((Some(run), events, log))
    }

    /// At the end: each run has ended once, its log is whole, and nothing is left on any host.
    pub(crate) fn judge(&mut self) {
        if self.runs.len() != self.plan.runs {
            return self.violated("a run was never taken in".to_owned());
        }
        for index in 0..self.runs.len() {
            let id = self.runs[index];
            let Ok((Some(run), events, log)) = self.servers.read(self.left_of(id)) else {
                return self.violated(format!("r{index} cannot be read"));
            };
            self.counts.ended += 1;
            let outcome = run.outcome.map(|outcome| (outcome.kind, outcome.reason));
            let is_success = outcome == Some((OutcomeKind::Succeeded, None));
            self.counts.succeeded += u64::from(is_success);
            self.note(format_args!("r{index} {outcome:?} after {} leases", run.fence));
            if let Err(problem) = self.checks.judge(id, &events, &log) {
                return self.violated(format!("r{index}: {problem}"));
            }
        }
        if !self.hosts.iter().all(|host| host.disk.is_clear()) {
            self.violated("something is left on a host".to_owned());
        }
    }
}
