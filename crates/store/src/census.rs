//! Counts over all orgs, for the metrics of the server: how many live runs there are in each state, and every host.
//!
//! Each look costs as much as there are queued runs, leases and hosts. Queued runs are counted in their index; PostgreSQL
//! reads the table instead while a large part of it is queued.

use holm_domain::{UnixMicros, host::Host, run::RunState};

use crate::{
    Backend, Result, Store, hosts,
    sql::{Db, Row, args, queries},
};

/// How many hosts are read together.
const HOSTS_PAGE: usize = 1_000;

/// The live runs of all orgs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunCensus {
    /// How many wait in the queue.
    pub queued: u64,
    /// Since when the oldest of them waits.
    pub oldest_queued_at: Option<UnixMicros>,
    /// How many there are in each state in which an agent holds them; states without any are not in it.
    pub leased: Vec<(RunState, u64)>,
}

impl Store {
    /// Counts the live runs of all orgs; for the metrics of the server.
    pub async fn run_census(&self) -> Result<RunCensus> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.turn().await.run_census()),
            Backend::Sql(db) => run_census(db).await,
        }
    }

    /// Shows every host of all orgs to `visit`; for the metrics of the server. One that cannot be read does not hide the
    /// others.
    pub async fn host_census(&self, mut visit: impl FnMut(Result<Host>)) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => {
                memory.turn().await.hosts().into_iter().for_each(|host| visit(Ok(host)));
                Ok(())
            }
            Backend::Sql(db) => host_census(db, visit).await,
        }
    }
}

queries! {
    of "run" in "project";
    /// The condition on the org is true of all, and has SQLite search the index.
    RUN_CENSUS_QUEUED = "select count(*) as runs, min(queued_at) as oldest from runs where state = 'queued' and org > ''";
    RUN_CENSUS_LEASED = "select r.state, count(*) as runs from leases l join runs r on r.org = l.org and r.id = l.run
        where l.org > '' group by r.state";
    HOST_CENSUS = "select h.id, h.org, h.name, h.version, h.instance, h.body, h.registered_at, h.seen_at, h.cordon, h.pool, h.pool_voice,
          k.public_key, k.join_token, k.enrolled_at, k.revoked_at
        from hosts h left join host_keys k on k.current_of = h.id and k.org = h.org where h.id > $1 order by h.id limit $2 + 0";
}

async fn run_census(db: &Db) -> Result<RunCensus> {
    let mut census = RunCensus::default();
    if let Some(row) = db.row(RUN_CENSUS_QUEUED, args![]).await? {
        let row = row.under("runs", "queued");
        (census.queued, census.oldest_queued_at) = (row.number("runs")?, row.at_if_any("oldest")?);
    }
    for row in db.rows(RUN_CENSUS_LEASED, args![]).await? {
        let row = row.of("runs", "state")?;
        let state = row.text("state")?;
        let state = RunState::parse(&state).ok_or_else(|| row.corrupt("that is no state"))?;
        census.leased.push((state, row.number("runs")?));
    }
    Ok(census)
}

async fn host_census(db: &Db, mut visit: impl FnMut(Result<Host>)) -> Result<()> {
    let mut after = String::new();
    loop {
        let page = db.rows(HOST_CENSUS, args![after, HOSTS_PAGE]).await?;
        page.iter().for_each(|row| visit(hosts::read(row)));
        match page.last() {
            Some(last) if page.len() == HOSTS_PAGE => after = id(last)?,
            _ => return Ok(()),
        }
    }
}

fn id(row: &Row) -> Result<String> {
    row.of("hosts", "id")?.text("id")
}
