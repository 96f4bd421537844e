//! When a server that was started in the background is no longer needed.

use std::time::Duration;

use holm_api::{client::Client, runs::ListRuns};
use tokio::time::Instant;

use holm_server::Activity;

/// The states in which a run keeps the server up.
const LIVE: &str = "queued,claimed,running,finishing,paused,resuming";
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long nobody may have asked anything until nobody is expected to.
const SETTLE_QUIET: Duration = Duration::from_millis(100);
/// How long those who follow runs are waited for at most.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// Waits until nobody asked anything and nothing ran for `limit`, for ever where there is none. Requests of agents do not
/// count: they never cease.
pub async fn idle_for(limit: Option<Duration>, client: &Client, activity: &Activity) {
    let Some(limit) = limit else { return std::future::pending().await };
    let look_every = LOOK_EVERY.min(limit / 4).max(Duration::from_millis(20));
    let mut seen = activity.requests();
    let mut quiet_since = Instant::now();
    loop {
        tokio::time::sleep(look_every).await;
        let now = activity.requests();
        // A request that goes on, such as one that follows a log, counts for as long as it does.
        if now != seen || activity.open() > 0 {
            seen = now;
            quiet_since = Instant::now();
            continue;
        }
        if is_busy(client).await {
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() >= limit {
            return;
        }
        // The look at the runs was a request as well, this process's own.
        seen = now + 1;
    }
}

/// Lets those who follow runs that have just ended hear of it, and ask how: waits until nobody has asked anything for a
/// moment, or for [`SETTLE_MAX`].
pub async fn settled(activity: &Activity) {
    let begun = Instant::now();
    let (mut seen, mut quiet_since) = (activity.requests(), begun);
    while quiet_since.elapsed() < SETTLE_QUIET && begun.elapsed() < SETTLE_MAX {
        tokio::time::sleep(SETTLE_QUIET / 10).await;
        let now = activity.requests();
        if now != seen || activity.open() > 0 {
            (seen, quiet_since) = (now, Instant::now());
        }
    }
}

/// Whether there are runs that have not ended. Who cannot tell stays.
async fn is_busy(client: &Client) -> bool {
    let query = ListRuns { state: Some(LIVE.to_owned()), limit: Some(1), ..ListRuns::default() };
    match client.run_list(&query).await {
        Ok(page) => !page.runs.is_empty() || !page.unreadable.is_empty(),
        Err(error) => {
            tracing::warn!(%error, "whether there are runs cannot be told");
            true
        }
    }
}
