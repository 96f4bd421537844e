//! How the secrets of a run come to the proxy of its sandbox: sealed for it alone, so that whoever carries them reads nothing.
//!
//! What always holds: each time it asks, the proxy makes a key of its own, and so does the server for each answer; what is sealed
//! opens with the one key that it was sealed for, once, and for the run and the lease that it was sealed for.
//!
//! The form of what is sealed: ChaCha20-Poly1305 (RFC 8439) under a key that HKDF with SHA-256 (RFC 5869) draws from what both
//! sides agree on by X25519 (RFC 7748) and from both public keys. Each key seals once, so the nonce is nothing but zeros.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holm_domain::{AgentId, InstanceId, RunId, secret::SecretName};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral},
    hkdf::{HKDF_SHA256, Salt},
    rand::SystemRandom,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

/// What the keys are for.
const PURPOSE: &[u8] = b"holm.run-secrets.1";
/// The length of a public key of X25519, in bytes.
const KEY_BYTES: usize = 32;

/// `POST /agent/v1/runs/{id}/secrets`: the secrets that the credentials of a run name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskSecrets {
    /// Who asks.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// Which process of the agent asks.
    #[schema(value_type = String)]
    pub instance: InstanceId,
    /// The number of the lease.
    pub fence: u64,
    /// For whom they are to be sealed.
    #[schema(value_type = String)]
    pub key: PublicKey,
}

/// A public key of X25519; in texts as base 64 (RFC 4648 §5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| D::Error::custom("a key is 32 bytes as 43 characters of base 64 (A-Z a-z 0-9 - _)"))
    }
}

/// A secret of a run, opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSecret {
    /// Its name.
    pub name: SecretName,
    /// Which of its values this is, from 1.
    pub version: u64,
    /// The value.
    #[serde(serialize_with = "exposed")]
    pub value: SecretString,
}

/// To be sealed at once.
fn exposed<S: Serializer>(value: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose_secret())
}

/// The secrets of a run, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SealedSecrets {
    /// For whom they are sealed.
    #[schema(value_type = String)]
    pub key: PublicKey,
    /// The key of who has sealed them.
    #[schema(value_type = String)]
    pub by: PublicKey,
    /// What is sealed, in base 64 (RFC 4648 §5).
    pub sealed: String,
}

/// For which run and lease something is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The run.
    pub run: RunId,
    /// The number of the lease.
    pub fence: u64,
}

/// Something was not sealed for this key, run and lease, or cannot be sealed. Which it is cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the secrets of the run cannot be sealed, or were not sealed for this key, run and lease")]
pub struct NotSealed;

/// Who asks for the secrets of a run.
#[derive(Debug)]
pub struct Asking {
    private: EphemeralPrivateKey,
    key: PublicKey,
}

impl Asking {
    /// Somebody with a key that nobody else has.
    pub fn new() -> Result<Self, NotSealed> {
        let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(|_| NotSealed)?;
        let key = private.compute_public_key().map_err(|_| NotSealed)?;
        let key = key.as_ref().try_into().map_err(|_| NotSealed)?;
        Ok(Self { private, key: PublicKey(key) })
    }

    /// For whom it is to be sealed.
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// Opens what was sealed for it.
    pub fn open(self, place: Place, sealed: &SealedSecrets) -> Result<Vec<RunSecret>, NotSealed> {
        let Self { private, key } = self;
        let mut text = Zeroizing::new(URL_SAFE_NO_PAD.decode(&sealed.sealed).map_err(|_| NotSealed)?);
        let cipher = agreed(private, sealed.by, Keys { asks: key, seals: sealed.by }, place)?;
        let opened = cipher.open_in_place(nonce(), associated(place), &mut text).map_err(|_| NotSealed)?;
        serde_json::from_slice(opened).map_err(|_| NotSealed)
    }
}

/// Seals the secrets of a run for who asks with `key`.
pub fn seal(key: PublicKey, place: Place, secrets: &[RunSecret]) -> Result<SealedSecrets, NotSealed> {
    let Asking { private, key: by } = Asking::new()?;
    let cipher = agreed(private, key, Keys { asks: key, seals: by }, place)?;
    let mut text = Zeroizing::new(serde_json::to_vec(secrets).map_err(|_| NotSealed)?);
    let tag = cipher.seal_in_place_separate_tag(nonce(), associated(place), &mut text).map_err(|_| NotSealed)?;
    let sealed = URL_SAFE_NO_PAD.encode([&text[..], tag.as_ref()].concat());
    Ok(SealedSecrets { key, by, sealed })
}

/// The public keys of both sides.
struct Keys {
    asks: PublicKey,
    seals: PublicKey,
}

/// The key that both sides come to.
fn agreed(private: EphemeralPrivateKey, other: PublicKey, keys: Keys, place: Place) -> Result<LessSafeKey, NotSealed> {
    let other = UnparsedPublicKey::new(&X25519, other.0);
    let drawn = agree_ephemeral(private, &other, |common| {
        let drawn = Salt::new(HKDF_SHA256, PURPOSE).extract(common);
        let place = place.to_string();
        let info = [&keys.asks.0[..], &keys.seals.0[..], place.as_bytes()];
        drawn.expand(&info, &CHACHA20_POLY1305).map(UnboundKey::from)
    });
    drawn.map_err(|_| NotSealed)?.map(LessSafeKey::new).map_err(|_| NotSealed)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn associated(place: Place) -> Aad<String> {
    Aad::from(place.to_string())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.fence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(run: u128, fence: u64) -> Place {
        Place { run: RunId::from_uuid(uuid::Uuid::from_u128(run)), fence }
    }

    fn secrets() -> Vec<RunSecret> {
        let secret =
            |name: &str, value: &str| RunSecret { name: name.parse().unwrap(), version: 3, value: value.into() };
        vec![secret("A", "geheim-eins"), secret("B", "geheim-zwei")]
    }

    #[test]
    fn what_is_sealed_opens_for_who_asked_and_for_nobody_else() {
        let (asking, other) = (Asking::new().unwrap(), Asking::new().unwrap());
        let sealed = seal(asking.key(), place(1, 2), &secrets()).unwrap();
        let told = serde_json::to_string(&sealed).unwrap();
        assert!(!told.contains("geheim"), "{told}");
        assert_eq!(other.open(place(1, 2), &sealed).unwrap_err(), NotSealed);
        let read: SealedSecrets = serde_json::from_str(&told).unwrap();
        let opened = asking.open(place(1, 2), &read).unwrap();
        let values: Vec<_> = opened.iter().map(|secret| secret.value.expose_secret()).collect();
        assert_eq!(values, ["geheim-eins", "geheim-zwei"]);
        assert!(!format!("{opened:?}").contains("geheim"), "{opened:?}");
    }

    #[test]
    fn it_opens_for_its_run_and_lease_alone_and_unchanged() {
        for wrong in [place(2, 2), place(1, 3)] {
            let asking = Asking::new().unwrap();
            let sealed = seal(asking.key(), place(1, 2), &secrets()).unwrap();
            assert_eq!(asking.open(wrong, &sealed).unwrap_err(), NotSealed, "{wrong}");
        }
        let asking = Asking::new().unwrap();
        let mut sealed = seal(asking.key(), place(1, 2), &secrets()).unwrap();
        sealed.sealed.replace_range(..1, if sealed.sealed.starts_with('A') { "B" } else { "A" });
        assert_eq!(asking.open(place(1, 2), &sealed).unwrap_err(), NotSealed);
        let none = PublicKey([0; KEY_BYTES]);
        assert_eq!(seal(none, place(1, 2), &secrets()).unwrap_err(), NotSealed, "a key that agrees on nothing");
    }

    #[test]
    fn nothing_is_sealed_twice_alike() {
        let asking = Asking::new().unwrap();
        let seal = || seal(asking.key(), place(1, 2), &secrets()).unwrap();
        assert_ne!(seal().sealed, seal().sealed);
    }
}
