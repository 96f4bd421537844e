//! The keys by which the deployment signs tokens: list, rotate, withdraw, and the set that verifies.

use holm_domain::{EnvelopeId, KeyId, UnixMicros, keys::KeyState};
use serde::{Deserialize, Serialize};

/// A signing key as it is shown: never its private half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyView {
    /// Its identity, the `kid` of the tokens that it signed.
    #[schema(value_type = String)]
    pub id: KeyId,
    /// `signing`, `verifying`, `retired` or `withdrawn`.
    #[schema(value_type = String)]
    pub state: KeyState,
    /// When it was made, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub created_at: UnixMicros,
    /// When the last token that it can have signed has expired, once another one signs.
    #[schema(value_type = Option<i64>)]
    pub retires_at: Option<UnixMicros>,
    /// When it was withdrawn, if it was.
    #[schema(value_type = Option<i64>)]
    pub withdrawn_at: Option<UnixMicros>,
}

/// `GET /v1/keys`: the signing keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyList {
    /// The keys, newest first.
    pub keys: Vec<KeyView>,
}

/// `POST /v1/keys/envelope/rotate`: the data key that took the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnvelopeRotated {
    /// The new data key.
    #[schema(value_type = String)]
    pub id: EnvelopeId,
    /// How many secrets were sealed anew.
    pub resealed: u32,
}

/// `GET /.well-known/jwks.json`: the keys that verify, as a JSON Web Key Set (RFC 7517 §5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeySet {
    /// The keys, newest first.
    pub keys: Vec<PublicKey>,
}

/// A public key of Ed25519 (RFC 8037 §2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PublicKey {
    /// `OKP`.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// `EdDSA`.
    pub alg: String,
    /// `sig`.
    #[serde(rename = "use")]
    pub used_for: String,
    /// The identity of the key.
    #[schema(value_type = String)]
    pub kid: KeyId,
    /// The key, in base 64 (RFC 4648 §5).
    pub x: String,
}
