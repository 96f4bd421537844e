//! How much of something is taken in a second.

use std::time::Duration;

use tokio::time::Instant;

/// Counts what is taken, and waits when that is too much for a second.
#[derive(Debug)]
pub struct Pace {
    most: u32,
    since: Instant,
    count: u32,
}

impl Pace {
    /// At most `most` in a second, from now on.
    pub fn new(most: u32) -> Self {
        Self { most, since: Instant::now(), count: 0 }
    }

    /// Counts one, and waits where it was the last of its second.
    pub async fn wait(&mut self) {
        self.count += 1;
        let second = self.since + Duration::from_secs(1);
        if Instant::now() >= second {
            *self = Self::new(self.most);
        } else if self.count >= self.most {
            tokio::time::sleep_until(second).await;
        }
    }
}
