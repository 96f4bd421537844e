//! Tokens that were looked up a moment ago.
//!
//! What always holds: a token is taken from here for at most [`TRUSTED_FOR`]; one that was revoked on this server, not even
//! so long. So a revocation counts everywhere within that time, as it does for streams.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holm_domain::{TokenId, access::Token};
use tokio::time::Instant;

/// How long a token is taken for what it was. It spares the look-up where requests follow one another closely.
pub const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// How many tokens are remembered; beyond it, they are looked up each time.
const TOKENS_MAX: usize = 4_096;

type Hash = [u8; 32];

/// The tokens, by the digests of their secrets.
#[derive(Debug, Default)]
pub struct KnownTokens(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    tokens: HashMap<Hash, (Token, Instant)>,
    revocations: u64,
}

/// A look-up that has begun: what it finds may be outdated by then.
#[derive(Debug)]
pub struct LookUp {
    at: Instant,
    revocations: u64,
}

struct Forget<'a> {
    known: &'a KnownTokens,
    id: TokenId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.known.forget(self.id);
    }
}

impl KnownTokens {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token if it was looked up not long ago, else the beginning of a look-up.
    pub fn get(&self, hash: &Hash) -> Result<Token, LookUp> {
        let known = self.known();
        let fresh = known.tokens.get(hash).filter(|(_, at)| at.elapsed() < TRUSTED_FOR);
        match fresh {
            Some((token, _)) => Ok(token.clone()),
            None => Err(LookUp { at: Instant::now(), revocations: known.revocations }),
        }
    }

    /// When the look-up began of which the token is remembered.
    pub fn looked_up_at(&self, hash: &Hash) -> Option<Instant> {
        self.known().tokens.get(hash).map(|(_, at)| *at)
    }

    /// Forgets a token when what is returned is dropped: whatever becomes of the request that revokes it.
    pub fn forget_after(&self, id: TokenId) -> impl Drop {
        Forget { known: self, id }
    }

    /// Remembers what a look-up found, unless a token was revoked meanwhile: it may have been this one.
    pub fn remember(&self, token: &Token, look_up: LookUp) {
        let mut known = self.known();
        if known.tokens.len() >= TOKENS_MAX {
            known.tokens.retain(|_, (_, at)| at.elapsed() < TRUSTED_FOR);
        }
        if known.tokens.len() < TOKENS_MAX && known.revocations == look_up.revocations {
            known.tokens.insert(token.hash, (token.clone(), look_up.at));
        }
    }

    fn forget(&self, id: TokenId) {
        let mut known = self.known();
        known.revocations += 1;
        known.tokens.retain(|_, (token, _)| token.id != id);
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
        known.forget(token.id);
        known.remember(&token, look_up);
        let again = known.get(&token.hash).unwrap_err();
        known.remember(&token, again);
        assert_eq!(known.get(&token.hash).unwrap().id, token.id);
        known.forget(token.id);
        known.get(&token.hash).unwrap_err();
    }
}
