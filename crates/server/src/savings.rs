//! Which host keeps what becomes free for a run that waits for memory ([`holm_domain::schedule::SAVED_FOR_AFTER`]).
//!
//! What always holds: of the hosts that ask one server, one at a time saves for a run, and each for one run, the first of the
//! queue that it could execute; so a run that needs most of a host holds back one host and not the fleet. Where there are
//! several servers, as many hosts as those may save for it. Nothing of this is stored: a server that starts anew asks anew.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use holm_domain::{AgentId, RunId};
use tokio::time::Instant;

/// How long a host saves for a run without asking once more; then another may in its place.
const LASTS: Duration = Duration::from_secs(120);
/// For how many runs hosts save at once, in all orgs of a server. The others wait as if they had not waited for long yet.
pub const SAVINGS_MAX: usize = 1_024;

/// Who saves for which run.
#[derive(Debug, Default)]
pub struct Savings(Mutex<HashMap<RunId, Saving>>);

#[derive(Debug)]
struct Saving {
    host: AgentId,
    until: Instant,
}

impl Savings {
    /// Whether `host` saves for `run`: it does if it did, or nobody does.
    pub fn is_by(&self, host: AgentId, run: RunId) -> bool {
        let mut savings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match savings.get(&run) {
            Some(saving) if saving.host != host && saving.until > now => return false,
            Some(_) => {}
            None => {
                savings.retain(|_, saving| saving.until > now);
                if savings.len() >= SAVINGS_MAX {
                    return false;
                }
                tracing::info!(%run, agent = %host, "the host keeps what becomes free for a run that waits for memory");
            }
        }
        savings.insert(run, Saving { host, until: now + LASTS });
        true
    }

    /// Nobody saves for `run` any more: it was granted.
    pub fn end(&self, run: RunId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn host(number: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(number))
    }

    fn run(number: usize) -> RunId {
        RunId::from_uuid(Uuid::from_u128(number as u128))
    }

    #[tokio::test(start_paused = true)]
    async fn one_host_saves_for_a_run_until_it_asks_no_more() {
        let savings = Savings::default();
        assert!(savings.is_by(host(1), run(1)));
        tokio::time::advance(LASTS - Duration::from_millis(1)).await;
        assert!(!savings.is_by(host(2), run(1)) && savings.is_by(host(1), run(1)));
        tokio::time::advance(LASTS).await;
        assert!(savings.is_by(host(2), run(1)) && !savings.is_by(host(1), run(1)));
        savings.end(run(1));
        assert!(savings.is_by(host(1), run(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded_and_those_that_are_over_make_room() {
        let savings = Savings::default();
        assert!((0..SAVINGS_MAX).all(|number| savings.is_by(host(1), run(number))));
        assert!(!savings.is_by(host(1), run(SAVINGS_MAX)));
        tokio::time::advance(LASTS).await;
        assert!(savings.is_by(host(1), run(SAVINGS_MAX)));
    }
}
