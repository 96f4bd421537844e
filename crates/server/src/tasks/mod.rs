//! What the server does without being asked: end what is overdue, seal what has grown, delete what is too old, sweep what
//! was deleted, pass on to other servers what may have changed.
//!
//! A task takes no input: it looks at what there is, changes what is not as it should be, and comes to rest. It runs at
//! intervals, and earlier when somebody knows of work. So it does not matter whether it was called once too often, whether
//! a call was lost, or whether another server runs the same task at the same time.

pub mod expire;
pub mod hint;
pub mod reap;
pub mod seal;
pub mod sweep;

use std::{sync::Arc, time::Duration};

use holm_store::DuePlace;

use crate::{app::App, metrics::Task, problem::Failure, told::Told};

/// How often logs are looked for that are worth sealing, where nobody knows of one.
const SEAL_EVERY: Duration = Duration::from_secs(60);
/// How often objects of deleted runs and logs are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Counts a round of `task`, and tells that it failed, with what becomes of that.
fn count(app: &App, task: Task, done: Result<u64, Failure>, otherwise: &'static str) {
    let done = done.inspect_err(|failure| tracing::error!(cause = failure.for_log(), "{otherwise}")).ok();
    app.metrics.round(task, done);
}

/// Runs all tasks until the server is to end.
pub async fn run(app: Arc<App>) {
    tokio::join!(run_reap(&app), run_seal(&app), run_expire(&app), run_sweep(&app), hint::run(&app));
}

/// The pause between two rounds of the reaper, at least and at most: it looks again when the next deadline passes, soon
/// enough that an expired lease is noticed within a small part of its length; a lease that another server grants in between
/// does not expire before it looks again.
fn reap_pause(app: &App) -> (Duration, Duration) {
    let ttl = app.config.lease.ttl;
    let least = (ttl / 8).clamp(Duration::from_millis(50), Duration::from_secs(1));
    (least, (ttl / 2).clamp(least, Duration::from_secs(15)))
}

/// When the reaper looks again, if nothing is saved that is overdue earlier.
async fn next_reap(app: &App) -> Duration {
    let (least, most) = reap_pause(app);
    let now = app.now();
    let next = match app.store.runs_due(now.plus(most), None, 1).await {
        Ok(page) => page.first().map_or(most, |due| due.place.at().since(now)),
        // The round that follows meets the same trouble, and tells it.
        Err(_) => least,
    };
    next.clamp(least, most)
}

/// What the reaper of one server knows from round to round.
#[derive(Debug)]
pub struct Reaper {
    told: Told<DuePlace>,
    /// Whether what an earlier time of day left too far ahead was brought nearer.
    is_near: bool,
}

impl Reaper {
    /// One that has made no round. A server that has a database to itself wrote every deadline in it: what is too far ahead,
    /// its clock was.
    pub fn new(app: &App) -> Self {
        Self { told: Told::counting(app.metrics.troubles(Task::Reap)), is_near: app.store.is_shared() }
    }

    /// One round; returns how long it rests at most until the next.
    pub async fn round(&mut self, app: &App) -> Duration {
        let reaped = async {
            if !self.is_near {
                reap::bring_nearer(app, &mut self.told).await?;
                self.is_near = true;
            }
            reap::reap_telling(app, &mut self.told).await
        };
        let done = reaped.await.map(|changed| changed as u64);
        count(app, Task::Reap, done, "the reaper could not finish its round; it tries again");
        next_reap(app).await
    }
}

async fn run_reap(app: &App) {
    let mut reaper = Reaper::new(app);
    while !app.shutdown.is_cancelled() {
        let pause = reaper.round(app).await;
        let least = tokio::time::sleep(reap_pause(app).0);
        let planned = app.now().plus(pause);
        let overdue = async {
            app.wakers.overdue_before(planned).await;
            least.await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = overdue => {}
            () = app.shutdown.cancelled() => {}
        }
    }
}

async fn run_seal(app: &App) {
    let mut told = Told::counting(app.metrics.troubles(Task::Seal));
    while !app.shutdown.is_cancelled() {
        let done = seal::seal(app, &mut told).await;
        count(app, Task::Seal, done, "logs could not be sealed; they stay readable as they are, and are tried again");
        tokio::select! {
            () = app.wakers.sealable() => {}
            () = tokio::time::sleep(SEAL_EVERY) => {}
            () = app.shutdown.cancelled() => {}
        }
    }
}

/// How often logs that are too old are looked for: each goes within a small part of the time for which it is kept.
fn expire_every(retention: Duration) -> Duration {
    (retention / 8).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

async fn run_expire(app: &App) {
    let Some(retention) = app.config.log_retention else { return };
    let mut told = Told::counting(app.metrics.troubles(Task::Expire));
    while !app.shutdown.is_cancelled() {
        let done = expire::expire(app, retention, &mut told).await;
        count(app, Task::Expire, done, "logs that are too old could not be deleted; it is tried again");
        tokio::select! {
            () = tokio::time::sleep(expire_every(retention)) => {}
            () = app.shutdown.cancelled() => {}
        }
    }
}

async fn run_sweep(app: &App) {
    let mut told = Told::counting(app.metrics.troubles(Task::Sweep));
    while !app.shutdown.is_cancelled() {
        let done = sweep::sweep(app, &mut told).await;
        count(app, Task::Sweep, done, "objects of deleted runs and logs could not be removed; it is tried again");
        tokio::select! {
            () = tokio::time::sleep(SWEEP_EVERY) => {}
            () = app.shutdown.cancelled() => {}
        }
    }
}
