//! From a claim to a shim that has its orders.
//!
//! What always holds: the journal is on disk before the runtime creates anything (SPEC L6); the lease is looked at again
//! after the preparation, which may have taken long (SPEC L3); a shim is in the journal before it gets its orders.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use holm_domain::{
    BootMicros,
    run::{Outcome, Reason, SandboxInfo},
    trace::TraceId,
};
use holm_runtime::{Descriptor, Error, Prepared, Request, SharedRuntime, Stop, crash::effect, passing};
use holm_shim::protocol::{DIR_DESCRIPTOR, Launch};
use rustix::fs::{Mode, OFlags};
use tokio::sync::watch;

use super::{
    orders::{Lost, Orders},
    seen::outcome_of,
    spawn_blocking,
    traced::Traced,
};
use crate::{
    clock,
    control::ControlPlane,
    folder::{FolderError, hand_over},
    journal::{Claim, Record, ShimRecord},
    occupancy::Stay,
    shim_process::{ShimProcess, WaitingShim},
    station::Shared,
};

/// Why there is no sandbox.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// The run ends like this.
    Failed(Outcome),
    /// The lease is lost.
    Lost(Lost),
    /// The agent goes away; its successor begins again.
    Left,
}

/// A shim that has its orders, and what is told of its sandbox.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) process: ShimProcess,
    pub(crate) sandbox: SandboxInfo,
}

/// What was asked for cannot be made.
fn launch_failed(problem: impl std::fmt::Display) -> NotMade {
    NotMade::Failed(Outcome::failed(Reason::LaunchFailed, problem.to_string()))
}

/// This host cannot make it, or not now.
fn host_failed(problem: impl std::fmt::Display) -> NotMade {
    NotMade::Failed(Outcome::failed(Reason::HostFailed, problem.to_string()))
}

impl From<FolderError> for NotMade {
    fn from(error: FolderError) -> Self {
        host_failed(error)
    }
}

impl From<Error> for NotMade {
    fn from(error: Error) -> Self {
        Self::Failed(outcome_of(&error))
    }
}

/// What the orders say to a sandbox that is not there yet.
pub(crate) fn go_on(orders: &Orders) -> Result<(), NotMade> {
    match orders {
        Orders { lost: Some(lost), .. } => Err(NotMade::Lost(*lost)),
        Orders { cancel: Some(_), .. } => {
            Err(NotMade::Failed(Outcome::cancelled("cancelled before the command was started")))
        }
        Orders { leave: true, .. } => Err(NotMade::Left),
        _ => Ok(()),
    }
}

/// Waits until the control plane has said that a lease is still held which an earlier agent held until `found`. What that
/// agent told last may have been the end of it, whose answer it did not live to hear: somebody else may have the run now.
async fn still_held(orders: &mut watch::Receiver<Orders>, found: BootMicros) -> Result<(), NotMade> {
    let heard = |orders: &Orders| go_on(orders).is_err() || orders.deadline > found;
    let orders = orders.wait_for(heard).await.map_err(|_| NotMade::Left)?;
    go_on(&orders)
}

/// Makes the sandbox of `claim` up to its shim; of a lease that an earlier agent held until `found`, only once that it is
/// still held was said.
pub(crate) async fn make<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    (claim, traced): (&Claim, &Arc<Traced>),
    stay: &Arc<Stay>,
    orders: &mut watch::Receiver<Orders>,
    found: Option<BootMicros>,
) -> Result<Made, NotMade> {
    if let Some(found) = found {
        still_held(orders, found).await?;
    }
    let first = *orders.borrow_and_update();
    go_on(&first)?;
    claim.spec.validate().map_err(launch_failed)?;
    let runtime = shared.runtimes.by_name(&claim.runtime).map_err(launch_failed)?;
    let stop = StopOnDrop(Stop::default());
    let preparing = blocking({
        let (shared, claim, stay, stop) = (shared.clone(), claim.clone(), stay.clone(), stop.0.clone());
        let traced = traced.clone();
        move || prepare(&shared, (&claim, &traced), &stay, (&runtime, &first), &stop)
    });
    let prepared = while_wanted(preparing, orders, &stop.0).await;
    // Why it is to stop says more than that it did.
    let now = *orders.borrow_and_update();
    go_on(&now)?;
    let (prepared, shim) = prepared?;
    if !shared.holder.may_start(claim.attempt) {
        return Err(NotMade::Lost(Lost::Expired));
    }
    stay.begun(clock::boot_now());
    blocking({
        let (shared, claim, trace) = (shared.clone(), claim.clone(), traced.trace_id());
        move || brief(&shared, (claim, trace), prepared, shim, &now)
    })
    .await
}

/// Ends a preparation also when its supervisor is ended from outside.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Waits for a preparation, which is told to stop as soon as the orders want no sandbox any more.
async fn while_wanted<T>(preparing: impl Future<Output = T>, orders: &mut watch::Receiver<Orders>, stop: &Stop) -> T {
    let mut preparing = std::pin::pin!(preparing);
    tokio::select! {
        prepared = &mut preparing => return prepared,
        unwanted = orders.wait_for(|orders| go_on(orders).is_err()) => match unwanted {
            Ok(_) => tracing::info!("a preparation is not wanted any more"),
            Err(_) => tracing::error!("nobody gives orders any more"),
        },
    }
    stop.stop();
    preparing.await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, NotMade> + Send + 'static) -> Result<T, NotMade> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(host_failed(format!("the preparation failed: {error}"))),
    }
}

/// Plans and journals, then prepares while the shim is started and waits for its orders.
fn prepare<C>(
    shared: &Shared<C>,
    (claim, traced): (&Claim, &Traced),
    stay: &Stay,
    (runtime, orders): (&SharedRuntime, &Orders),
    stop: &Stop,
) -> Result<(Prepared, WaitingShim), NotMade> {
    let dir = effect("attempt.folder", || shared.folder.make_attempt(claim.attempt))?;
    let request = Request { attempt: claim.attempt, spec: claim.spec.clone(), dir: dir.clone() };
    let resources = effect("attempt.plan", || stay.plan(|taken| runtime.plan(&request, taken)))?;
    let record = Record::new(shared.boot_id.clone(), claim.clone(), orders.deadline, resources);
    effect("journal.write", || {
        traced.keep(&dir);
        record.write(&dir)
    })?;
    let identity = runtime.shim(&record.resources);
    effect("attempt.hand_over", || hand_over(&dir, identity.ids))?;
    let program = &shared.config.shim;
    let (shim, prepared) = std::thread::scope(|scope| {
        let of_attempt = tracing::Span::current();
        let start = move || of_attempt.in_scope(|| effect("shim.start", || WaitingShim::start(program, &identity)));
        let starting = std::thread::Builder::new().name("shim-start".to_owned()).spawn_scoped(scope, start);
        let prepared = effect("sandbox.prepare", || runtime.prepare(&request, &record.resources, stop));
        let joined = starting.map(|starting| starting.join());
        (joined, prepared)
    });
    let shim = shim.and_then(|shim| shim.unwrap_or_else(|_| Err(std::io::Error::other("starting it panicked"))));
    let shim = shim.map_err(|error| host_failed(format!("the shim cannot be started: {error}")))?;
    Ok((prepared?, shim))
}

/// Gives a shim its orders.
fn brief<C>(
    shared: &Shared<C>,
    (claim, trace): (Claim, Option<TraceId>),
    prepared: Prepared,
    shim: WaitingShim,
    orders: &Orders,
) -> Result<Made, NotMade> {
    let dir = shared.folder.attempt(claim.attempt);
    let Prepared { launch, mut descriptors, image_digest, unenforced } = prepared;
    descriptors.push(Descriptor { name: DIR_DESCRIPTOR.to_owned(), fd: open_dir(&dir).map_err(host_failed)? });
    let sandbox = SandboxInfo { agent: shared.agent, runtime: claim.runtime.clone(), image_digest, unenforced };
    let message = Launch {
        attempt: claim.attempt,
        spec: claim.spec,
        dir: dir.clone(),
        first_log_seq: claim.first_log_seq,
        deadline_us: orders.deadline,
        runtime: claim.runtime,
        launch,
        storage_floor_bytes: shared.config.storage_floor_bytes,
        ways_out: shared.config.ways_out.clone(),
        tuning: shared.config.tuning,
        trace,
        host: Some(shared.config.name.clone()),
    };
    let id = shim.id().map_err(host_failed)?;
    let record = ShimRecord { shim: id, sandbox: sandbox.clone() };
    effect("journal.shim", || record.write(&dir))?;
    let process = effect("shim.brief", || shim.brief(id, |socket| passing::send(socket, &message, &descriptors)));
    let process = process.map_err(|error| {
        let problem = format!("the shim does not take its orders: {error}");
        match error {
            passing::Error::TooLarge { .. } | passing::Error::Body(_) => launch_failed(problem),
            _ => host_failed(problem),
        }
    })?;
    Ok(Made { process, sandbox })
}

/// The shim enters its folder by this: the folders above are not for its user id.
fn open_dir(dir: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_domain::{BootMicros, run::Cancel};

    #[tokio::test]
    async fn what_an_earlier_agent_held_is_made_again_only_once_it_is_said_to_be_held() {
        let found = BootMicros(7);
        for (news, is_held) in [
            (Orders::until(BootMicros(8)), true),
            (Orders { lost: Some(Lost::Stale), ..Orders::until(found) }, false),
            (Orders { lost: Some(Lost::Expired), ..Orders::until(found) }, false),
        ] {
            let (orders, mut received) = watch::channel(Orders::until(found));
            let waiting = still_held(&mut received, found);
            tokio::pin!(waiting);
            let soon = tokio::time::timeout(std::time::Duration::from_millis(20), &mut waiting).await;
            assert!(soon.is_err(), "nobody has said anything");
            orders.send_replace(news);
            assert_eq!(waiting.await.is_ok(), is_held, "{news:?}");
        }
    }

    #[test]
    fn what_weighs_more_is_heeded_first() {
        let plain = Orders::until(BootMicros(1));
        assert!(go_on(&plain).is_ok());
        let all = Orders { lost: Some(Lost::Stale), cancel: Some(Cancel::Kill), leave: true, ..plain };
        assert!(matches!(go_on(&all), Err(NotMade::Lost(Lost::Stale))));
        let cancelled = go_on(&Orders { lost: None, ..all });
        assert!(matches!(cancelled, Err(NotMade::Failed(outcome)) if outcome.reason == Some(Reason::Cancelled)));
        assert!(matches!(go_on(&Orders { lost: None, cancel: None, ..all }), Err(NotMade::Left)));
    }
}
