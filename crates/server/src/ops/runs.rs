//! Runs: take in, look at, list, cancel, delete.

use holm_api::runs::CreateRun;
use holm_domain::{
    ErrorCode, OrgId, RunId,
    access::Token,
    error::InvalidField,
    run::{Admission, Cancel, Run, RunState, admit},
    trace::TraceContext,
};
use holm_store::{Idempotency, Inserted, RunFilter, RunRow};
use sha2::{Digest as _, Sha256};

use super::{project_named, revise_from, run_of, run_secrets::secrets_are_there};
use crate::{account::Account, app::App, config::RUNS_PAGE_BYTES_MAX, ids, problem::Failure, traces};

/// The project of runs that name none.
pub const DEFAULT_PROJECT: &str = "default";
/// The longest idempotency key, in characters.
pub const IDEMPOTENCY_KEY_MAX: usize = 255;

/// A run that was asked for, and whether this request made it.
#[derive(Debug)]
pub struct Created {
    /// The run.
    pub run: Run,
    /// False if an earlier request with the same idempotency key made it.
    pub new: bool,
}

/// Takes a run into the queue. A run that no host could execute now is taken in all the same: hosts come and go, and its
/// time in the queue is limited.
pub async fn run_create(
    app: &App,
    by: &Token,
    body: CreateRun,
    key: Option<String>,
    client: Option<TraceContext>,
) -> Result<Created, Failure> {
    // The run begins with the request: what the server does to take it in lies within the run.
    let now = app.now();
    body.spec.validate().map_err(|error| InvalidField { field: format!("spec.{}", error.field), ..error })?;
    app.needs_room()?;
    app.needs_files()?;
    let idempotency = key.map(|key| idempotency(key, &body)).transpose()?;
    let digest = idempotency.as_ref().map(|given| given.digest);
    let project = project_named(app, by.org, body.project.as_deref().unwrap_or(DEFAULT_PROJECT)).await?;
    secrets_are_there(app, by.org, project.id, &body.spec.credentials).await?;
    app.limiter.queue(app, by.org).await?;
    let admission = Admission { id: ids::run(), org: by.org, project: project.id, created_by: by.id };
    let mut decision = admit(admission, body.spec, now, &app.config.lease);
    decision.run.trace = traces::begin(app, client, now);
    let deadline = decision.run.deadline(&app.config.lease);
    match app.store.run_insert(&decision.run, idempotency.as_ref(), &decision.events, deadline, now).await? {
        Inserted::New => {
            app.wakers.expect_deadline(deadline);
            app.wakers.ring_queue(by.org);
            traces::submitted(app, &decision.run, now);
            Ok(Created { run: decision.run, new: true })
        }
        Inserted::Existing { run, digest: stored } if Some(stored) == digest => Ok(Created { run: *run, new: false }),
        Inserted::Existing { run, .. } => {
            let detail = format!("the key was given with another request, which made {}; draw a new key", run.id);
            Err(Failure::new(ErrorCode::IdempotencyMismatch, detail))
        }
    }
}

fn idempotency(key: String, body: &CreateRun) -> Result<Idempotency, Failure> {
    let printable = key.chars().all(|c| c.is_ascii_graphic());
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_MAX || !printable {
        let problem = format!("give 1 to {IDEMPOTENCY_KEY_MAX} printable ASCII characters without spaces");
        return Err(InvalidField::new(holm_api::IDEMPOTENCY_KEY, key, problem).into());
    }
    // The digest is over what was understood, so the same request spelt otherwise is the same request.
    let understood = serde_json::to_vec(body).map_err(Failure::internal)?;
    Ok(Idempotency { key, digest: Sha256::digest(understood).into() })
}

/// How many runs are read at a time: large ones end a page before many of them are in memory.
const READ_MAX: usize = 16;

/// A page of runs.
#[derive(Debug, Default)]
pub struct Listed {
    /// The runs, newest first.
    pub runs: Vec<Run>,
    /// Those of the page that cannot be read, newest first.
    pub unreadable: Vec<RunId>,
    /// The last run of the page, where there are more.
    pub before: Option<RunId>,
}

/// Runs of the org, newest first, after `before`; fewer than `limit` where they are large.
pub async fn run_list(
    app: &App,
    org: OrgId,
    filter: &RunFilter,
    before: Option<RunId>,
    limit: u32,
) -> Result<Listed, Failure> {
    let (mut listed, mut count, mut bytes, mut before) = (Listed::default(), 0, 0, before);
    loop {
        let wanted = (limit as usize + 1 - count).min(READ_MAX);
        let read = app.store.run_list(org, filter, before, wanted as u32).await?;
        let is_last = read.len() < wanted;
        for RunRow { id, run } in read {
            if count >= limit as usize || bytes >= RUNS_PAGE_BYTES_MAX {
                return Ok(Listed { before, ..listed });
            }
            match run {
                Ok(run) => {
                    bytes += spec_bytes(&run)?;
                    before = Some(run.id);
                    listed.runs.push(run);
                }
                Err(error) => {
                    app.unreadable.tell(&id, &error);
                    // One that has not even an id cannot be told of, and the page cannot go on behind it.
                    let id = id.parse().map_err(|_| error)?;
                    before = Some(id);
                    listed.unreadable.push(id);
                }
            }
            count += 1;
        }
        if is_last {
            return Ok(listed);
        }
    }
}

/// What a run was asked to do, as bytes of JSON; the rest of what is told of a run is short.
pub(crate) fn spec_bytes(run: &Run) -> Result<usize, Failure> {
    Ok(serde_json::to_vec(&run.spec).map_err(Failure::internal)?.len())
}

/// Asks that a run end. Asking again changes nothing. The answer is counted before.
pub async fn run_cancel(app: &App, org: OrgId, id: RunId, how: Cancel, account: &Account) -> Result<Run, Failure> {
    let run = run_of(app, org, id).await?;
    account.take(app, spec_bytes(&run)?)?;
    revise_from(app, run, |run, now| Ok::<_, Failure>(run.request_cancel(how, now))).await
}

/// Removes a run that has ended, with its log, its events and its blobs; also one that cannot be read otherwise.
pub async fn run_delete(app: &App, org: OrgId, id: RunId) -> Result<(), Failure> {
    let standing = app.store.run_standing(org, id).await?;
    let (state, version) = standing.ok_or_else(|| Failure::not_found("run", id))?;
    if state != RunState::Ended {
        let way_out = match app.store.run_get(org, id).await {
            Err(error @ holm_store::Error::Corrupt { .. }) => {
                app.unreadable.tell(id, &error);
                " and cannot be read; repair its row or restore the database from a copy, then cancel it"
            }
            _ => "; cancel it and wait for its end",
        };
        let detail = format!("the run is {}{way_out}", state.as_str());
        return Err(Failure::new(ErrorCode::Conflict, detail).at("state", state.as_str()));
    }
    app.store.run_delete(org, id, version, app.now()).await?;
    app.wakers.ring_run(id);
    Ok(())
}
