//! After a restart: which attempts go on, and how (SPEC L5, L6).
//!
//! The two files of the journal tell how far an attempt had come (see [`crate::journal`]); [`judge`] turns that into what
//! is to be done. Leases are taken up only after the shims were asked until when they hold theirs.

use std::{path::Path, sync::Arc, time::Duration};

use holm_domain::BootMicros;
use holm_runtime::AttemptId;
use holm_shim::{
    client::{connect, has_begun, read_exit},
    protocol::Status,
};
use tokio::time::{sleep, timeout};

use crate::{
    attempt::{Origin, converse::Link, traced::Traced},
    clock,
    control::ControlPlane,
    journal::{Claim, Record, ShimRecord, Unreadable},
    occupancy::Stay,
    reaper,
    shim_process::ShimProcess,
    station::Shared,
};

/// How often a shim that does not answer is tried again.
const CONNECT_EVERY: Duration = Duration::from_millis(10);

/// An attempt that goes on.
#[derive(Debug)]
pub(crate) struct Survivor {
    pub(crate) claim: Claim,
    pub(crate) traced: Traced,
    pub(crate) deadline: BootMicros,
    pub(crate) origin: Origin,
    pub(crate) stay: Stay,
}

/// What is to be done with an attempt whose folder was found.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing was created, or nothing that can be told is left: remove it. Its lease expires and the run is queued again.
    Remove,
    /// No shim began with its orders: make it again under the same lease, if that is still held.
    Again,
    /// A shim began: take it up, dead or alive.
    TakeUp,
}

/// How far a shim came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// It was to get its orders, and may have got them; it did nothing yet. It is killed before anything is made again.
    Nowhere,
    /// It began.
    Begun,
    /// It left its last word.
    ToItsEnd,
}

fn judge(record: Option<&Record>, shim: Option<Came>, boot_id: &str, now: BootMicros) -> Verdict {
    let Some(record) = record else { return Verdict::Remove };
    let is_this_boot = record.boot_id == boot_id;
    match shim.filter(|came| *came != Came::Nowhere) {
        None if is_this_boot && now < record.deadline => Verdict::Again,
        None => Verdict::Remove,
        // The machine was started anew: what ran is gone, but what had ended can still be told.
        Some(came) if is_this_boot || came == Came::ToItsEnd => Verdict::TakeUp,
        Some(_) => Verdict::Remove,
    }
}

/// Looks after every folder of an attempt; returns those that go on and removes the others.
pub(crate) async fn survey<C: ControlPlane>(shared: &Arc<Shared<C>>) -> Vec<Survivor> {
    let attempts = match shared.folder.attempts() {
        Ok((attempts, _)) => attempts,
        Err(error) => {
            tracing::error!(%error, "looking for attempts of an earlier agent");
            return Vec::new();
        }
    };
    let found = attempts.into_iter().filter_map(|attempt| shared.occupancy.enter(attempt));
    let surveys = found.map(|stay| look_after(shared, stay));
    futures_util::future::join_all(surveys).await.into_iter().flatten().collect()
}

async fn look_after<C: ControlPlane>(shared: &Arc<Shared<C>>, stay: Stay) -> Option<Survivor> {
    let attempt = stay.attempt();
    let (record, shim, exit) = match read(shared, attempt) {
        Ok(read) => read,
        Err(problem) => {
            tracing::error!(run = %attempt.run, fence = attempt.fence, %problem, "an attempt cannot be taken up");
            return remove(shared, stay).await;
        }
    };
    let came = shim.as_ref().map(|_| came(&shared.folder.attempt(attempt), exit.as_ref()));
    let verdict = judge(record.as_ref(), came, &shared.boot_id, clock::boot_now());
    tracing::info!(run = %attempt.run, fence = attempt.fence, ?verdict, "found an attempt of an earlier agent");
    match (verdict, record, shim) {
        (Verdict::Again, Some(record), _) => again(shared, stay, record).await,
        (Verdict::TakeUp, Some(mut record), Some(shim)) => {
            stay.adopt(&mut record.resources);
            Some(take_up(shared, stay, record, shim, exit).await)
        }
        _ => remove(shared, stay).await,
    }
}

fn came(dir: &Path, exit: Option<&Status>) -> Came {
    match exit {
        Some(_) => Came::ToItsEnd,
        None => match has_begun(dir) {
            Ok(false) => Came::Nowhere,
            Ok(true) => Came::Begun,
            Err(error) => {
                // Whoever takes it up finds out.
                tracing::error!(dir = %dir.display(), %error, "whether a shim began");
                Came::Begun
            }
        },
    }
}

type Read = (Option<Record>, Option<ShimRecord>, Option<Status>);

fn read<C>(shared: &Shared<C>, attempt: AttemptId) -> Result<Read, Unreadable> {
    let dir = shared.folder.attempt(attempt);
    let exit = read_exit(&dir).unwrap_or_else(|error| {
        // Whoever takes it up comes to the same result, and tells of an end without a word of it.
        tracing::error!(run = %attempt.run, %error, "the final status");
        None
    });
    Ok((Record::read(&dir, attempt)?, ShimRecord::read(&dir)?, exit))
}

async fn remove<C: ControlPlane>(shared: &Arc<Shared<C>>, stay: Stay) -> Option<Survivor> {
    let shared = shared.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || reaper::clear_attempt(&shared, stay)).await {
        tracing::error!(%error, "removing an attempt of an earlier agent");
    }
    None
}

/// Removes what was prepared and begins again.
async fn again<C: ControlPlane>(shared: &Arc<Shared<C>>, stay: Stay, record: Record) -> Option<Survivor> {
    let attempt = stay.attempt();
    let Record { claim, deadline, .. } = record;
    let traced = traced(shared, attempt, true);
    remove(shared, stay).await;
    // Not given when something could not be removed in the first place: the reaper has it then, and the lease expires.
    let is_removed = !shared.folder.attempt(attempt).exists();
    let stay = is_removed.then(|| shared.occupancy.enter(attempt)).flatten()?;
    Some(Survivor { claim, traced, deadline, origin: Origin::Again { deadline }, stay })
}

async fn take_up<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    stay: Stay,
    record: Record,
    shim: ShimRecord,
    exit: Option<Status>,
) -> Survivor {
    let attempt = stay.attempt();
    let process = ShimProcess::find(shim.shim).unwrap_or_else(|error| {
        tracing::error!(run = %attempt.run, %error, "looking for a shim");
        None
    });
    let mut deadline = exit.as_ref().map_or(record.deadline, |exit| exit.deadline_us);
    let (mut link, mut status) = (None, None);
    if let Some(process) = &process {
        let dir = shared.folder.attempt(attempt);
        match timeout(shared.config.answer_within, ask(&dir, process)).await {
            Ok(Some((found, said))) if said.fence == attempt.fence => {
                deadline = said.deadline_us;
                link = Some(Box::new(found));
                status = Some(Box::new(said));
            }
            _ => tracing::warn!(run = %attempt.run, fence = attempt.fence, "a shim does not answer"),
        }
    }
    let origin = Origin::Found { process, link, status, sandbox: shim.sandbox };
    let traced = traced(shared, attempt, record.boot_id == shared.boot_id);
    Survivor { claim: record.claim, traced, deadline, origin, stay }
}

/// What an earlier agent recorded of an attempt goes on.
fn traced<C>(shared: &Shared<C>, attempt: AttemptId, is_this_boot: bool) -> Traced {
    let dir = shared.folder.attempt(attempt);
    Traced::found(&shared.config.tracer, attempt, shared.who(), &dir, is_this_boot)
}

/// Connects to a shim and hears its first status; nothing if it ends.
async fn ask(dir: &Path, process: &ShimProcess) -> Option<(Link, Status)> {
    loop {
        if let Ok((commands, mut statuses)) = connect(dir).await
            && let Ok(Some(status)) = statuses.next().await
        {
            return Some((Link::new((commands, statuses), true), status));
        }
        tokio::select! {
            _ = process.gone() => return None,
            () = sleep(CONNECT_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::record;

    #[test]
    fn how_far_it_was_decides() {
        let record = record(1);
        let (before, after) = (BootMicros(record.deadline.0 - 1), record.deadline);
        let here = |shim, now| judge(Some(&record), shim, "boot", now);
        let elsewhere = |shim| judge(Some(&record), shim, "another boot", before);
        assert_eq!(judge(None, None, "boot", before), Verdict::Remove, "nothing was created");
        for nobody in [None, Some(Came::Nowhere)] {
            assert_eq!(here(nobody, before), Verdict::Again);
            assert_eq!(here(nobody, after), Verdict::Remove, "the lease is over");
            assert_eq!(elsewhere(nobody), Verdict::Remove, "instants of another boot mean nothing");
        }
        assert_eq!(here(Some(Came::Begun), after), Verdict::TakeUp, "its shim knows the deadline");
        assert_eq!(here(Some(Came::ToItsEnd), after), Verdict::TakeUp);
        assert_eq!(elsewhere(Some(Came::Begun)), Verdict::Remove, "it may be made again elsewhere");
        assert_eq!(elsewhere(Some(Came::ToItsEnd)), Verdict::TakeUp, "the end can be told");
    }
}
