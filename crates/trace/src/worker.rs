//! What sends spans: batch after batch, each tried a few times.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Book, Settings, Span,
    export::{Exporter, Untaken},
    message,
};

/// The most spans of one request.
pub(crate) const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// How many times a batch is sent at most.
const ATTEMPTS_MAX: u32 = 3;
/// How long is waited before a batch is sent once more; four times as long the next time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long is waited at most, however long the collector asks for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Worker {
    settings: Settings,
    /// Made with the first batch, or when one is expected: reading the system's certificates takes longer than a whole run does.
    exporter: Option<Exporter>,
    spans: mpsc::Receiver<Span>,
    book: Arc<Book>,
    /// Cancelled when what waits is to be sent at once, and nothing more is taken.
    ending: CancellationToken,
    /// Cancelled when spans will come for which nobody will wait long.
    expected: CancellationToken,
    is_prepared: bool,
    is_failing: bool,
}

impl Worker {
    pub(crate) fn new(
        settings: Settings,
        spans: mpsc::Receiver<Span>,
        book: Arc<Book>,
        [ending, expected]: [CancellationToken; 2],
    ) -> Self {
        Self { settings, exporter: None, spans, book, ending, expected, is_prepared: false, is_failing: false }
    }

    /// Sends until it is to end and nothing waits any more. While there is no span it does nothing at all.
    pub(crate) async fn run(mut self) {
        loop {
            let batch = self.batch().await;
            if batch.is_empty() {
                return;
            }
            let request = message::request(&self.settings.resource, &batch);
            let spans = batch.len();
            drop(batch);
            let result = self.send(request).await;
            self.count(spans, result);
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
                () = self.expected.cancelled(), if !self.is_prepared => self.prepare(),
                () = at(until) => break,
            }
        }
        batch
    }

    /// Makes the exporter before there is anything to send. Why it cannot be made is told when it is needed.
    fn prepare(&mut self) {
        self.is_prepared = true;
        if self.exporter.is_none() {
            self.exporter = Exporter::new(&self.settings).ok();
        }
    }

    async fn send(&mut self, request: Bytes) -> Result<u64, Untaken> {
        let exporter = match self.exporter.take() {
            Some(exporter) => exporter,
            None => Exporter::new(&self.settings).map_err(Untaken::for_good)?,
        };
        let result = self.send_by(&exporter, request).await;
        self.exporter = Some(exporter);
        result
    }

    async fn send_by(&self, exporter: &Exporter, request: Bytes) -> Result<u64, Untaken> {
        let mut wait = RETRY_AFTER;
        for _ in 1..ATTEMPTS_MAX {
            let asked = match exporter.send(request.clone()).await {
                Err(Untaken { is_transient: true, retry_after, .. }) if !self.ending.is_cancelled() => retry_after,
                result => return result,
            };
            tokio::select! {
                () = tokio::time::sleep(wait.max(asked.unwrap_or_default().min(RETRY_AFTER_MAX))) => wait *= 4,
                () = self.ending.cancelled() => {}
            }
        }
        exporter.send(request).await
    }

    /// Counts what became of a batch. That none are taken is told when it begins and when it is over, and not each time.
    fn count(&mut self, spans: usize, result: Result<u64, Untaken>) {
        let refused = match &result {
            Ok(refused) => usize::try_from(*refused).unwrap_or(spans).min(spans),
            Err(_) => spans,
        };
        self.book.settle(spans, refused);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ENDPOINT, tests::read};

    #[tokio::test]
    async fn certificates_are_read_before_the_first_span_where_one_is_expected_and_not_elsewhere() {
        let settings = read(&[(ENDPOINT, "https://127.0.0.1:9")]).unwrap().unwrap();
        let (_queue, spans) = mpsc::channel(1);
        let (ending, expected) = (CancellationToken::new(), CancellationToken::new());
        let mut worker = Worker::new(settings, spans, Arc::default(), [ending, expected.clone()]);
        for is_expected in [false, true] {
            tokio::time::timeout(Duration::from_millis(50), worker.batch()).await.unwrap_err();
            assert_eq!(worker.exporter.is_some(), is_expected);
            expected.cancel();
        }
    }
}
