//! Asking the control plane for work and directives.
//!
//! The claimer offers all that is free. While that is not all that the host has, it asks again every second, because what
//! is given back meanwhile may make fit what did not. There is one: of two that offer parts, none would hear of a run that
//! fits their sum. It is never interrupted: an answer that grants a lease must not be thrown away. The listener asks for
//! nothing, so it may be, and begins anew whenever there is more that it has to hear about. While something stands against
//! new runs ([`admission`]) the claimer does not ask; the listener and renewals go on.

use std::{sync::Arc, time::Duration};

use holm_api::agent::{HeldLease, Poll, Polled};
use holm_domain::{BootMicros, host::Capacity};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    admission,
    backoff::Backoff,
    capacity::{Offer, Pool},
    clock,
    control::{ControlError, ControlPlane},
    keeper::Event,
    registration,
    station::Shared,
};

/// The most runs in one answer.
const CLAIMS_MAX: u32 = 64;
/// How long the claimer waits that does not offer all that the host has.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// The shortest time between two requests of the listener, should the server answer them all at once.
const LISTEN_GAP: Duration = Duration::from_millis(10);
/// How long a lease is held until the listener asks about it: many that come together are asked about together, and a run
/// that is over by then not at all.
const LISTEN_AFTER: Duration = Duration::from_millis(25);
/// How long a request of the listener is left alone, however many leases come: it must get its answer.
const LISTEN_FOR: Duration = Duration::from_millis(250);

/// An answer, and everything that is needed to act on it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// When the request was sent.
    pub(crate) asked_at: BootMicros,
    /// The answer.
    pub(crate) polled: Polled,
    /// What was offered; nothing if no claims were asked for.
    pub(crate) offer: Option<Offer>,
    /// Told once the answer was acted on, so that the next request says what is held.
    pub(crate) done: oneshot::Sender<()>,
}

/// What the pollers need.
pub(crate) struct Poller<C> {
    pub(crate) shared: Arc<Shared<C>>,
    pub(crate) held: watch::Receiver<Vec<HeldLease>>,
}

impl<C> Clone for Poller<C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), held: self.held.clone() }
    }
}

impl<C: ControlPlane> Poller<C> {
    fn body(&self, wait: Duration, free: Capacity, claims_max: u32, held: Vec<HeldLease>) -> Poll {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(60_000);
        Poll { agent: self.shared.agent, instance: self.shared.instance(), wait_ms, claims_max, free, held }
    }

    async fn deliver(&self, asked_at: BootMicros, polled: Polled, offer: Option<Offer>) -> Result<(), Closed> {
        let (done, acted) = oneshot::channel();
        let answer = Answer { asked_at, polled, offer, done };
        self.shared.events.send(Event::Polled(answer)).await.map_err(|mpsc::error::SendError(_)| Closed)?;
        acted.await.map_err(|_| Closed)
    }

    /// Waits before what failed is tried again, and does what helps.
    async fn failed(&self, doing: &'static str, error: &ControlError, backoff: &mut Backoff) {
        tracing::warn!(doing, %error, "no answer");
        match error {
            ControlError::Unregistered => registration::renew(&self.shared).await,
            _ => {
                if let Some(why) = error.unheard()
                    && self.shared.events.send(Event::Unheard(why)).await.is_err()
                {
                    tracing::debug!("nobody keeps leases any more");
                }
            }
        }
        backoff.wait().await;
    }

    /// Offers what is free, for ever.
    pub(crate) async fn claim(self, pool: Pool) -> Closed {
        let mut backoff = Backoff::default();
        loop {
            let offer = pool.offer().await;
            if !self.shared.admission.look(&self.shared.config).is_empty() {
                drop(offer);
                tokio::time::sleep(admission::LOOK_EVERY).await;
                continue;
            }
            let held = self.held.borrow().clone();
            let wait_max = self.shared.config.poll_wait;
            let wait = if offer.is_all() { wait_max } else { wait_max.min(BUSY_WAIT) };
            let free = offer.capacity();
            let body = self.body(wait, free, free.runs.min(CLAIMS_MAX), held);
            let asked_at = clock::boot_now();
            match self.shared.control.poll(body).await {
                Ok(polled) => {
                    backoff.reset();
                    if let Err(closed) = self.deliver(asked_at, polled, Some(offer)).await {
                        return closed;
                    }
                }
                Err(error) => {
                    drop(offer);
                    self.failed("asking for work", &error, &mut backoff).await;
                }
            }
        }
    }

    /// Hears what is to be done with what is held, for ever.
    pub(crate) async fn listen(mut self) -> Closed {
        let mut backoff = Backoff::default();
        loop {
            let held = self.held.borrow_and_update().clone();
            if held.is_empty() {
                if let Err(closed) = more_than(&mut self.held, &held, LISTEN_AFTER).await {
                    return closed;
                }
                continue;
            }
            let body = self.body(self.shared.config.poll_wait, Capacity::default(), 0, held.clone());
            let asked_at = clock::boot_now();
            let answer = tokio::select! {
                answer = self.shared.control.poll(body) => answer,
                changed = more_than(&mut self.held, &held, LISTEN_FOR) => match changed {
                    Ok(()) => continue,
                    Err(closed) => return closed,
                },
            };
            match answer {
                Ok(polled) => {
                    backoff.reset();
                    if let Err(closed) = self.deliver(asked_at, polled, None).await {
                        return closed;
                    }
                    tokio::time::sleep(LISTEN_GAP).await;
                }
                Err(error) => {
                    self.failed("listening for directives", &error, &mut backoff).await;
                }
            }
        }
    }
}

/// The keeper is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// Waits until something is held that is not among `known`, for [`LISTEN_AFTER`] already, and at least for `least`.
async fn more_than(
    held: &mut watch::Receiver<Vec<HeldLease>>,
    known: &[HeldLease],
    least: Duration,
) -> Result<(), Closed> {
    let not_before = tokio::time::Instant::now() + least;
    loop {
        held.changed().await.map_err(|_| Closed)?;
        if held.borrow_and_update().iter().any(|lease| !known.contains(lease)) {
            tokio::time::sleep_until(not_before.max(tokio::time::Instant::now() + LISTEN_AFTER)).await;
            return Ok(());
        }
    }
}
