//! Sealing: the root key seals data keys, a data key seals what is secret at rest (SPEC K3).
//!
//! What always holds: what was sealed for one row is refused in another's place, as another kind, and with one bit changed; a
//! key is erased from memory with its last clone, and no text shows it.
//!
//! The form of what is sealed: a byte for the form (1), 12 random bytes, and the secret under ChaCha20-Poly1305 (RFC 8439)
//! with the kind and the identity of its row as associated data.

use std::{fmt, sync::Arc};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::ids;

/// The length of a sealing key, in bytes.
pub const SEALING_KEY_BYTES: usize = 32;
const FORM: u8 = 1;

/// What is sealed: whatever has a row of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A data key.
    Envelope,
    /// The private half of a signing key.
    SigningKey,
    /// The value of a secret.
    Secret,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Kind::Envelope => "holm.envelope",
            Kind::SigningKey => "holm.signing-key",
            Kind::Secret => "holm.secret",
        }
    }
}

/// A key that seals: the root key, or a data key.
#[derive(Clone)]
pub struct SealingKey(Arc<Zeroizing<[u8; SEALING_KEY_BYTES]>>);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey([redacted])")
    }
}

/// It was not sealed by this key, or not for this place, or is damaged. Which of them cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was sealed by another key, for another place, or is damaged")]
pub struct NotOpened;

impl SealingKey {
    /// The key that these bytes are.
    pub fn new(bytes: Zeroizing<[u8; SEALING_KEY_BYTES]>) -> Self {
        Self(Arc::new(bytes))
    }

    /// A new one.
    pub fn draw() -> Self {
        Self::new(ids::secret_bytes())
    }

    /// The bytes of the key, for who keeps it.
    pub fn expose(&self) -> &[u8; SEALING_KEY_BYTES] {
        &self.0
    }

    fn cipher(&self) -> Result<LessSafeKey, NotOpened> {
        UnboundKey::new(&CHACHA20_POLY1305, &self.0[..]).map(LessSafeKey::new).map_err(|_| NotOpened)
    }

    /// Seals `secret` for the row `id` of its kind.
    pub fn seal(&self, kind: Kind, id: impl fmt::Display, secret: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let nonce: [u8; NONCE_LEN] = ids::nonce();
        let mut text = Zeroizing::new(secret.to_vec());
        let place = Aad::from(format!("{}.{id}", kind.as_str()));
        let tag = self.cipher()?.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), place, &mut text);
        let tag = tag.map_err(|_| NotOpened)?;
        Ok([&[FORM][..], &nonce, &text, tag.as_ref()].concat())
    }

    /// Opens what was sealed for the row `id` of its kind.
    pub fn open(&self, kind: Kind, id: impl fmt::Display, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
        let Some((&FORM, rest)) = sealed.split_first() else { return Err(NotOpened) };
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(NotOpened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened)?;
        let mut text = Zeroizing::new(text.to_vec());
        let place = Aad::from(format!("{}.{id}", kind.as_str()));
        let length = self.cipher()?.open_in_place(nonce, place, &mut text).map_err(|_| NotOpened)?.len();
        text.truncate(length);
        Ok(text)
    }

    /// Opens what is to be 32 bytes.
    pub fn open_key(
        &self,
        kind: Kind,
        id: impl fmt::Display,
        sealed: &[u8],
    ) -> Result<Zeroizing<[u8; SEALING_KEY_BYTES]>, NotOpened> {
        let opened = self.open(kind, id, sealed)?;
        let mut key = Zeroizing::new([0; SEALING_KEY_BYTES]);
        if opened.len() != key.len() {
            return Err(NotOpened);
        }
        key.copy_from_slice(&opened);
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_place_alone() {
        let (key, other) = (SealingKey::draw(), SealingKey::draw());
        let sealed = key.seal(Kind::SigningKey, "key_1", b"secret").unwrap();
        assert_eq!(key.open(Kind::SigningKey, "key_1", &sealed).unwrap()[..], b"secret"[..]);
        assert_ne!(sealed, key.seal(Kind::SigningKey, "key_1", b"secret").unwrap(), "never twice alike");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(key.open(Kind::SigningKey, "key_2", &sealed), Err(NotOpened));
        assert_eq!(key.open(Kind::Envelope, "key_1", &sealed), Err(NotOpened));
        assert_eq!(other.open(Kind::SigningKey, "key_1", &sealed), Err(NotOpened));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(Kind::SigningKey, "key_1", &changed), Err(NotOpened), "byte {at}");
            assert_eq!(key.open(Kind::SigningKey, "key_1", &sealed[..at]), Err(NotOpened), "cut at {at}");
        }
        assert_eq!(key.open_key(Kind::SigningKey, "key_1", &sealed), Err(NotOpened), "not as long as a key");
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = SealingKey::new(Zeroizing::new([7; 32]));
        assert_eq!(format!("{key:?}"), "SealingKey([redacted])");
    }
}
