//! The keys by which a deployment signs tokens: which of them signs, which verify, and until when.
//!
//! What always holds: a token that was signed verifies until it expires, however often keys are rotated meanwhile; one whose
//! key was withdrawn does not verify any more; no more than one key signs.
//!
//! Left out: the keys themselves, and how they are sealed (`holm-server`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{KeyId, UnixMicros};

/// For how long servers trust what they read of the keys: one that was rotated may sign for as long.
pub const KEYS_TRUSTED_FOR: Duration = Duration::from_secs(1);
/// The longest life of a signed token: that of a run, twice its lease.
pub const SIGNED_LIFE_MAX: Duration = Duration::from_secs(7_200);

/// What of a signing key everybody may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTimes {
    /// Its identity.
    pub id: KeyId,
    /// When it was made.
    pub created_at: UnixMicros,
    /// When nothing that it signed lives any more; nothing while it may still sign.
    pub retires_at: Option<UnixMicros>,
    /// When it was withdrawn, if it was.
    pub withdrawn_at: Option<UnixMicros>,
}

/// What becomes of what a key signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It signs, and what it signed is good.
    Signing,
    /// Another one signs; what it signed is good until it expires.
    Verifying,
    /// Nothing that it signed lives any more.
    Retired,
    /// What it signed is refused.
    Withdrawn,
}

impl KeyState {
    /// The word used in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyState::Signing => "signing",
            KeyState::Verifying => "verifying",
            KeyState::Retired => "retired",
            KeyState::Withdrawn => "withdrawn",
        }
    }
}

impl KeyTimes {
    /// What becomes of what the key signed, at `now`.
    pub fn state(&self, now: UnixMicros) -> KeyState {
        match (self.withdrawn_at, self.retires_at) {
            (Some(_), _) => KeyState::Withdrawn,
            (None, None) => KeyState::Signing,
            (None, Some(at)) if now < at => KeyState::Verifying,
            (None, Some(_)) => KeyState::Retired,
        }
    }

    /// Whether what the key signed is good at `now`.
    pub fn verifies(&self, now: UnixMicros) -> bool {
        matches!(self.state(now), KeyState::Signing | KeyState::Verifying)
    }
}

/// When nothing lives any more that was signed by a key that is rotated at `now`: servers that trust what they read sign with
/// it for a moment more, and their clocks are apart by at most `margin`.
pub fn retires_at(now: UnixMicros, margin: Duration) -> UnixMicros {
    now.plus(KEYS_TRUSTED_FOR).plus(SIGNED_LIFE_MAX).plus(margin)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::limits::LEASE_TTL_MAX;

    fn key() -> KeyTimes {
        KeyTimes { id: KeyId::from_uuid(Uuid::nil()), created_at: UnixMicros(0), retires_at: None, withdrawn_at: None }
    }

    #[test]
    fn a_key_verifies_until_the_last_token_that_it_can_have_signed_has_expired() {
        let (now, margin) = (UnixMicros(1_000_000), Duration::from_secs(5));
        let rotated = KeyTimes { retires_at: Some(retires_at(now, margin)), ..key() };
        // Signed by a server that did not know yet, and whose clock is ahead.
        let last = now.plus(KEYS_TRUSTED_FOR).plus(margin).plus(SIGNED_LIFE_MAX);
        assert_eq!(key().state(now), KeyState::Signing);
        assert_eq!(rotated.state(UnixMicros(last.0 - 1)), KeyState::Verifying);
        assert_eq!(rotated.state(last), KeyState::Retired);
        assert!(rotated.verifies(now) && !rotated.verifies(last));
    }

    #[test]
    fn no_run_token_lives_longer_than_any_signed_token() {
        assert_eq!(SIGNED_LIFE_MAX, LEASE_TTL_MAX * 2);
    }

    #[test]
    fn what_was_withdrawn_never_verifies_again() {
        for retires_at in [None, Some(UnixMicros(5)), Some(UnixMicros(100))] {
            let withdrawn = KeyTimes { retires_at, withdrawn_at: Some(UnixMicros(7)), ..key() };
            assert_eq!(withdrawn.state(UnixMicros(10)), KeyState::Withdrawn);
            assert!(!withdrawn.verifies(UnixMicros(10)));
        }
    }
}
