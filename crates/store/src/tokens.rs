//! API tokens: only the digest of a secret is stored.

use holm_domain::{OrgId, TokenId, UnixMicros, access::Token};

use crate::{Backend, Result, Store};

/// The largest number of tokens of an org that are not revoked, and the most that are listed.
pub const TOKENS_MAX: u32 = 1_000;

impl Store {
    /// Stores a new token; a conflict if its id or its hash is taken, not found if there is no such org.
    pub async fn token_create(&self, token: &Token) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.token_create(token),
        }
    }

    /// The token whose secret has that SHA-256, of whichever org: this is how a request finds its org. It may be expired or
    /// revoked.
    pub async fn token_by_hash(&self, hash: &[u8; 32]) -> Result<Option<Token>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.token_by_hash(hash)),
        }
    }

    /// The newest [`TOKENS_MAX`] tokens of the org: first those that are not revoked, each group newest first.
    pub async fn token_list(&self, org: OrgId) -> Result<Vec<Token>> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.token_list(org)),
        }
    }

    /// Revokes a token. One that was revoked before keeps its time.
    pub async fn token_revoke(&self, org: OrgId, id: TokenId, now: UnixMicros) -> Result<()> {
        match &self.backend {
            Backend::Memory(memory) => memory.token_revoke(org, id, now),
        }
    }
}
