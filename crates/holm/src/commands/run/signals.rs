//! Ctrl-C, SIGTERM and SIGHUP while a run is attached: counted, never lost.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Counts the requests to end.
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    count: u32,
}

impl Interrupts {
    /// From now on these signals no longer end the process.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            count: 0,
        })
    }

    /// How many there were.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Waits for the next one, and counts it. May be dropped while it waits.
    pub async fn next(&mut self) -> u32 {
        let arrived = tokio::select! {
            arrived = self.interrupt.recv() => arrived,
            arrived = self.terminate.recv() => arrived,
            arrived = self.hangup.recv() => arrived,
        };
        if arrived.is_none() {
            // The driver of the signals has gone, and with it the process's main loop: nothing can arrive any more.
            std::future::pending::<()>().await;
        }
        self.count = self.count.saturating_add(1);
        self.count
    }

    /// Waits until there was one.
    pub async fn any(&mut self) {
        if self.count == 0 {
            self.next().await;
        }
    }

    /// Waits until there were three: whoever asks so often wants to leave, whatever becomes of the run.
    pub async fn third(&mut self) {
        while self.count < 3 {
            self.next().await;
        }
    }
}
