//! Hosts as they are shown.

use std::collections::BTreeMap;

use holm_domain::{
    AgentId, TokenId, UnixMicros,
    enrol::HostPublicKey,
    host::{Capacity, Cordon, RuntimeInfo, refusal},
};
use serde::{Deserialize, Serialize};

/// With what the agent of a host says who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "with", rename_all = "snake_case")]
pub enum HostIdentity {
    /// A token with the role `agent`.
    Token {
        /// Which.
        #[schema(value_type = String)]
        token: TokenId,
    },
    /// A key of its own, with which it was enrolled.
    Key {
        /// Its public half (Ed25519), in base 64.
        #[schema(value_type = String)]
        key: HostPublicKey,
        /// When it was enrolled, in microseconds since the Unix epoch.
        #[schema(value_type = i64)]
        enrolled_at: UnixMicros,
        /// When it was revoked, if it was.
        #[schema(value_type = Option<i64>)]
        revoked_at: Option<UnixMicros>,
    },
}

/// `POST /v1/hosts/{id}/revoke`: the key that is refused from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostKeyView {
    /// The agent of the host.
    #[schema(value_type = String)]
    pub agent: AgentId,
    /// The public half of its key, in base 64.
    #[schema(value_type = String)]
    pub key: HostPublicKey,
    /// When it was enrolled, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub enrolled_at: UnixMicros,
    /// When it was revoked.
    #[schema(value_type = Option<i64>)]
    pub revoked_at: Option<UnixMicros>,
}

/// `POST /v1/hosts/joins`: the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJoin {
    /// A name for people, such as that of the host: 1 to 128 characters.
    pub name: String,
    /// How long the token works, in seconds: 60 to 7 days; an hour where it is left out.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
}

/// A join token as it is shown: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinView {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: TokenId,
    /// A name for people.
    pub name: String,
    /// When it was made, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub created_at: UnixMicros,
    /// When it stops working.
    #[schema(value_type = i64)]
    pub expires_at: UnixMicros,
    /// When it was revoked, if it was.
    #[schema(value_type = Option<i64>)]
    pub revoked_at: Option<UnixMicros>,
    /// When it enrolled a host, if it did.
    #[schema(value_type = Option<i64>)]
    pub used_at: Option<UnixMicros>,
    /// The agent that it enrolled.
    #[schema(value_type = Option<String>)]
    pub agent: Option<AgentId>,
}

/// A new join token; the only answer that ever bears the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewJoin {
    /// The token.
    pub join: JoinView,
    /// The secret: `holm_join_` and 43 characters of base 64 (URL alphabet).
    pub secret: String,
}

impl std::fmt::Debug for NewJoin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewJoin").field("join", &self.join).field("secret", &"[redacted]").finish()
    }
}

/// The join tokens of the org.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinList {
    /// The tokens, newest first; those that expired more than a day ago are missing, and of those that were used,
    /// revoked or expired, all but the newest 4,000.
    pub joins: Vec<JoinView>,
}

/// `POST /v1/hosts/{id}/revoke`: what is to be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RevokeHost {
    /// The key that is meant, as its host shows it: so a request that comes once more hits no newer one. The newest where it is
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub key: Option<HostPublicKey>,
}

/// A host with an agent on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostView {
    /// The identity of its agent.
    #[schema(value_type = String)]
    pub id: AgentId,
    /// A name for people.
    pub name: String,
    /// The version of the agent.
    pub version: String,
    /// All that there is.
    #[schema(value_type = Object)]
    pub capacity: Capacity,
    /// How many runs its agent holds now.
    pub runs_held: u32,
    /// The runtimes on it and what they can do.
    #[schema(value_type = Vec<Object>)]
    pub runtimes: Vec<RuntimeInfo>,
    /// Names and values by which it is found. `holm.storage` says that it takes no runs because its disk is nearly full,
    /// `holm.pressure` that it takes none because it is under pressure.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// With what its agent says who it is; nothing from a server of before hosts had keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<HostIdentity>,
    /// The pool in which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Whether it is a host of another org that is shared with this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_shared: bool,
    /// That somebody wants it to take no new runs: `by` with which token, its name in `by_name`, and `at` what time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub cordon: Option<Cordon>,
    /// When its agent registered first, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub registered_at: UnixMicros,
    /// When its agent was heard of last.
    #[schema(value_type = i64)]
    pub seen_at: UnixMicros,
    /// Whether its agent was heard of within the time of a lease.
    pub alive: bool,
}

impl HostView {
    /// Why it takes no new runs; nothing if it does.
    pub fn refusal(&self) -> Option<String> {
        refusal(&self.labels, self.cordon.as_ref())
    }
}

/// All hosts of the org.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostList {
    /// The hosts, by name.
    pub hosts: Vec<HostView>,
}
