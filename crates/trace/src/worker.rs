//! The task that sends spans: batch after batch, each tried a few times.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Counters, Span,
    export::{Exporter, Untaken},
    message,
    settings::ResourceSettings,
};

/// The most spans of one request.
pub(crate) const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// How many times a batch is sent at most.
const ATTEMPTS_MAX: u32 = 3;
/// How long is waited before a batch is sent once more; four times as long the next time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) struct Worker {
    pub(crate) exporter: Exporter,
    pub(crate) resource: ResourceSettings,
    pub(crate) spans: mpsc::Receiver<Span>,
    pub(crate) counters: Arc<Counters>,
    /// Cancelled when what waits is to be sent at once, and nothing more is taken.
    pub(crate) ending: CancellationToken,
    pub(crate) is_failing: bool,
}

impl Worker {
    /// Sends until it is to end and nothing waits any more. While there is no span it does nothing at all.
    pub(crate) async fn run(mut self) {
        loop {
            let batch = self.batch().await;
            if batch.is_empty() {
                return;
            }
            let request = message::request(&self.resource, &batch);
            let result = self.send(request).await;
            self.count(batch.len(), result);
        }
    }

    /// The next spans; none at the end.
    async fn batch(&mut self) -> Vec<Span> {
        let mut batch = Vec::new();
        let mut until: Option<Instant> = None;
        while batch.len() < BATCH_MAX {
            if self.ending.is_cancelled() {
                self.spans.close();
            }
            tokio::select! {
                biased;
                span = self.spans.recv() => match span {
                    Some(span) => {
                        batch.push(span);
                        until.get_or_insert_with(|| Instant::now() + BATCH_WITHIN);
                    }
                    None => break,
                },
                () = self.ending.cancelled(), if !self.spans.is_closed() => {}
                () = at(until) => break,
            }
        }
        batch
    }

    async fn send(&self, request: Vec<u8>) -> Result<u64, Untaken> {
        let mut wait = RETRY_AFTER;
        for _ in 1..ATTEMPTS_MAX {
            match self.exporter.send(request.clone()).await {
                Err(Untaken { is_transient: true, .. }) if !self.ending.is_cancelled() => {}
                result => return result,
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait *= 4,
                () = self.ending.cancelled() => {}
            }
        }
        self.exporter.send(request).await
    }

    /// Counts what became of a batch. That none are taken is told when it begins and when it is over, and not each time.
    fn count(&mut self, spans: usize, result: Result<u64, Untaken>) {
        let refused = match &result {
            Ok(refused) => usize::try_from(*refused).unwrap_or(spans).min(spans),
            Err(_) => spans,
        };
        Counters::add(&self.counters.failed, refused);
        Counters::add(&self.counters.sent, spans - refused);
        let problem = match result {
            Ok(0) => None,
            Ok(_) => Some("the collector takes only a part of them".to_owned()),
            Err(Untaken { problem, .. }) => Some(problem),
        };
        match (problem, self.is_failing) {
            (Some(problem), false) => {
                tracing::warn!(problem, "spans are lost: the collector does not take them; that it does again is told");
                self.is_failing = true;
            }
            (None, true) => {
                tracing::info!("the collector takes spans again");
                self.is_failing = false;
            }
            _ => {}
        }
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
