//! Runs with their leases, events and logs in memory.

use std::{collections::BTreeMap, ops::RangeInclusive};

use holm_domain::{
    AgentId, OrgId, RunId, UnixMicros,
    run::{Event, EventKind, Run, RunState},
};

use super::{Memory, Row, State, Stored};
use crate::{
    Doomed, DoomedPart, Due, DuePlace, Error, EventAppended, Idempotency, Inserted, LEASES_PAGE_MAX, LeaseRow, Leased,
    LogAppended, RENEWALS_MAX, Renewal, Result, RunCensus, RunFilter, RunRow, Saved, Segment,
    logs::{Attempt, Chunk, enough, newest_at},
};

const NO_RUN: Error = Error::NotFound { what: "run" };

impl State {
    fn row(&self, org: OrgId, id: RunId) -> Option<&Row> {
        self.runs.get(&id).filter(|row| row.run.org == org)
    }

    fn doom(&mut self, part: DoomedPart, org: OrgId, run: RunId, now: UnixMicros) {
        self.doomed.insert((part, run), Doomed { part, org, run, doomed_at: now, sweep_at: now });
    }

    fn row_mut(&mut self, org: OrgId, id: RunId) -> Result<&mut Row> {
        self.runs.get_mut(&id).filter(|row| row.run.org == org).ok_or(NO_RUN)
    }
}

impl Row {
    fn last_event_seq(&self) -> u64 {
        self.events.last().map_or(0, |stored| stored.event.seq)
    }

    fn tell(&mut self, kind: &EventKind, source: Option<(u64, u64)>, at: UnixMicros) {
        let event = Event { seq: self.last_event_seq() + 1, at, kind: kind.clone() };
        self.events.push(Stored { event, source });
    }
}

/// A result that is JSON's null is read back as none by the other engines.
fn as_stored(run: &Run) -> Run {
    let result = run.result.clone().filter(|result| !result.is_null());
    Run { result, ..run.clone() }
}

/// In memory every run can be read.
fn found(run: &Run) -> RunRow {
    RunRow { id: run.id.to_string(), run: Ok(run.clone()) }
}

fn fence_of(run: &Run) -> u64 {
    run.lease.map_or(0, |lease| lease.fence)
}

/// In bytes.
fn length(segment: &Segment) -> u64 {
    segment.bytes.len() as u64
}

fn meets(run: &Run, filter: &RunFilter) -> bool {
    filter.project.is_none_or(|project| project == run.project)
        && (filter.states.is_empty() || filter.states.contains(&run.state))
        && filter.labels.iter().all(|(key, value)| run.labels().get(key) == Some(value))
}

impl Memory {
    pub(crate) fn run_insert(
        &self,
        run: &Run,
        idempotency: Option<&Idempotency>,
        events: &[EventKind],
        deadline: Option<UnixMicros>,
        now: UnixMicros,
    ) -> Result<Inserted> {
        let mut state = self.lock();
        if let Some(wanted) = idempotency
            && let Some((digest, id)) = state.idempotency.get(&(run.org, wanted.key.clone()))
        {
            let row = state.row(run.org, *id).ok_or(NO_RUN)?;
            return Ok(Inserted::Existing { run: Box::new(row.run.clone()), digest: *digest });
        }
        if state.projects.get(&run.project).is_none_or(|project| project.org != run.org) {
            return Err(Error::NotFound { what: "project" });
        }
        if state.runs.contains_key(&run.id) {
            return Err(Error::Conflict { what: "run" });
        }
        let fence = fence_of(run);
        let run = as_stored(run);
        let mut row = Row { run, deadline, fence, next_log_seq: 1, events: Vec::new(), segments: Vec::new() };
        events.iter().for_each(|kind| row.tell(kind, None, now));
        if let Some(new) = idempotency {
            state.idempotency.insert((row.run.org, new.key.clone()), (new.digest, row.run.id));
        }
        state.runs.insert(row.run.id, row);
        Ok(Inserted::New)
    }

    pub(crate) fn run_get(&self, org: OrgId, id: RunId) -> Option<Run> {
        self.lock().row(org, id).map(|row| row.run.clone())
    }

    pub(crate) fn run_list(&self, org: OrgId, filter: &RunFilter, before: Option<RunId>, limit: usize) -> Vec<RunRow> {
        let state = self.lock();
        let newest_first = state.runs.values().rev().map(|row| &row.run);
        newest_first
            .filter(|run| run.org == org && before.is_none_or(|before| run.id < before) && meets(run, filter))
            .take(limit)
            .map(found)
            .collect()
    }

    pub(crate) fn run_queue(&self, org: OrgId, after: Option<&DuePlace>, limit: usize) -> Vec<Due> {
        let is_queued = |run: &Run| run.org == org && run.state == RunState::Queued;
        let queued = |row: &Row| row.run.queue_at().filter(|_| is_queued(&row.run));
        self.by_time(queued, UnixMicros(i64::MAX), after, limit)
    }

    pub(crate) fn run_census(&self) -> RunCensus {
        let state = self.lock();
        let mut census = RunCensus::default();
        for run in state.runs.values().map(|row| &row.run) {
            if run.state == RunState::Queued {
                census.queued += 1;
                census.oldest_queued_at = census.oldest_queued_at.into_iter().chain([run.queued_at]).min();
            } else if run.state.is_leased() {
                match census.leased.iter_mut().find(|(state, _)| *state == run.state) {
                    Some((_, runs)) => *runs += 1,
                    None => census.leased.push((run.state, 1)),
                }
            }
        }
        census
    }

    pub(crate) fn run_save(
        &self,
        expect_version: u64,
        run: &Run,
        events: &[EventKind],
        deadline: Option<UnixMicros>,
        now: UnixMicros,
    ) -> Result<Saved> {
        let mut state = self.lock();
        let row = state.row_mut(run.org, run.id)?;
        if !self.is_current(expect_version, row.run.version) {
            return Err(Error::Conflict { what: "run" });
        }
        row.fence = fence_of(run);
        row.run = as_stored(run);
        row.deadline = deadline;
        events.iter().for_each(|kind| row.tell(kind, None, now));
        Ok(Saved { next_log_seq: row.next_log_seq, last_event_seq: row.last_event_seq() })
    }

    pub(crate) fn leases_renew(&self, renewals: &[Renewal]) -> Vec<bool> {
        let mut state = self.lock();
        let mut save = |Renewal { expect_version, run, deadline }: &Renewal| {
            let row =
                state.row_mut(run.org, run.id).ok().filter(|row| self.is_current(*expect_version, row.run.version));
            let Some(row) = row else { return false };
            row.run = as_stored(run);
            row.deadline = *deadline;
            true
        };
        renewals.iter().map(&mut save).collect()
    }

    pub(crate) fn run_delete(&self, org: OrgId, id: RunId, expect_version: u64, now: UnixMicros) -> Result<()> {
        let mut state = self.lock();
        if state.row_mut(org, id)?.run.version != expect_version {
            return Err(Error::Conflict { what: "run" });
        }
        state.runs.remove(&id);
        state.doom(DoomedPart::Run, org, id, now);
        state.idempotency.retain(|_, (_, run)| *run != id);
        Ok(())
    }

    pub(crate) fn logs_kept(&self, ended_by: UnixMicros, after: Option<&DuePlace>, limit: usize) -> Vec<Due> {
        let kept = |row: &Row| row.run.ended_at.filter(|_| row.run.logs_deleted_at.is_none());
        self.by_time(kept, ended_by, after, limit)
    }

    pub(crate) fn log_delete(&self, expect_version: u64, run: &Run, now: UnixMicros) -> Result<()> {
        let mut state = self.lock();
        let row = state.row_mut(run.org, run.id)?;
        if row.run.version != expect_version {
            return Err(Error::Conflict { what: "run" });
        }
        row.run = as_stored(run);
        row.segments.clear();
        state.doom(DoomedPart::Log, run.org, run.id, now);
        Ok(())
    }

    pub(crate) fn doomed_due(
        &self,
        part: DoomedPart,
        now: UnixMicros,
        after: Option<&Doomed>,
        limit: usize,
    ) -> Vec<Doomed> {
        let state = self.lock();
        let place = |doomed: &Doomed| (doomed.sweep_at, doomed.run);
        let is_due = |doomed: &Doomed| {
            doomed.part == part && doomed.sweep_at <= now && after.is_none_or(|after| place(doomed) > place(after))
        };
        let mut due: Vec<Doomed> = state.doomed.values().copied().filter(is_due).collect();
        due.sort_by_key(place);
        due.truncate(limit);
        due
    }

    pub(crate) fn doomed_swept(&self, part: DoomedPart, run: RunId, again_at: Option<UnixMicros>) {
        let mut state = self.lock();
        match (again_at, state.doomed.get_mut(&(part, run))) {
            (Some(at), Some(doomed)) => doomed.sweep_at = at,
            _ => drop(state.doomed.remove(&(part, run))),
        }
    }

    pub(crate) fn runs_due(&self, now: UnixMicros, after: Option<&DuePlace>, limit: usize) -> Vec<Due> {
        self.by_time(|row| row.deadline, now, after, limit)
    }

    /// Runs with a time of `upto` or before, behind the place `after`.
    fn by_time(
        &self,
        time: impl Fn(&Row) -> Option<UnixMicros>,
        upto: UnixMicros,
        after: Option<&DuePlace>,
        limit: usize,
    ) -> Vec<Due> {
        let state = self.lock();
        let place = |row: &Row| Some(DuePlace { at: time(row)?, id: row.run.id.to_string() });
        let placed = state.runs.values().filter_map(|row| Some((place(row)?, &row.run)));
        let mut due: Vec<(DuePlace, &Run)> =
            placed.filter(|(place, _)| place.at <= upto && after.is_none_or(|after| place > after)).collect();
        due.sort_by(|(a, _), (b, _)| a.cmp(b));
        due.into_iter().take(limit).map(|(place, run)| Due { place, run: Ok(run.clone()) }).collect()
    }

    pub(crate) fn runs_of_agent(&self, agent: AgentId, ids: &RangeInclusive<RunId>) -> Vec<RunRow> {
        let state = self.lock();
        let runs = state.runs.values().map(|row| &row.run);
        let held = runs.filter(|run| run.lease.is_some_and(|lease| lease.agent == agent) && ids.contains(&run.id));
        let mut held: Vec<_> = held.collect();
        held.sort_by_key(|run| run.id);
        held.into_iter().take(RENEWALS_MAX).map(found).collect()
    }

    pub(crate) fn leases_of_agent(&self, agent: AgentId) -> Vec<LeaseRow> {
        let state = self.lock();
        let held = state.runs.values().map(|row| &row.run).filter_map(|run| {
            let lease = run.lease.filter(|lease| lease.agent == agent)?;
            let leased = Leased { run: run.id, org: run.org, fence: lease.fence, cancel: run.cancel };
            Some(LeaseRow { id: run.id.to_string(), lease: Ok(leased) })
        });
        held.take(LEASES_PAGE_MAX as usize).collect()
    }

    pub(crate) fn lease_counts(&self, org: OrgId) -> BTreeMap<AgentId, u32> {
        let (state, mut counts) = (self.lock(), BTreeMap::new());
        for lease in state.runs.values().filter_map(|row| row.run.lease) {
            if state.hosts.get(&lease.agent).is_some_and(|host| host.org == org) {
                *counts.entry(lease.agent).or_default() += 1;
            }
        }
        counts
    }

    pub(crate) fn event_append(
        &self,
        org: OrgId,
        run: RunId,
        fence: u64,
        first_source_seq: u64,
        events: &[EventKind],
        now: UnixMicros,
    ) -> Result<EventAppended> {
        let mut state = self.lock();
        let row = state.row_mut(org, run)?;
        if fence == 0 || row.fence != fence {
            return Ok(EventAppended::StaleFence);
        }
        for (source_seq, kind) in (first_source_seq..).zip(events) {
            let source = Some((fence, source_seq));
            if !row.events.iter().any(|stored| stored.source == source) {
                row.tell(kind, source, now);
            }
        }
        Ok(EventAppended::Stored { last_seq: row.last_event_seq() })
    }

    pub(crate) fn event_page(&self, org: OrgId, run: RunId, after: u64, limit: usize) -> Vec<Event> {
        let state = self.lock();
        let events = state.row(org, run).map_or(&[][..], |row| &row.events);
        // Event n stands at place n - 1.
        let later = events.iter().skip(usize::try_from(after).unwrap_or(usize::MAX));
        later.take(limit).map(|stored| stored.event.clone()).collect()
    }

    pub(crate) fn log_append(&self, org: OrgId, run: RunId, fence: u64, chunk: &Chunk) -> Result<Attempt> {
        let mut state = self.lock();
        let row = state.row_mut(org, run)?;
        if let Some(attempt) = Attempt::refused(row.fence, row.next_log_seq, fence, chunk) {
            return Ok(attempt);
        }
        row.next_log_seq = chunk.last_seq + 1;
        let Chunk { first_seq, last_seq, bytes, .. } = chunk.clone();
        row.segments.push(Segment { first_seq, last_seq, bytes });
        Ok(Attempt::Done(LogAppended::Stored { next: row.next_log_seq, unsealed_bytes: 0 }))
    }

    pub(crate) fn log_read(&self, org: OrgId, run: RunId, after: u64, bytes_max: u64) -> Vec<Segment> {
        let state = self.lock();
        let segments = state.row(org, run).map_or(&[][..], |row| &row.segments);
        let rest = &segments[segments.partition_point(|segment| segment.last_seq <= after)..];
        rest[..enough(rest.iter().map(length), bytes_max)].to_vec()
    }

    pub(crate) fn log_read_back(&self, org: OrgId, run: RunId, upto: u64, bytes_max: u64) -> Vec<Segment> {
        let state = self.lock();
        let segments = state.row(org, run).map_or(&[][..], |row| &row.segments);
        let end = segments.partition_point(|segment| segment.first_seq <= upto);
        let count = enough(segments[..end].iter().rev().map(length), bytes_max);
        segments[end - count..end].to_vec()
    }

    pub(crate) fn log_at(&self, org: OrgId, run: RunId, at: UnixMicros) -> Result<Option<u64>> {
        let state = self.lock();
        for segment in state.row(org, run).map_or(&[][..], |row| &row.segments) {
            if newest_at(&segment.bytes)? >= at {
                return Ok(Some(segment.first_seq));
            }
        }
        Ok(None)
    }

    pub(crate) fn log_head(&self, org: OrgId, run: RunId) -> Result<u64> {
        self.lock().row(org, run).map(|row| row.next_log_seq).ok_or(NO_RUN)
    }
}
