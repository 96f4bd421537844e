//! The supervisor of one attempt: from the claim, or from what was found after a restart, to nothing being left of it.
//!
//! The decisions are in [`orders`], [`seen`] and [`logs`], which are pure or nearly so; here they are put in order. An
//! attempt ends in one of three ways: its end was reported; it has no right to report anything; or the agent goes away and
//! leaves the shim to its successor. In the first two everything of it is removed, whatever failed before.

pub(crate) mod converse;
mod logs;
mod make;
pub(crate) mod orders;
mod report;
mod secrets;
mod seen;
mod settle;
mod silence;
pub(crate) mod traced;

use std::{sync::Arc, time::Duration};

use holm_domain::{BootMicros, run::SandboxInfo};
use holm_runtime::{AttemptId, crash::effect_of};
use holm_shim::protocol::Status;
use tokio::{sync::watch, task::JoinHandle};
use tracing::{Instrument as _, field::display};

use self::{
    converse::{Conversation, Link, Over, Shim},
    make::{Made, NotMade},
    orders::{Orders, Wants},
    report::Reporter,
    secrets::Courier,
    seen::{End, Seen},
    settle::Settler,
    silence::Silence,
    traced::Traced,
};
use crate::{
    capacity::Permit,
    control::{ControlError, ControlPlane},
    journal::Claim,
    keeper::Event,
    occupancy::Stay,
    reaper,
    shim_process::ShimProcess,
    station::{Shared, held},
};

/// How long a removal that is under way may take until the reaper is left to repeat it.
const ALONE_WITHIN: Duration = Duration::from_secs(20);

/// How far an attempt is when its supervisor begins.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It was claimed, and nothing of it exists.
    Claimed,
    /// An earlier agent had it and launched nothing; nothing of it exists any more.
    Again {
        /// Until when that agent held the lease.
        deadline: BootMicros,
    },
    /// An earlier agent had launched it.
    Found {
        /// The shim's process; nothing if it is gone.
        process: Option<ShimProcess>,
        /// The connection that was made to look after it.
        link: Option<Box<Link>>,
        /// What the shim said over it.
        status: Option<Box<Status>>,
        /// What is told of its sandbox.
        sandbox: SandboxInfo,
    },
}

/// Has a thread for blocking work do it, whose lines of the log are about the same attempt as the caller's.
fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let of_attempt = tracing::Span::current();
    tokio::task::spawn_blocking(move || of_attempt.in_scope(work))
}

/// One attempt and everything that is needed for it.
pub(crate) struct Attempt<C> {
    pub(crate) shared: Arc<Shared<C>>,
    pub(crate) claim: Claim,
    pub(crate) traced: Traced,
    pub(crate) origin: Origin,
    pub(crate) orders: watch::Receiver<Orders>,
    pub(crate) stay: Stay,
    pub(crate) permit: Permit,
}

/// How it went on.
enum Way {
    Reported,
    /// For a reason with that code; the sandbox may have ended before.
    Abandoned(&'static str, Option<Box<End>>),
    Left,
}

impl<C: ControlPlane> Attempt<C> {
    /// Works until nothing is left to do. Whatever is logged meanwhile says of which attempt.
    pub(crate) async fn run(self) {
        let AttemptId { run, fence } = self.claim.attempt;
        let (host, trace_id) = (self.shared.config.name.as_str(), self.traced.trace_id().map(display));
        let of_attempt = tracing::error_span!("attempt", %run, fence, host, trace_id);
        self.work().instrument(of_attempt).await;
    }

    async fn work(self) {
        let Self { shared, claim, traced, origin, mut orders, stay, permit } = self;
        let attempt = claim.attempt;
        let (mut shim, mut seen) = (Shim::default(), Seen::default());
        let (stay, traced) = (Arc::new(stay), Arc::new(traced));
        let way = match origin {
            Origin::Claimed | Origin::Again { .. } => {
                let found = if let Origin::Again { deadline } = origin { Some(deadline) } else { None };
                match make::make(&shared, (&claim, &traced), &stay, &mut orders, found).await {
                    Ok(Made { process, sandbox }) => {
                        shared.admission.made();
                        traced.prepared(None);
                        shim.process = Some(process);
                        converse(&shared, (&claim, &traced), &mut shim, &mut orders, (seen, sandbox), &stay).await
                    }
                    Err(not_made) => tell_not_made(&shared, (&claim, &traced), not_made).await,
                }
            }
            Origin::Found { process, link, status, sandbox } => {
                shim = Shim { process, link: link.map(|link| *link) };
                if let Some(status) = status {
                    seen.take(attempt.fence, &status);
                }
                converse(&shared, (&claim, &traced), &mut shim, &mut orders, (seen, sandbox), &stay).await
            }
        };
        match way {
            Way::Left => return,
            Way::Reported => {}
            // It was told to stop; what follows does not rely on it.
            Way::Abandoned(code, end) => {
                traced.given_up(code, end.as_deref());
                shim.kill();
            }
        }
        if shared.events.send(Event::Released(held(attempt))).await.is_err() {
            tracing::debug!("nobody keeps leases any more");
        }
        traced.conclude(shared.folder.attempt(attempt)).await;
        effect_of("shim.quit", shim.quit(shared.config.quit_within)).await;
        clear(&shared, stay).await;
        drop(permit);
    }
}

/// Removes everything of an attempt; what cannot be removed is left to the reaper.
async fn clear<C: ControlPlane>(shared: &Arc<Shared<C>>, stay: Arc<Stay>) {
    let Some(stay) = alone(stay).await else {
        tracing::error!("somebody still works on an attempt that is over; the reaper will see to it");
        return;
    };
    let task = spawn_blocking({
        let shared = shared.clone();
        move || reaper::clear_attempt(&shared, stay)
    });
    if let Err(error) = task.await {
        tracing::error!(%error, "removing an attempt");
    }
}

/// The stay, once the thread that settles the attempt has let it go.
async fn alone(mut stay: Arc<Stay>) -> Option<Stay> {
    let give_up_at = tokio::time::Instant::now() + ALONE_WITHIN;
    loop {
        stay = match Arc::try_unwrap(stay) {
            Ok(stay) => return Some(stay),
            Err(_) if tokio::time::Instant::now() >= give_up_at => return None,
            Err(shared) => shared,
        };
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn tell_not_made<C: ControlPlane>(
    shared: &Shared<C>,
    (claim, traced): (&Claim, &Traced),
    not_made: NotMade,
) -> Way {
    let attempt = claim.attempt;
    let outcome = match not_made {
        NotMade::Left => return Way::Left,
        NotMade::Lost(lost) => {
            tracing::warn!(?lost, "the lease was lost before the launch");
            return Way::Abandoned(lost.code(), None);
        }
        NotMade::Failed(outcome) => outcome,
    };
    tracing::info!(?outcome, "the sandbox was not made");
    if outcome.is_of_host() {
        shared.admission.not_made(outcome.message.as_deref().unwrap_or_default());
    }
    traced.prepared(Some(&outcome));
    let end = End::without_traces(outcome);
    match report::tell_end(shared, (attempt, traced), end, claim.first_log_seq).await {
        Ok(()) => Way::Reported,
        Err(error) => {
            log_unreported(&error);
            Way::Abandoned(error.code(), None)
        }
    }
}

fn log_unreported(error: &ControlError) {
    match error {
        ControlError::StaleFence => {
            tracing::info!("the lease is not held any more");
        }
        _ => tracing::error!(%error, "the end cannot be reported"),
    }
}

async fn converse<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    (claim, traced): (&Claim, &Traced),
    shim: &mut Shim,
    orders: &mut watch::Receiver<Orders>,
    (seen, sandbox): (Seen, SandboxInfo),
    stay: &Arc<Stay>,
) -> Way {
    let attempt = claim.attempt;
    let dir = shared.folder.attempt(attempt);
    let (seen, seen_by_reporter) = watch::channel(seen);
    let (wants, wants_of_reporter) = watch::channel(Wants::default());
    let reporter = Reporter {
        shared,
        attempt,
        dir: dir.clone(),
        first_log_seq: claim.first_log_seq,
        sandbox,
        traced,
        seen: seen_by_reporter,
        wants: &wants,
    };
    let silence = Silence::new(shared.config.silent_within, shim.link.is_some());
    let last_seen = seen.subscribe();
    let conversation = Conversation {
        dir: &dir,
        fence: attempt.fence,
        shim,
        orders,
        wants: wants_of_reporter,
        seen,
        silence,
        answer_until: None,
    };
    let courier = Courier { shared, attempt, seen: last_seen.clone(), wants: &wants };
    let over = conversation.run(reporter, courier, Settler { shared, stay, dir: &dir }).await;
    match over {
        Over::Reported => Way::Reported,
        Over::Left => Way::Left,
        Over::Abandoned(why) => {
            tracing::warn!(?why, "the attempt is given up");
            Way::Abandoned(why.code(), last_seen.borrow().end.clone().map(Box::new))
        }
    }
}
