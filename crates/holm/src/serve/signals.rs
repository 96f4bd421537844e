//! Signals to a long-running process.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM, as a service manager sends it: end, and leave runs to the process that comes next.
    Leave,
    /// SIGINT, as Ctrl-C sends it: end, and end what runs.
    Drain,
}

/// Listens for signals from its making on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one. May be dropped while it waits.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            Some(()) = self.terminate.recv() => Asked::Leave,
            Some(()) = self.interrupt.recv() => Asked::Drain,
            else => std::future::pending().await,
        }
    }
}
