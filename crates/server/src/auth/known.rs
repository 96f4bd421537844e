//! Tokens, and keys of hosts, that were looked up a moment ago.
//!
//! What always holds: what was looked up is taken from here for at most [`TRUSTED_FOR`]; what was revoked on this server, not
//! even so long. So a revocation counts everywhere within that time, as it does for streams.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holm_domain::{AgentId, OrgId, access::Token, enrol::HostKey};
use tokio::time::Instant;

/// How long something is taken for what it was. It spares the look-up where requests follow one another closely.
pub const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How many of a kind are remembered; beyond it, they are looked up each time.
const KNOWN_MAX: usize = 4_096;

/// The tokens, by the digests of their secrets.
pub type KnownTokens = LookedUp<[u8; 32], Token>;
/// The keys of agents, with their orgs.
pub type KnownHostKeys = LookedUp<AgentId, (OrgId, HostKey)>;

/// What was looked up a moment ago.
#[derive(Debug)]
pub struct LookedUp<K, V>(Mutex<Inner<K, V>>);

#[derive(Debug)]
struct Inner<K, V> {
    found: HashMap<K, (V, Instant)>,
    revocations: u64,
}

/// A look-up that has begun: what it finds may be outdated by then.
#[derive(Debug)]
pub struct LookUp {
    at: Instant,
    revocations: u64,
}

struct Forget<'a, K, V, F: Fn(&K, &V) -> bool> {
    known: &'a LookedUp<K, V>,
    is_it: F,
}

impl<K, V, F: Fn(&K, &V) -> bool> Drop for Forget<'_, K, V, F> {
    fn drop(&mut self) {
        self.known.forget(&self.is_it);
    }
}

impl<K, V> Default for LookedUp<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Inner { found: HashMap::new(), revocations: 0 }))
    }
}

impl<K, V> LookedUp<K, V> {
    fn known(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what `is_it` picks when what is returned is dropped: whatever becomes of the request that revokes it.
    pub fn forget_after(&self, is_it: impl Fn(&K, &V) -> bool) -> impl Drop {
        Forget { known: self, is_it }
    }

    fn forget(&self, is_it: impl Fn(&K, &V) -> bool) {
        let mut known = self.known();
        known.revocations += 1;
        known.found.retain(|key, (value, _)| !is_it(key, value));
    }
}

impl<K: Eq + Hash, V: Clone> LookedUp<K, V> {
    /// What was looked up not long ago, else the beginning of a look-up.
    pub fn get(&self, key: &K) -> Result<V, LookUp> {
        let known = self.known();
        let fresh = known.found.get(key).filter(|(_, at)| at.elapsed() < TRUSTED_FOR);
        match fresh {
            Some((value, _)) => Ok(value.clone()),
            None => Err(LookUp { at: Instant::now(), revocations: known.revocations }),
        }
    }

    /// When the look-up began of which that is remembered.
    pub fn looked_up_at(&self, key: &K) -> Option<Instant> {
        self.known().found.get(key).map(|(_, at)| *at)
    }

    /// Remembers what a look-up found, unless something was revoked meanwhile: it may have been this.
    pub fn remember(&self, key: K, value: V, look_up: LookUp) {
        let mut known = self.known();
        if known.found.len() >= KNOWN_MAX {
            known.found.retain(|_, (_, at)| at.elapsed() < TRUSTED_FOR);
        }
        if known.found.len() < KNOWN_MAX && known.revocations == look_up.revocations {
            known.found.insert(key, (value, look_up.at));
        }
    }
}

#[cfg(test)]
mod tests {
    use holm_domain::ErrorCode;
    use http::StatusCode;

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn a_revocation_on_another_server_counts_within_a_second() {
        let world = World::new().await;
        assert_eq!(world.member().get("/v1/runs").await.status, StatusCode::OK);
        // As another server would: this one is told nothing.
        world.revoke_member_token().await;
        tokio::time::sleep(TRUSTED_FOR).await;
        world.member().get("/v1/runs").await.problem(ErrorCode::Unauthenticated);
    }

    #[tokio::test]
    async fn requests_that_follow_one_another_closely_need_one_look_up() {
        let world = World::new().await;
        let token = world.member_token().await;
        assert!(world.app().tokens.looked_up_at(&token.hash).is_none());
        let mut look_ups = std::collections::BTreeSet::new();
        for _ in 0..20 {
            assert_eq!(world.member().get("/v1/runs").await.status, StatusCode::OK);
            look_ups.insert(world.app().tokens.looked_up_at(&token.hash).unwrap());
        }
        assert!(look_ups.len() < 20, "each request looked the token up");
    }

    #[tokio::test]
    async fn what_was_read_before_a_revocation_is_not_remembered_after_it() {
        let world = World::new().await;
        let token = world.member_token().await;
        let known = KnownTokens::default();
        let look_up = known.get(&token.hash).unwrap_err();
        let forget = || known.forget(|_, other: &Token| other.id == token.id);
        forget();
        known.remember(token.hash, token.clone(), look_up);
        let again = known.get(&token.hash).unwrap_err();
        known.remember(token.hash, token.clone(), again);
        assert_eq!(known.get(&token.hash).unwrap().id, token.id);
        forget();
        known.get(&token.hash).unwrap_err();
    }
}
