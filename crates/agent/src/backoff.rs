//! Repeating what failed because the other side was not there: later each time, and never all agents at once.

use std::{future::Future, time::Duration};

use crate::control::ControlError;

/// Waits that grow from one failure to the next.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is about `first`; none is longer than `max`.
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// How long to wait after one more failure; `random` is from 0 to 1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let full = self.first.saturating_mul(2u32.saturating_pow(self.failures)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Waits after one more failure.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next(rand::random())).await;
    }

    /// The other side is there again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(5))
    }
}

/// Repeats `operation` while the control plane is not available, for at most `patience`. What it takes no more of now is not
/// lost, but waits for as long as it says, however often: the lease ends that.
pub(crate) async fn persist<T, F: Future<Output = Result<T, ControlError>> + Send>(
    what: &'static str,
    patience: Duration,
    mut operation: impl FnMut() -> F + Send,
) -> Result<T, ControlError> {
    let mut backoff = Backoff::default();
    let mut begun = tokio::time::Instant::now();
    loop {
        match operation().await {
            // An agent that the control plane has forgotten registers again while it asks for work.
            Err(error @ (ControlError::Unavailable(_) | ControlError::Unregistered)) if begun.elapsed() < patience => {
                tracing::debug!(what, %error, "trying again");
                backoff.wait().await;
            }
            Err(ControlError::Later { after, problem }) => {
                tracing::debug!(what, problem, "trying again later");
                tokio::time::sleep(after).await;
                begun = tokio::time::Instant::now();
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_limited_waits_as_long_as_it_is_told() {
        let (begun, mut calls) = (tokio::time::Instant::now(), 0);
        let result = persist("test", Duration::from_secs(1), || {
            calls += 1;
            let problem = "a rate".to_owned();
            let told =
                if calls <= 3 { Err(ControlError::Later { after: Duration::from_secs(9), problem }) } else { Ok(7) };
            async move { told }
        });
        assert_eq!(result.await, Ok(7));
        assert_eq!(begun.elapsed().as_secs(), 27, "beyond its patience");
    }

    #[test]
    fn waits_grow_up_to_the_limit_and_are_spread() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let waits: Vec<_> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        assert_eq!(backoff.next(0.0).as_millis(), 175);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
        for _ in 0..100 {
            assert!(backoff.next(0.5) <= Duration::from_millis(350), "no overflow after many failures");
        }
    }
}
