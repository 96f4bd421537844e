//! Between the launch and the end: the shim is kept up to date, what it says is taken in, and the report goes on beside it.

use std::{path::Path, time::Duration};

use holm_shim::{
    client::{self, Commands, Statuses},
    protocol::{Command, Status},
};
use tokio::{sync::watch, time::Instant};

use super::{
    orders::{Lost, Orders, Told, Wants},
    report::{Reporter, Unreported},
    seen::Seen,
    settle::Settler,
};
use crate::{clock::boot_now, control::ControlPlane, shim_process::ShimProcess};

/// How often a shim that does not listen yet is tried again.
const CONNECT_EVERY: Duration = Duration::from_millis(2);

/// How long it may take to read what a shim had said before it died; it lies in this host's memory.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// How often it is looked whether this agent has run while it waits for a shim.
const WAIT_STEP: Duration = Duration::from_secs(1);

/// How the conversation ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The control plane has the end.
    Reported,
    /// Nothing more can or may be reported.
    Abandoned(Abandoned),
    /// The agent goes away and the shim stays.
    Left,
}

/// Why nothing more is reported.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// The lease is lost.
    Lost(Lost),
    /// The report was not taken.
    Unreported(Unreported),
}

/// A connection to a shim.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) commands: Commands,
    pub(crate) statuses: Statuses,
    pub(crate) told: Told,
    /// Whether the shim has said something over it.
    has_spoken: bool,
    /// The wait for the answer to what it was told, if it has not answered yet.
    answer: Option<Wait>,
}

impl Link {
    /// A connection over which nothing was told yet.
    pub(crate) fn new((commands, statuses): (Commands, Statuses), has_spoken: bool) -> Self {
        Self { commands, statuses, told: Told::default(), has_spoken, answer: None }
    }
}

/// A wait for a shim. It is looked at in steps: where one of them took longer than two, this agent did not run, the shim may
/// not have run either, and it has its time once more.
#[derive(Debug, Clone, Copy)]
struct Wait {
    patience: Duration,
    over_at: Instant,
    next_at: Instant,
}

impl Wait {
    fn begin(patience: Duration, now: Instant) -> Self {
        Self { patience, over_at: now + patience, next_at: now + patience.min(WAIT_STEP) }
    }

    /// Takes the step that is due at `next_at`; returns whether the shim was waited for for long enough.
    fn step(&mut self, now: Instant) -> bool {
        if now > self.next_at + WAIT_STEP {
            *self = Self::begin(self.patience, now);
            return false;
        }
        let is_over = now >= self.over_at;
        *self = Self { next_at: self.over_at.min(now + WAIT_STEP), ..*self };
        is_over
    }
}

/// The shim as far as there is one.
#[derive(Debug, Default)]
pub(crate) struct Shim {
    /// Its process; nothing once it is gone.
    pub(crate) process: Option<ShimProcess>,
    /// The connection to it.
    pub(crate) link: Option<Link>,
}

impl Shim {
    async fn send(&mut self, commands: &[Command]) {
        let Some(link) = &mut self.link else { return };
        for command in commands {
            if let Err(error) = link.commands.send(command).await {
                tracing::debug!(%error, "the shim does not listen");
                self.link = None;
                return;
            }
        }
    }

    /// Kills the shim's process, for which nothing speaks any more.
    pub(crate) fn kill(&self) {
        if let Some(process) = &self.process
            && let Err(error) = process.kill()
        {
            tracing::error!(%error, "killing a shim");
        }
    }

    /// Tells the shim to end, and kills it if it does not.
    pub(crate) async fn quit(&mut self, patience: Duration) {
        self.send(&[Command::Quit {}]).await;
        if self.link.is_none() || tokio::time::timeout(patience, gone(&self.process)).await.is_err() {
            self.kill();
        }
        if self.process.is_some() && tokio::time::timeout(patience, gone(&self.process)).await.is_err() {
            tracing::error!("a shim does not die");
        }
        self.process = None;
    }
}

async fn next_status(link: &mut Option<Link>) -> Option<Status> {
    let Some(link) = link else { return std::future::pending().await };
    match link.statuses.next().await {
        Ok(Some(status)) => Some(status),
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(%error, "the shim's statuses");
            None
        }
    }
}

async fn gone(process: &Option<ShimProcess>) {
    let Some(process) = process else { return std::future::pending().await };
    if let Err(error) = process.gone().await {
        tracing::error!(%error, "watching a shim");
        std::future::pending::<()>().await;
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn connected(dir: &Path) -> Link {
    loop {
        if let Ok(connection) = client::connect(dir).await {
            return Link::new(connection, false);
        }
        tokio::time::sleep(CONNECT_EVERY).await;
    }
}

/// The conversation about one attempt.
pub(crate) struct Conversation<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) fence: u64,
    pub(crate) shim: &'a mut Shim,
    pub(crate) orders: &'a mut watch::Receiver<Orders>,
    pub(crate) wants: watch::Receiver<Wants>,
    pub(crate) seen: watch::Sender<Seen>,
    pub(crate) answer_within: Duration,
    pub(crate) silent_within: Duration,
}

impl Conversation<'_> {
    /// Goes on until the end was reported, or nothing more may be. Once the shim is gone, `settler` finds out how the sandbox
    /// ended, and makes sure that it did.
    pub(crate) async fn run<C: ControlPlane>(mut self, reporter: Reporter<'_, C>, settler: Settler<'_, C>) -> Over {
        let mut report = std::pin::pin!(reporter.run());
        let mut settling = std::pin::pin!(settler.settle(self.seen.clone()));
        let mut is_settled = false;
        let mut unheard = Wait::begin(self.answer_within, Instant::now());
        loop {
            let orders = *self.orders.borrow_and_update();
            if let Some(over) = self.heed(&orders).await {
                return over;
            }
            let is_unheard = self.shim.link.is_none() && self.shim.process.is_some();
            let next_at = self.shim.link.as_ref().map_or(Some(unheard), |link| link.answer).map(|wait| wait.next_at);
            // What the shim said comes before the time that it took.
            tokio::select! {
                biased;
                result = &mut report => return over(result),
                Ok(()) = self.orders.changed() => {}
                Ok(()) = self.wants.changed() => {}
                status = next_status(&mut self.shim.link) => match status {
                    Some(status) => self.take(&status),
                    None => {
                        self.shim.link = None;
                        unheard = Wait::begin(self.answer_within, Instant::now());
                    }
                },
                link = connected(self.dir), if is_unheard => self.shim.link = Some(link),
                () = gone(&self.shim.process) => {
                    self.shim.process = None;
                    self.hear_last().await;
                }
                () = &mut settling, if self.shim.process.is_none() && !is_settled => is_settled = true,
                () = until(next_at), if self.shim.process.is_some() => self.wait_on(&mut unheard),
            }
        }
    }

    /// Goes on waiting for the shim, that it can be heard or that it answers, and kills it where that took too long: the lease
    /// of a sandbox for which nobody enforces it must not be held. One that waits for a disk is waited for.
    fn wait_on(&mut self, unheard: &mut Wait) {
        let now = Instant::now();
        let wait = self.shim.link.as_mut().map_or(Some(unheard), |link| link.answer.as_mut());
        let Some(wait) = wait else { return };
        if !wait.step(now) {
            return;
        }
        *wait = Wait::begin(wait.patience, now);
        if self.shim.process.as_ref().is_some_and(ShimProcess::is_uninterruptible) {
            tracing::warn!(dir = %self.dir.display(), "a shim does not answer: it waits for a disk");
        } else {
            tracing::error!(dir = %self.dir.display(), "a shim does not answer; it is killed");
            self.shim.kill();
        }
    }

    /// How long the shim may take to answer. Before it says its first word it makes the sandbox, up to the deadline.
    fn patience(&self, orders: &Orders, link: &Link) -> Duration {
        let making = if link.has_spoken { Duration::ZERO } else { orders.deadline.since(boot_now()) };
        self.silent_within + making
    }

    /// Takes in what the shim had said before it died, up to the end of the connection.
    async fn hear_last(&mut self) {
        let mut link = self.shim.link.take();
        if link.is_none() {
            return;
        }
        let all = async {
            while let Some(status) = next_status(&mut link).await {
                self.take(&status);
            }
        };
        if tokio::time::timeout(LAST_WORDS_WITHIN, all).await.is_err() {
            tracing::warn!(dir = %self.dir.display(), "the connection to a shim outlives it");
        }
    }

    fn take(&mut self, status: &Status) {
        if let Some(link) = &mut self.shim.link {
            link.has_spoken = true;
            link.answer = None;
        }
        self.seen.send_if_modified(|seen| {
            let before = seen.clone();
            seen.take(self.fence, status);
            *seen != before
        });
    }

    async fn heed(&mut self, orders: &Orders) -> Option<Over> {
        if orders.leave {
            return Some(Over::Left);
        }
        let has_ended = self.seen.borrow().end.is_some();
        match orders.lost {
            // The sandbox is dead and only the report is left: it is taken or refused by its fence.
            Some(Lost::Expired) if has_ended => {}
            Some(lost) => {
                self.shim.send(&[Command::Stop {}]).await;
                return Some(Over::Abandoned(Abandoned::Lost(lost)));
            }
            None => {}
        }
        let wants = *self.wants.borrow_and_update();
        let patience = self.shim.link.as_ref().map(|link| self.patience(orders, link)).unwrap_or_default();
        if let Some(link) = &mut self.shim.link {
            let due = link.told.due(self.fence, orders, &wants);
            if due.iter().any(|command| matches!(command, Command::Extend { .. })) {
                link.answer.get_or_insert(Wait::begin(patience, Instant::now()));
            }
            self.shim.send(&due).await;
        }
        None
    }
}

fn over(result: Result<(), Unreported>) -> Over {
    match result {
        Ok(()) => Over::Reported,
        Err(unreported) => Over::Abandoned(Abandoned::Unreported(unreported)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps until the wait is over; each comes late by what `late` says of its number. Returns how long that took.
    fn over_after(patience: Duration, late: impl Fn(u32) -> Duration) -> Duration {
        let begun = Instant::now();
        let mut wait = Wait::begin(patience, begun);
        for number in 0..1_000 {
            let now = wait.next_at + late(number);
            if wait.step(now) {
                return now - begun;
            }
        }
        panic!("it has no end");
    }

    #[test]
    fn a_shim_is_waited_for_for_as_long_as_this_agent_runs() {
        for patience in [Duration::from_millis(300), WAIT_STEP, Duration::from_secs(30)] {
            assert_eq!(over_after(patience, |_| Duration::ZERO), patience);
        }
        let patience = Duration::from_secs(30);
        let slow = over_after(patience, |_| WAIT_STEP / 2);
        assert!(slow >= patience && slow < patience + WAIT_STEP, "{slow:?}");
        let frozen = |number| if number == 28 { Duration::from_secs(600) } else { Duration::ZERO };
        assert_eq!(over_after(patience, frozen), Duration::from_secs(29 + 600 + 30), "just before it was over");
    }
}
