//! The one place of the server in which identities and secrets are drawn.
//!
//! UUIDs of version 7 carry the time at which they were drawn, so ids sort by age; nothing rests on that order. Secrets
//! come from the thread's cryptographic generator, which is seeded by the kernel.

use base64::Engine as _;
use holm_domain::{EnvelopeId, KeyId, OrgId, ProjectId, RunId, SecretId, SignedTokenId, TokenId};
use rand::Rng as _;
use secrecy::SecretString;
use uuid::Uuid;
use zeroize::Zeroizing;

/// The text before the secret part of every token.
pub const SECRET_PREFIX: &str = "holm_";
/// The length of the random part of a secret, in bytes.
pub const SECRET_BYTES: usize = 32;

#[allow(clippy::disallowed_methods)]
fn draw() -> Uuid {
    Uuid::now_v7()
}

/// A new identity of an org.
pub fn org() -> OrgId {
    OrgId::from_uuid(draw())
}

/// A new identity of a project.
pub fn project() -> ProjectId {
    ProjectId::from_uuid(draw())
}

/// A new identity of a run.
pub fn run() -> RunId {
    RunId::from_uuid(draw())
}

/// A new identity of a token.
pub fn token() -> TokenId {
    TokenId::from_uuid(draw())
}

/// A new identity of a signing key.
pub fn key() -> KeyId {
    KeyId::from_uuid(draw())
}

/// A new identity of a data key.
pub fn envelope() -> EnvelopeId {
    EnvelopeId::from_uuid(draw())
}

/// A new identity of a secret of an org.
pub fn secret_id() -> SecretId {
    SecretId::from_uuid(draw())
}

/// A new identity of a signed token.
pub fn signed_token() -> SignedTokenId {
    SignedTokenId::from_uuid(draw())
}

/// The bytes of a new key.
pub fn secret_bytes() -> Zeroizing<[u8; SECRET_BYTES]> {
    let mut bytes = Zeroizing::new([0u8; SECRET_BYTES]);
    rand::rng().fill_bytes(&mut bytes[..]);
    bytes
}

/// Bytes that are drawn once for each thing that is sealed.
pub fn nonce<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0u8; LENGTH];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// A new secret of a token: `holm_` and 43 characters of base 64 (RFC 4648 §5).
pub fn secret() -> SecretString {
    let mut bytes = [0u8; SECRET_BYTES];
    rand::rng().fill_bytes(&mut bytes);
    let digits = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    SecretString::from(format!("{SECRET_PREFIX}{digits}"))
}

/// The text before the secret part of every join token.
pub const JOIN_PREFIX: &str = "holm_join_";

/// A new secret of a join token: `holm_join_` and 43 characters of base 64.
pub fn join_secret() -> SecretString {
    let digits = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&secret_bytes()[..]);
    SecretString::from(format!("{JOIN_PREFIX}{digits}"))
}

/// A name of a server while it runs.
pub fn server() -> String {
    draw().simple().to_string()
}

/// A number under which one request stands in the log.
pub fn request() -> String {
    draw().simple().to_string()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn secrets_have_their_form_and_differ() {
        let (one, other) = (secret(), secret());
        assert_eq!(one.expose_secret().len(), SECRET_PREFIX.len() + 43);
        assert!(one.expose_secret().starts_with(SECRET_PREFIX));
        assert_ne!(one.expose_secret(), other.expose_secret());
    }
}
