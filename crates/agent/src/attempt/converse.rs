//! Between the launch and the end: the shim is kept up to date, what it says is taken in, and the report goes on beside it.

use std::{path::Path, time::Duration};

use holm_domain::BootMicros;
use holm_shim::{
    client::{self, Commands, Statuses},
    protocol::{Command, Status},
};
use tokio::{sync::watch, time::Instant};

use super::{
    orders::{Lost, Orders, Told, Wants},
    report::{Reporter, Unreported},
    secrets::Courier,
    seen::Seen,
    settle::Settler,
    silence::{Silence, Silent},
};
use crate::{clock::boot_now, control::ControlPlane, shim_process::ShimProcess};

/// How often a shim that does not listen yet is tried again.
const CONNECT_EVERY: Duration = Duration::from_millis(2);

/// How soon after one connection the next is made at the earliest: a shim may drop each at once.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// How long a shim may take to take in what it is told; then another connection is tried. Less than a step of the wait for
/// its answer, which goes on meanwhile.
const SEND_WITHIN: Duration = Duration::from_millis(500);

/// How long the answer to a report may take once the lease is said to be lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long it may take to read what a shim had said before it died; it lies in this host's memory.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

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

impl Abandoned {
    /// For a trace.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Lost(lost) => lost.code(),
            Self::Unreported(Unreported::Expired) => Lost::Expired.code(),
            Self::Unreported(Unreported::Control(error)) => error.code(),
        }
    }
}

/// A connection to a shim.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) commands: Commands,
    pub(crate) statuses: Statuses,
    pub(crate) told: Told,
    /// Whether the status with which each connection begins has come. It answers nothing.
    is_greeted: bool,
}

impl Link {
    /// A connection over which nothing was told yet.
    pub(crate) fn new((commands, statuses): (Commands, Statuses), is_greeted: bool) -> Self {
        Self { commands, statuses, told: Told::default(), is_greeted }
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
    /// Sends commands; gives the connection up where that fails or takes too long.
    async fn send(&mut self, commands: &[Command]) {
        let Some(link) = &mut self.link else { return };
        let all = async {
            for command in commands {
                link.commands.send(command).await?;
            }
            Ok::<(), client::Error>(())
        };
        match tokio::time::timeout(SEND_WITHIN, all).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::debug!(%error, "the shim does not listen"),
            Err(_) => tracing::debug!("the shim does not read what it is told"),
        }
        self.link = None;
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
            tracing::debug!(%error, "the shim's statuses");
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

async fn connected(dir: &Path, from: Instant) -> Link {
    tokio::time::sleep_until(from).await;
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
    pub(crate) silence: Silence,
    /// Until when an answer to the report is waited for, once the lease is lost.
    pub(crate) answer_until: Option<Instant>,
}

impl Conversation<'_> {
    /// Goes on until the end was reported, or nothing more may be. Once the shim is gone, `settler` finds out how the sandbox
    /// ended, and makes sure that it did.
    pub(crate) async fn run<C: ControlPlane>(
        mut self,
        reporter: Reporter<'_, C>,
        courier: Courier<'_, C>,
        settler: Settler<'_, C>,
    ) -> Over {
        let mut report = std::pin::pin!(reporter.run());
        let mut courier = std::pin::pin!(courier.run());
        let mut settling = std::pin::pin!(settler.settle(self.seen.clone()));
        let mut is_settled = false;
        let mut connect_from = Instant::now();
        loop {
            let orders = *self.orders.borrow_and_update();
            if let Some(over) = self.heed(&orders).await {
                return over;
            }
            let is_alive = self.shim.process.is_some();
            let is_unheard = is_alive && self.shim.link.is_none();
            if is_unheard {
                self.expect_answer(orders.deadline);
            }
            // What the shim said comes before the time that it took.
            tokio::select! {
                biased;
                result = &mut report => return over(result),
                never = &mut courier => match never {},
                Ok(()) = self.orders.changed() => {}
                Ok(()) = self.wants.changed() => {}
                status = next_status(&mut self.shim.link) => match status {
                    Some(status) => self.take(&status),
                    None => self.shim.link = None,
                },
                link = connected(self.dir, connect_from), if is_unheard => {
                    self.shim.link = Some(link);
                    connect_from = Instant::now() + RECONNECT_AFTER;
                }
                () = gone(&self.shim.process) => {
                    self.shim.process = None;
                    self.break_silence("it is gone");
                    self.hear_last().await;
                }
                () = &mut settling, if !is_alive && !is_settled => is_settled = true,
                () = until(self.silence.next_at()), if is_alive => self.wait_on(),
                () = until(self.answer_until), if self.answer_until.is_some() => {}
            }
        }
    }

    /// From now on the shim owes an answer. Before its first word it makes the sandbox, up to the deadline.
    fn expect_answer(&mut self, deadline: BootMicros) {
        self.silence.begin(deadline.since(boot_now()), Instant::now());
    }

    /// The shim owes no answer any more.
    fn break_silence(&mut self, how: &str) {
        if let Some(silent) = self.silence.end() {
            tracing::info!(dir = %self.dir.display(), ?silent, how, "the silence of a shim is over");
        }
    }

    /// Goes on waiting for the shim, that it can be heard or that it answers, and kills it where that took too long: the lease
    /// of a sandbox for which nobody enforces it must not be held. One that waits for a disk is waited for.
    fn wait_on(&mut self) {
        let process = &self.shim.process;
        let waits_for_disk = || process.as_ref().is_some_and(ShimProcess::is_uninterruptible);
        let dir = self.dir.display();
        match self.silence.step(Instant::now(), waits_for_disk) {
            None | Some((Silent::WaitsForDisk, false)) => {}
            Some((Silent::WaitsForDisk, true)) => tracing::warn!(%dir, "a shim does not answer: it waits for a disk"),
            Some((Silent::Stuck, is_news)) => {
                if is_news {
                    tracing::error!(%dir, "a shim does not answer; it is killed");
                }
                self.shim.kill();
            }
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
        match self.shim.link.as_mut().map(|link| std::mem::replace(&mut link.is_greeted, true)) {
            Some(false) => self.silence.greeted(),
            _ => self.break_silence("it answers"),
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
            // The report may have ended the lease itself: the word of that overtook its answer.
            Some(Lost::Stale) if has_ended && self.answer_until.is_none_or(|until| Instant::now() < until) => {
                self.answer_until.get_or_insert_with(|| Instant::now() + ANSWER_WITHIN);
            }
            Some(lost) => {
                self.shim.send(&[Command::Stop {}]).await;
                return Some(Over::Abandoned(Abandoned::Lost(lost)));
            }
            None => {}
        }
        let wants = self.wants.borrow_and_update().clone();
        if let Some(link) = &mut self.shim.link {
            let due = link.told.due(self.fence, orders, &wants);
            if due.iter().any(|command| matches!(command, Command::Extend { .. })) {
                self.expect_answer(orders.deadline);
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
    use holm_shim::protocol::SOCKET_NAME;

    use super::*;

    #[tokio::test]
    async fn a_shim_that_does_not_read_is_not_waited_for_without_end() {
        let temp = tempfile::tempdir().unwrap();
        let _listener = tokio::net::UnixListener::bind(temp.path().join(SOCKET_NAME)).unwrap();
        let link = Link::new(client::connect(temp.path()).await.unwrap(), false);
        let mut shim = Shim { process: None, link: Some(link) };
        let sending = async {
            while shim.link.is_some() {
                shim.send(&vec![Command::Quit {}; 100]).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), sending).await.expect("it is given up");
    }
}
