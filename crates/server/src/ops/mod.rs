//! What the server does, one verb a function: a decision of `holm-domain` joined with one transaction of the store.
//!
//! A decision is made on the run as it was read and saved by compare-and-swap on its version. If somebody else was faster,
//! here or on another server, it is read and decided again, at most [`SWAPS_MAX`] times. Those who wait for a
//! change are woken after it was saved and never before.
//!
//! Left out: who may ask (`auth`), how it is asked (`http`).

pub mod audit;
pub mod changes;
pub mod enrol;
pub mod events;
pub mod hosts;
pub mod keys;
pub mod leases;
pub mod logs;
pub mod metrics;
pub mod orgs;
pub mod pools;
pub mod run_secrets;
pub mod run_tokens;
pub mod runs;
pub mod secrets;
pub mod tokens;

use holm_domain::{
    OrgId, RunId, UnixMicros,
    error::InvalidField,
    run::{Decision, EventKind, Run, RunState},
};

use holm_store::Project;

use crate::{app::App, config::SWAPS_MAX, problem::Failure, traces};

/// Reads a run of an org; another org's runs are not there.
pub async fn run_of(app: &App, org: OrgId, id: RunId) -> Result<Run, Failure> {
    app.store.run_get(org, id).await?.ok_or_else(|| Failure::not_found("run", id))
}

/// The project of that name, of the org.
pub(crate) async fn project_named(app: &App, org: OrgId, name: &str) -> Result<Project, Failure> {
    tokens::check_name("project", name)?;
    let project = app.store.project_by_name(org, name).await?;
    Ok(project.ok_or_else(|| InvalidField::new("project", name, "give the name of a project of the org"))?)
}

/// Decides on a run as it was read a moment ago and saves that, until nobody else was faster; returns the run as it stands
/// then.
pub(crate) async fn revise_from<E>(
    app: &App,
    run: Run,
    decide: impl Fn(&Run, UnixMicros) -> Result<Option<Decision>, E>,
) -> Result<Run, Failure>
where
    Failure: From<E>,
{
    revise_traced(app, run, None, decide).await
}

/// The same for the finish of an attempt, if it is told since when that is worked on.
pub(crate) async fn revise_traced<E>(
    app: &App,
    mut run: Run,
    finishing: Option<UnixMicros>,
    decide: impl Fn(&Run, UnixMicros) -> Result<Option<Decision>, E>,
) -> Result<Run, Failure>
where
    Failure: From<E>,
{
    let (org, id) = (run.org, run.id);
    for _ in 0..SWAPS_MAX {
        let Some(decision) = decide(&run, app.now())? else { return Ok(run) };
        if try_save(app, run.version, &decision).await?.is_some() {
            traces::saved(app, &run, &decision, finishing);
            return Ok(decision.run);
        }
        run = run_of(app, org, id).await?;
    }
    let cause = format!("{SWAPS_MAX} attempts to change {id} found it changed by somebody else");
    Err(Failure::unavailable("the run is being changed by many at once; try again", cause))
}

/// Saves a decision if the run still has the version on which it was made, and wakes who waits for it. Returns the
/// sequence of the run's next log entry; nothing if somebody else was faster.
pub(crate) async fn try_save(app: &App, expect_version: u64, decision: &Decision) -> holm_store::Result<Option<u64>> {
    let Decision { run, events } = decision;
    let deadline = run.deadline(&app.config.lease);
    match app.store.run_save(expect_version, run, events, deadline, app.now()).await {
        Ok(saved) => {
            app.wakers.expect_deadline(deadline);
            announce(app, run, events);
            Ok(Some(saved.next_log_seq))
        }
        Err(holm_store::Error::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn announce(app: &App, run: &Run, events: &[EventKind]) {
    if !events.is_empty() {
        app.wakers.ring_run(run.id);
    }
    let concerns_agents =
        events.iter().any(|event| matches!(event, EventKind::CancelRequested { .. } | EventKind::LeaseExpired { .. }));
    if concerns_agents {
        app.wakers.ring_agents(run.org);
    }
    if run.state == RunState::Queued {
        app.wakers.ring_queue(run.org);
    }
    if run.state == RunState::Ended {
        app.wakers.want_sealed();
        if app.limiter.let_go(run.org) {
            app.wakers.ring_queue(run.org);
        }
        run.outcome.iter().for_each(|outcome| app.metrics.ended(outcome));
    }
}
