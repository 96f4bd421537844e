//! Run tokens: what an agent is given for each lease, and what one stands for.

use holm_domain::{AgentId, OrgId, ProjectId, RunId, UnixMicros};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// A signed token that stands for one run under one lease: a JSON web token that its holder need not read. No text shows it.
#[derive(Clone, Deserialize)]
pub struct RunToken(SecretString);

impl RunToken {
    /// The token itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<SecretString> for RunToken {
    fn from(token: SecretString) -> Self {
        Self(token)
    }
}

impl std::fmt::Debug for RunToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RunToken([redacted])")
    }
}

impl PartialEq for RunToken {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for RunToken {}

/// For the answers that hand it out.
impl Serialize for RunToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

/// `GET /v1/run-token`: what the run token of the request stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunTokenView {
    /// The run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// Its org.
    #[schema(value_type = String)]
    pub org: OrgId,
    /// Its project.
    #[schema(value_type = String)]
    pub project: ProjectId,
    /// The agent that holds the lease.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// The number of the lease.
    pub fence: u64,
    /// When the token expires, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub expires_at: UnixMicros,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_token_is_not_shown_but_where_it_is_handed_out() {
        let token = RunToken::from(SecretString::from("eyJ.geheim.x"));
        assert!(!format!("{token:?}").contains("geheim"));
        assert_eq!(serde_json::from_str::<RunToken>(&serde_json::to_string(&token).unwrap()).unwrap(), token);
    }
}
