//! Removing what nobody owns.
//!
//! Two sources say what there is: the folders of attempts, and the inventories of the runtimes, which find whatever bears
//! this agent's label. Whatever neither the keeper nor another pass of the reaper works on is removed; what cannot be
//! removed is tried again at the next pass. Every step may be repeated without harm (SPEC L5, L6).

use std::{path::Path, sync::Arc, time::Duration};

use holm_runtime::{AttemptId, Resources, SharedRuntime, crash::effect, registry::Registry};

use crate::{
    folder::{FolderError, note_damage, noted_damage},
    journal::{Record, ShimRecord},
    occupancy::Stay,
    station::Shared,
};

/// How long a shim that was killed may take to die.
const DEATH_PATIENCE: Duration = Duration::from_secs(5);

/// What one pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reaped {
    /// Attempts of which nothing is left.
    pub(crate) removed: usize,
    /// Attempts of which something could not be removed.
    pub(crate) left: usize,
}

/// Removes everything that `resources` names; whether nothing is left. What failed is logged.
pub(crate) fn destroy(runtimes: &Registry, resources: &Resources) -> bool {
    let AttemptId { run, fence } = resources.attempt;
    let runtime = match runtimes.by_name(&resources.runtime) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%run, fence, %error, "a sandbox cannot be removed without its runtime");
            return false;
        }
    };
    let reports = runtime.destroy(resources);
    for report in &reports {
        match &report.error {
            Some(error) => tracing::error!(%run, fence, step = report.step, error, "a step of the removal failed"),
            None => tracing::debug!(%run, fence, step = report.step, "removed"),
        }
    }
    reports.iter().all(|report| report.error.is_none())
}

/// Removes whatever bears the label of `attempt`, for want of a journal; whether nothing is left.
pub(crate) fn destroy_found(runtimes: &Registry, attempt: AttemptId) -> bool {
    let mut is_removed = true;
    for runtime in runtimes.all() {
        match runtime.inventory() {
            Ok(found) => {
                let mut of_attempt = found.iter().filter(|found| found.attempt == attempt);
                is_removed &= of_attempt.all(|found| destroy(runtimes, found));
            }
            Err(error) => {
                tracing::error!(runtime = runtime.name(), %error, "looking for a sandbox");
                is_removed = false;
            }
        }
    }
    is_removed
}

/// Removes everything of an attempt by its journal, its folder last; whether nothing is left. Blocks.
pub(crate) fn clear_attempt<C>(shared: &Shared<C>, stay: Stay) -> bool {
    let attempt = stay.attempt();
    let dir = shared.folder.attempt(attempt);
    match clear_folder(shared, &stay, &dir) {
        Ok(true) => {
            stay.clear();
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::error!(run = %attempt.run, fence = attempt.fence, %error, "removing an attempt");
            false
        }
    }
}

fn clear_folder<C>(shared: &Shared<C>, stay: &Stay, dir: &Path) -> Result<bool, FolderError> {
    let (record, shim) = (Record::read(dir, stay.attempt()), ShimRecord::read(dir));
    // A shim that the journal does not name any more bears the label of its attempt: it goes with what else bears that.
    let is_stopped = match &shim {
        Ok(Some(record)) => effect("shim.kill", || kill_shim(dir, record)),
        _ => true,
    };
    let is_removed = match &record {
        Ok(Some(record)) => {
            let mut resources = record.resources.clone();
            stay.adopt(&mut resources);
            effect("sandbox.destroy", || destroy(&shared.runtimes, &resources))
        }
        // Nothing was created before the journal was there.
        Ok(None) => true,
        Err(_) => destroy_found(&shared.runtimes, stay.attempt()),
    };
    if !is_removed || !is_stopped {
        return Ok(false);
    }
    let unreadable = record.err().or(shim.err()).map(|problem| problem.to_string());
    if let Some(problem) = &unreadable {
        note_damage(dir, problem);
    }
    if let Some(problem) = unreadable.or_else(|| noted_damage(dir)) {
        let aside = shared.folder.put_aside(dir)?;
        tracing::error!(problem, aside = %aside.display(), "the folder of an attempt was set aside");
        return Ok(true);
    }
    remove_dir(dir)?;
    Ok(true)
}

fn kill_shim(dir: &Path, record: &ShimRecord) -> bool {
    let result = record.shim.kill_and_wait(DEATH_PATIENCE);
    if let Err(problem) = &result {
        tracing::error!(dir = %dir.display(), %problem, "ending the shim of an attempt that is removed");
    }
    result.is_ok()
}

fn remove_dir(dir: &Path) -> Result<(), FolderError> {
    match effect("attempt.remove", || std::fs::remove_dir_all(dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => crate::folder::at(dir, Err(error)),
        _ => Ok(()),
    }
}

/// One pass. Blocks.
pub(crate) fn reap<C>(shared: &Arc<Shared<C>>) -> Reaped {
    let mut reaped = Reaped::default();
    let mut count = |is_removed: bool| if is_removed { reaped.removed += 1 } else { reaped.left += 1 };
    match shared.folder.attempts() {
        Ok((attempts, strangers)) => {
            for stay in attempts.into_iter().filter_map(|attempt| shared.occupancy.enter(attempt)) {
                count(clear_attempt(shared, stay));
            }
            for stranger in strangers {
                set_aside(shared, &stranger);
            }
        }
        Err(error) => tracing::error!(%error, "looking for attempts"),
    }
    match shared.folder.collect_set_aside(crate::clock::now()) {
        Ok(removed) => {
            removed.iter().for_each(|path| tracing::info!(path = %path.display(), "removed what was set aside"))
        }
        Err(error) => tracing::error!(%error, "removing what was set aside"),
    }
    for runtime in shared.runtimes.all() {
        match runtime.inventory() {
            Ok(found) => found.into_iter().filter_map(|found| remove_found(shared, found)).for_each(&mut count),
            Err(error) => tracing::error!(runtime = runtime.name(), %error, "looking for sandboxes"),
        }
        tidy(runtime);
    }
    if reaped != Reaped::default() {
        tracing::info!(removed = reaped.removed, left = reaped.left, "removed what nobody owned");
    }
    reaped
}

/// Has a runtime remove what it keeps for no attempt.
fn tidy(runtime: &SharedRuntime) {
    for report in runtime.tidy() {
        match &report.error {
            Some(error) => tracing::error!(runtime = runtime.name(), step = report.step, error, "tidying failed"),
            None => tracing::info!(runtime = runtime.name(), step = report.step, "removed what was not needed"),
        }
    }
}

fn set_aside<C>(shared: &Shared<C>, path: &Path) {
    match shared.folder.put_aside(path) {
        Ok(aside) => tracing::error!(aside = %aside.display(), "what is no folder of an attempt was set aside"),
        Err(error) => tracing::error!(%error, "setting aside what is no folder of an attempt"),
    }
}

/// Removes what an inventory found, unless somebody works on that attempt.
fn remove_found<C>(shared: &Shared<C>, mut found: Resources) -> Option<bool> {
    let stay = shared.occupancy.enter(found.attempt)?;
    stay.adopt(&mut found);
    tracing::warn!(run = %found.attempt.run, fence = found.attempt.fence, "found a sandbox that nobody owns");
    let is_removed = destroy(&shared.runtimes, &found);
    if is_removed {
        stay.clear();
    }
    Some(is_removed)
}
