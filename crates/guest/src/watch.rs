//! What the workload tried to reach and never came to the host. Nothing but `lo` exists, so every such attempt fails by itself;
//! this only looks on and tells, so that a person can see what a program would have wanted.
//!
//! What always holds: nothing here decides anything, and it holds a bounded number of destinations, each told of
//! within a second and at most once a second.

mod dns;
mod packets;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use holm_wire::host_api::Refused;
use tokio::{io::unix::AsyncFd, sync::Notify};

/// The largest number of destinations that are remembered; what goes beyond is counted under one name.
const DESTINATIONS_MAX: usize = 256;
/// How often a destination is told of.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long the end of a run waits for the last of them to be told.
const FLUSH_DEADLINE: Duration = Duration::from_millis(500);
/// Stands for all destinations that were too many to be told apart; the shim calls its own so, too.
const MANY: &str = "*";

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Destination {
    host: String,
    port: u16,
    protocol: &'static str,
}

/// Counts of attempts that wait to be told.
#[derive(Default)]
pub struct Refusals {
    pending: RefCell<HashMap<Destination, u64>>,
    sources: RefCell<Vec<Rc<Source>>>,
    /// There is something to tell, or all was told.
    changed: Notify,
    /// Whether there is anyone to tell.
    connected: Cell<bool>,
    /// Whether someone waits for all to be told.
    flushing: Cell<bool>,
}

/// How many datagrams are taken from one source before others get their turn.
const DRAIN_MAX: usize = 1_024;

/// Where attempts are seen.
struct Source {
    socket: AsyncFd<OwnedFd>,
    /// Takes one datagram without waiting, and may answer it.
    look: fn(BorrowedFd<'_>) -> io::Result<Option<Destination>>,
}

impl Source {
    /// Takes what is there to be taken without waiting.
    fn drain(&self, refusals: &Refusals) {
        for _ in 0..DRAIN_MAX {
            match (self.look)(self.socket.get_ref().as_fd()) {
                Ok(Some(destination)) => refusals.add(destination),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }
}

impl Refusals {
    /// Begins to look, at questions for names too unless somebody else answers them. The workload must not have been started:
    /// the name server's port is taken before it can be.
    pub fn watch(self: &Rc<Self>, names: bool) -> io::Result<()> {
        let mut sources = packets::sources()?;
        if names {
            sources.push(dns::source()?);
        }
        for source in sources.into_iter().map(Rc::new) {
            self.sources.borrow_mut().push(source.clone());
            let refusals = self.clone();
            tokio::task::spawn_local(async move {
                while let Ok(mut ready) = source.socket.readable().await {
                    ready.clear_ready();
                    source.drain(&refusals);
                    tokio::task::yield_now().await;
                }
            });
        }
        Ok(())
    }

    fn add(&self, destination: Destination) {
        let mut pending = self.pending.borrow_mut();
        let known = pending.len() < DESTINATIONS_MAX || pending.contains_key(&destination);
        let destination =
            if known { destination } else { Destination { host: MANY.to_owned(), port: 0, protocol: "tcp" } };
        let count = pending.entry(destination).or_default();
        *count = count.saturating_add(1);
        drop(pending);
        self.changed.notify_waiters();
    }

    /// Tells all there is over `client`, for as long as the epoch lasts.
    pub async fn tell(&self, client: holm_wire::http2::Client) {
        self.connected.set(true);
        let _guard = Disconnect(self);
        loop {
            wait_until(&self.changed, || !self.pending.borrow().is_empty()).await;
            let batch: Vec<_> = self.pending.borrow().iter().map(|(to, &count)| (to.clone(), count)).collect();
            for (to, count) in batch {
                let refused = Refused { host: to.host.clone(), port: to.port, protocol: to.protocol.to_owned(), count };
                let told = client.empty(http::Method::POST, "/refused", Some(&refused)).await;
                if matches!(told, Err(holm_wire::http2::Error::Protocol(_))) {
                    return;
                }
                self.subtract(&to, count);
            }
            let hurried = wait_until(&self.changed, || self.flushing.get());
            // Whether the time is over or the end is near, what was seen meanwhile is told next.
            let _ = tokio::time::timeout(TELL_EVERY, hurried).await;
        }
    }

    /// Takes out what was told; what came in meanwhile stays.
    fn subtract(&self, to: &Destination, told: u64) {
        let mut pending = self.pending.borrow_mut();
        if let Some(count) = pending.get_mut(to) {
            *count -= told.min(*count);
            if *count == 0 {
                pending.remove(to);
            }
        }
        drop(pending);
        self.changed.notify_waiters();
    }

    /// Waits a little until everything seen so far was told, if there is anyone to tell.
    pub async fn flush(&self) {
        for source in self.sources.borrow().iter() {
            source.drain(self);
        }
        self.flushing.set(true);
        self.changed.notify_waiters();
        let told = wait_until(&self.changed, || self.pending.borrow().is_empty() || !self.connected.get());
        // What cannot be told in time is told later, or lost with the sandbox.
        let _ = tokio::time::timeout(FLUSH_DEADLINE, told).await;
        self.flushing.set(false);
    }
}

/// Completes once `condition` holds; it is looked at whenever `changed` is told.
async fn wait_until(changed: &Notify, condition: impl Fn() -> bool) {
    loop {
        let told = changed.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if condition() {
            return;
        }
        told.await;
    }
}

struct Disconnect<'a>(&'a Refusals);

impl Drop for Disconnect<'_> {
    fn drop(&mut self) {
        self.0.connected.set(false);
        self.0.changed.notify_waiters();
    }
}
