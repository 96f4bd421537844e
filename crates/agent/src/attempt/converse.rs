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
use crate::{control::ControlPlane, shim_process::ShimProcess};

/// How often a shim that does not listen yet is tried again.
const CONNECT_EVERY: Duration = Duration::from_millis(2);

/// How long it may take to read what a shim had said before it died; it lies in this host's memory.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// How late a timer is where this agent did not run.
const HELD_UP_AFTER: Duration = Duration::from_secs(1);

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
    /// When it was told something that it answers, if it has not yet.
    asked_at: Option<Instant>,
}

impl Link {
    /// A connection over which nothing was told yet.
    pub(crate) fn new((commands, statuses): (Commands, Statuses)) -> Self {
        Self { commands, statuses, told: Told::default(), asked_at: None }
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
            return Link::new(connection);
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
        let mut silent_since = Instant::now();
        loop {
            let orders = *self.orders.borrow_and_update();
            if let Some(over) = self.heed(&orders).await {
                return over;
            }
            let is_unheard = self.shim.link.is_none() && self.shim.process.is_some();
            let silence_ends = self.silence_ends(silent_since);
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
                        silent_since = Instant::now();
                    }
                },
                link = connected(self.dir), if is_unheard => self.shim.link = Some(link),
                () = gone(&self.shim.process) => {
                    self.shim.process = None;
                    self.hear_last().await;
                }
                () = &mut settling, if self.shim.process.is_none() && !is_settled => is_settled = true,
                () = until(silence_ends), if self.shim.process.is_some() => {
                    silent_since = Instant::now();
                    self.end_silence(silence_ends, silent_since);
                }
            }
        }
    }

    /// When it is given up that the shim answers, or answers again; nothing while nothing was asked.
    fn silence_ends(&self, silent_since: Instant) -> Option<Instant> {
        match &self.shim.link {
            None => Some(silent_since + self.answer_within),
            Some(link) => link.asked_at.map(|asked_at| asked_at + self.silent_within),
        }
    }

    /// The shim has not answered in time: the lease of a sandbox for which nobody enforces it must not be held. Where this
    /// agent was itself held up, the shim may have been as well, and has its time once more.
    fn end_silence(&mut self, ended_at: Option<Instant>, now: Instant) {
        if let Some(link) = &mut self.shim.link {
            link.asked_at = Some(now);
        }
        if ended_at.is_some_and(|ended_at| now < ended_at + HELD_UP_AFTER) {
            tracing::error!(dir = %self.dir.display(), "a shim does not answer; it is killed");
            self.shim.kill();
        }
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
            link.asked_at = None;
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
        if let Some(link) = &mut self.shim.link {
            let due = link.told.due(self.fence, orders, &wants);
            if due.iter().any(|command| matches!(command, Command::Extend { .. })) {
                link.asked_at.get_or_insert_with(Instant::now);
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
