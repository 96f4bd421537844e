//! Signed tokens as they are handed out: one that stands for a run under a lease, one that stands for a session of a host.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// A signed token: a JSON web token that its holder need not read. No text shows it.
#[derive(Clone, Deserialize)]
pub struct SignedToken(SecretString);

impl SignedToken {
    /// The token itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The token for who sends it.
    pub fn secret(&self) -> &SecretString {
        &self.0
    }
}

impl From<SecretString> for SignedToken {
    fn from(token: SecretString) -> Self {
        Self(token)
    }
}

impl std::fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignedToken([redacted])")
    }
}

impl PartialEq for SignedToken {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for SignedToken {}

/// For the answers that hand it out.
impl Serialize for SignedToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_token_is_not_shown_but_where_it_is_handed_out() {
        let token = SignedToken::from(SecretString::from("eyJ.geheim.x"));
        assert!(!format!("{token:?}").contains("geheim"));
        assert_eq!(serde_json::from_str::<SignedToken>(&serde_json::to_string(&token).unwrap()).unwrap(), token);
    }
}
