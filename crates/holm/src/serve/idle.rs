//! When a server that was started in the background is no longer needed.

use std::time::Duration;

use holm_api::{client::Client, runs::ListRuns};
use tokio::time::Instant;

use holm_server::Activity;

/// The states in which a run keeps the server up.
const LIVE: &str = "queued,claimed,running,paused,resuming";
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Waits until nobody asked anything and nothing ran for `limit`. Requests of agents do not count: they never cease.
pub async fn idle_for(limit: Duration, client: &Client, activity: &Activity) {
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

/// Whether there are runs that have not ended. Who cannot tell stays.
async fn is_busy(client: &Client) -> bool {
    let query = ListRuns { state: Some(LIVE.to_owned()), limit: Some(1), ..ListRuns::default() };
    match client.run_list(&query).await {
        Ok(page) => !page.runs.is_empty(),
        Err(error) => {
            tracing::warn!(%error, "whether there are runs cannot be told");
            true
        }
    }
}
