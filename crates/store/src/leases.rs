//! Leases of runs, looked at by time and by agent. They are written by [`Store::run_save`] and
//! [`Store::leases_renew`] alone.

use std::{collections::BTreeMap, ops::RangeInclusive};

use holm_domain::{
    AgentId, OrgId, RunId, UnixMicros,
    host::Host,
    run::{Cancel, Run},
};

use crate::{
    Backend, Error, Result, RunRow, Store,
    error::{limit, page},
    hosts, runs,
    sql::{Args, Db, Fields, Query, Row, args, queries},
};

/// The most runs that one look at leases or deadlines yields.
pub const LEASES_PAGE_MAX: u32 = 10_000;

/// The most renewals in one transaction, and the most runs that are read together to decide on them: with each comes what it is
/// asked to execute, which may be long.
pub const RENEWALS_MAX: usize = 32;

/// What an agent holds of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leased {
    /// The run.
    pub run: RunId,
    /// The org of the run.
    pub org: OrgId,
    /// The number of the lease.
    pub fence: u64,
    /// How urgently the run is to be ended, if it is.
    pub cancel: Option<Cancel>,
}

/// A lease as it was found.
#[derive(Debug)]
pub struct LeaseRow {
    /// The id of the run, as it is stored.
    pub id: String,
    /// The lease. One that cannot be read does not hide the others.
    pub lease: Result<Leased>,
}

/// A renewal that was decided: of the run, its lease and its version alone are other than they were.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// The version on which it was decided.
    pub expect_version: u64,
    /// The run as it is to be.
    pub run: Run,
    /// The deadline that is to be noted.
    pub deadline: Option<UnixMicros>,
}

/// A run that is to be looked after, or to be granted.
#[derive(Debug)]
pub struct Due {
    /// Where it stands; the next page begins behind it.
    pub place: DuePlace,
    /// The run. One that cannot be read does not hide those behind it.
    pub run: Result<Run>,
}

/// A place in an order by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DuePlace {
    pub(crate) at: UnixMicros,
    pub(crate) id: String,
}

impl From<Due> for RunRow {
    fn from(due: Due) -> Self {
        Self { id: due.place.id, run: due.run }
    }
}

impl DuePlace {
    /// The time by which it stands there.
    pub fn at(&self) -> UnixMicros {
        self.at
    }
}

impl Store {
    /// Runs of all orgs whose deadline is at `now` or before, the longest overdue first, behind the place `after`; for the
    /// server's own task.
    pub async fn runs_due(&self, now: UnixMicros, after: Option<&DuePlace>, limit: u32) -> Result<Vec<Due>> {
        let limit = page(limit, LEASES_PAGE_MAX)?;
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.runs_due(now, after, limit)),
            Backend::Sql(db) => runs_due(db, now, after, limit).await,
        }
    }

    /// Saves renewals in one transaction, each by itself: those whose stored version is still the expected one. Tells of
    /// each whether it was saved.
    pub async fn leases_renew(&self, renewals: &[Renewal]) -> Result<Vec<bool>> {
        limit("renewals of one transaction", renewals.len(), RENEWALS_MAX)?;
        for Renewal { expect_version, run, .. } in renewals {
            runs::follows(*expect_version, run)?;
            runs::check_lease(run)?;
            if run.lease.is_none() {
                return Err(Error::invalid("a renewal", "the run has no lease"));
            }
        }
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.leases_renew(renewals)),
            Backend::Sql(db) => runs::leases_renew(db, renewals).await,
        }
    }

    /// The runs among `ids` that `agent` holds a lease of, whichever org they are of, by their ids: the first [`RENEWALS_MAX`]. One
    /// that cannot be read is among them.
    pub async fn runs_of_agent(&self, agent: AgentId, ids: RangeInclusive<RunId>) -> Result<Vec<RunRow>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.runs_of_agent(agent, &ids)),
            Backend::Sql(db) => runs_of_agent(db, agent, &ids).await,
        }
    }

    /// The host of `agent`, if the org has it, and then the leases that it holds, whichever org they are of, at most
    /// [`LEASES_PAGE_MAX`]. One that cannot be read is among them.
    pub async fn host_and_leases(&self, org: OrgId, agent: AgentId) -> Result<(Option<Host>, Vec<LeaseRow>)> {
        match &self.backend {
            Backend::Memory(memory) => {
                let host = memory.turn().await.host_get(org, agent);
                let leases = memory.turn().await.leases_of_agent(agent);
                Ok(if host.is_some() { (host, leases) } else { (None, Vec::new()) })
            }
            Backend::Sql(db) => {
                let [host, leases] = db.rows_of_both(hosts::by_id(org, agent), by_agent(agent)).await?;
                // Who is not of this org is told nothing.
                let Some(host) = host.first().map(hosts::read).transpose()? else { return Ok((None, Vec::new())) };
                Ok((Some(host), leases.iter().map(lease_row).collect::<Result<_>>()?))
            }
        }
    }

    /// How many runs, of any org, each agent of the org holds a lease of; agents without one are not in it.
    pub async fn lease_counts(&self, org: OrgId) -> Result<BTreeMap<AgentId, u32>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.lease_counts(org)),
            Backend::Sql(db) => lease_counts(db, org).await,
        }
    }
}

queries! {
    of "run" in "project";
    RUNS_DUE = "select id, org, version, state, body, deadline_at from runs
        where deadline_at <= $1 and (deadline_at, id) > ($2, $3) order by deadline_at, id limit $4 + 0";
    RUNS_OF_AGENT = "select r.id, r.org, r.version, r.state, r.body
        from leases l join runs r on r.org = l.org and r.id = l.run
        where l.agent = $1 and l.run between $2 and $3 order by l.run limit $4 + 0";
    LEASES_OF_AGENT = "select run, org, fence, cancel from leases where agent = $1 order by run limit $2 + 0";
    LEASE_COUNTS = "select l.agent, count(*) as runs from hosts h join leases l on l.agent = h.id where h.org = $1
        group by l.agent";
}

async fn runs_due(db: &Db, now: UnixMicros, after: Option<&DuePlace>, limit: usize) -> Result<Vec<Due>> {
    let (at, id) = behind(after);
    db.rows(RUNS_DUE, args![now, at, id, limit]).await?.iter().map(|row| due(row, "deadline_at")).collect()
}

/// The place behind which a page begins, by its parts; the first begins behind one that is before all.
pub(crate) fn behind(after: Option<&DuePlace>) -> (UnixMicros, &str) {
    after.map_or((UnixMicros(i64::MIN), ""), |place| (place.at, place.id.as_str()))
}

/// Reads a run with its place by the time in the column `at`.
pub(crate) fn due(row: &Row, at: &str) -> Result<Due> {
    let fields = row.of("runs", "id")?;
    let place = DuePlace { at: fields.at(at)?, id: fields.text("id")? };
    Ok(Due { place, run: runs::read(row) })
}

fn by_agent(agent: AgentId) -> (Query, Args) {
    (LEASES_OF_AGENT, args![agent, LEASES_PAGE_MAX])
}

fn lease_row(row: &Row) -> Result<LeaseRow> {
    let fields = row.of("leases", "run")?;
    Ok(LeaseRow { id: fields.text("run")?, lease: leased(&fields) })
}

fn leased(row: &Fields<'_>) -> Result<Leased> {
    let unknown = |word: &String| row.corrupt(format!("`cancel` is {word:?}"));
    let cancel = row.text_if_any("cancel")?;
    let cancel = cancel.map(|word| Cancel::parse(&word).ok_or_else(|| unknown(&word))).transpose()?;
    Ok(Leased { run: row.parsed("run")?, org: row.parsed("org")?, fence: row.number("fence")?, cancel })
}

async fn runs_of_agent(db: &Db, agent: AgentId, ids: &RangeInclusive<RunId>) -> Result<Vec<RunRow>> {
    let args = args![agent, *ids.start(), *ids.end(), RENEWALS_MAX];
    db.rows(RUNS_OF_AGENT, args).await?.iter().map(runs::read_row).collect()
}

async fn lease_counts(db: &Db, org: OrgId) -> Result<BTreeMap<AgentId, u32>> {
    let mut counts = BTreeMap::new();
    for row in db.rows(LEASE_COUNTS, args![org]).await? {
        let row = row.of("leases", "agent")?;
        let runs = row.number("runs")?;
        counts.insert(row.parsed("agent")?, u32::try_from(runs).map_err(|error| row.corrupt(error))?);
    }
    Ok(counts)
}
