//! API tokens: make, list, revoke, and who am I.

use holm_domain::{OrgId, TokenId, UnixMicros, access::Role};
use serde::{Deserialize, Serialize};

/// `POST /v1/tokens`: the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// A name for people: 1 to 128 characters.
    pub name: String,
    /// `admin`, `member` or `agent`.
    #[schema(value_type = String)]
    pub role: Role,
    /// How long it works, in seconds: 60 to 10 years; for ever where it is left out.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
}

/// A token as it is shown: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenView {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: TokenId,
    /// A name for people.
    pub name: String,
    /// What it may do.
    #[schema(value_type = String)]
    pub role: Role,
    /// When it was made, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub created_at: UnixMicros,
    /// When it stops working, if ever.
    #[schema(value_type = Option<i64>)]
    pub expires_at: Option<UnixMicros>,
    /// When it was revoked, if it was.
    #[schema(value_type = Option<i64>)]
    pub revoked_at: Option<UnixMicros>,
}

/// A new token; the only answer that ever bears the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewToken {
    /// The token.
    pub token: TokenView,
    /// The secret: `holm_` and 43 characters of base 64 (URL alphabet).
    pub secret: String,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewToken").field("token", &self.token).field("secret", &"[redacted]").finish()
    }
}

/// All tokens of the org.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenList {
    /// The tokens, newest first.
    pub tokens: Vec<TokenView>,
}

/// `GET /v1/whoami`: whose token this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WhoAmI {
    /// The token.
    pub token: TokenView,
    /// Its org.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// The name of the org.
    pub org_name: String,
    /// The version of the server.
    pub version: String,
}
