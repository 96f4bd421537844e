//! How a host comes to have an identity of its own: a join token enrols the key of one agent, once.
//!
//! What always holds: a join token enrols for at most [`JOIN_LIFE_MAX`], and whoever repeats an enrolment with the same token,
//! agent and key is told the same, with another token too, which stays unused; nobody takes over an agent that somebody can
//! still speak for; a key that was revoked never enrols again, and none enrols for two agents. Whether a key is heard is decided where everything else about who speaks is ([`crate::host`]).

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{AgentId, OrgId, TokenId, UnixMicros, host::Host};

/// How long a join token works where nobody says.
pub const JOIN_LIFE_DEFAULT: Duration = Duration::from_secs(3_600);
/// How long a join token works at least.
pub const JOIN_LIFE_MIN: Duration = Duration::from_secs(60);
/// How long a join token works at most.
pub const JOIN_LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The longest life of what a host signs to be given a session.
pub const ASSERTION_LIFE_MAX: Duration = Duration::from_secs(60);
/// How far the clock of a host may be from that of the server.
pub const ASSERTION_MARGIN: Duration = Duration::from_secs(30);
/// How long a session of a host lasts.
pub const SESSION_LIFE: Duration = Duration::from_secs(900);

/// The public half of the key of a host (Ed25519, RFC 8032 §5.1.5); in texts as base 64 (RFC 4648 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostPublicKey(pub [u8; 32]);

/// A text that is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 32 bytes as 43 characters of base 64 (A-Z a-z 0-9 - _)")]
pub struct InvalidPublicKey;

impl fmt::Display for HostPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for HostPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HostPublicKey {
    type Err = InvalidPublicKey;

    fn from_str(text: &str) -> Result<Self, InvalidPublicKey> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidPublicKey)?;
        bytes.try_into().map(Self).map_err(|_| InvalidPublicKey)
    }
}

impl Serialize for HostPublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The key of a host, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostKey {
    /// Its public half.
    pub public: HostPublicKey,
    /// The join token with which it was enrolled.
    pub join: TokenId,
    /// When it was enrolled.
    pub enrolled_at: UnixMicros,
    /// When it was revoked, if it was.
    pub revoked_at: Option<UnixMicros>,
}

/// A join token as it is stored: the secret itself is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Its identity, which may be shown.
    pub id: TokenId,
    /// The org into which it enrols.
    pub org: OrgId,
    /// A name for people.
    pub name: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: UnixMicros,
    /// When it stops working.
    pub expires_at: UnixMicros,
    /// When it was revoked, if it was.
    pub revoked_at: Option<UnixMicros>,
    /// What it enrolled, if it did.
    pub used: Option<JoinUse>,
}

/// What a join token enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinUse {
    /// The agent.
    pub agent: AgentId,
    /// Its key.
    pub key: HostPublicKey,
    /// When.
    pub at: UnixMicros,
}

/// What a join token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It enrols the agent.
    New,
    /// It has enrolled this very agent with this very key; the answer may have been lost.
    Again,
}

/// Why a join token enrols nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It enrolled another agent, or this one with another key.
    #[error("the join token has enrolled {0} already, and enrols no other agent and no other key")]
    Used(AgentId),
    /// It was revoked.
    #[error("the join token was revoked")]
    Revoked,
    /// It has expired.
    #[error("the join token has expired")]
    Expired,
}

impl Join {
    /// Whether the token enrols `agent` with `key` at `now`.
    pub fn admits(&self, agent: AgentId, key: HostPublicKey, now: UnixMicros) -> Result<Admitted, NotAdmitted> {
        match self.used {
            Some(used) if (used.agent, used.key) == (agent, key) => Ok(Admitted::Again),
            Some(used) => Err(NotAdmitted::Used(used.agent)),
            None => self.works(now).map(|()| Admitted::New),
        }
    }

    /// Whether the token, which nobody has used, works at `now`.
    pub fn works(&self, now: UnixMicros) -> Result<(), NotAdmitted> {
        match self.revoked_at {
            Some(_) => Err(NotAdmitted::Revoked),
            None if now >= self.expires_at => Err(NotAdmitted::Expired),
            None => Ok(()),
        }
    }
}

/// What becomes of the key of an agent for which a join token works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrols {
    /// It is stored, and the token used up.
    New,
    /// It is this agent's already; the answer may have been lost. The token stays unused.
    Already,
}

/// A key that was enrolled at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enrolled {
    /// For which agent.
    pub agent: AgentId,
    /// The org of that.
    pub org: OrgId,
    /// The key.
    pub key: HostKey,
}

/// Why a key is not enrolled for an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotEnrolled {
    /// The agent speaks with another key, which was not revoked.
    #[error("{0} is enrolled with another key")]
    Enrolled(AgentId),
    /// The agent registered with a token, which still works.
    #[error("{agent} registered with {bound}, which still works")]
    Bound {
        /// The agent.
        agent: AgentId,
        /// Its token.
        bound: TokenId,
    },
    /// This very key was revoked.
    #[error("this key of {0} was revoked")]
    Revoked(AgentId),
    /// This very key was enrolled for another agent.
    #[error("the key that {0} shows was enrolled for another agent, as that of a copied folder or disk is")]
    Copied(AgentId),
}

/// Whether a key may become that of `agent`, whose key is `current` and whose host is `host`; `same` is what is known of the
/// key itself, `is_bound` whether the token of that host still works.
pub fn enrols(
    agent: AgentId,
    same: Option<&Enrolled>,
    current: Option<&HostKey>,
    host: Option<&Host>,
    is_bound: bool,
) -> Result<Enrols, NotEnrolled> {
    match (same, current, host) {
        (Some(same), ..) if same.agent != agent => Err(NotEnrolled::Copied(agent)),
        (Some(same), ..) if same.key.revoked_at.is_some() => Err(NotEnrolled::Revoked(agent)),
        (Some(_), ..) => Ok(Enrols::Already),
        (None, Some(current), _) if current.revoked_at.is_none() => Err(NotEnrolled::Enrolled(agent)),
        (None, None, Some(host)) if is_bound => Err(NotEnrolled::Bound { agent, bound: host.token }),
        (None, ..) => Ok(Enrols::New),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::host::tests::host;

    fn agent(number: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(number))
    }

    fn join() -> Join {
        Join {
            id: TokenId::from_uuid(Uuid::from_u128(5)),
            org: OrgId::from_uuid(Uuid::nil()),
            name: String::new(),
            hash: [0; 32],
            created_at: UnixMicros(0),
            expires_at: UnixMicros(100),
            revoked_at: None,
            used: None,
        }
    }

    fn key(byte: u8) -> HostPublicKey {
        HostPublicKey([byte; 32])
    }

    #[test]
    fn a_join_token_enrols_one_agent_with_one_key_while_it_lives() {
        assert_eq!(join().admits(agent(1), key(1), UnixMicros(99)), Ok(Admitted::New));
        assert_eq!(join().admits(agent(1), key(1), UnixMicros(100)), Err(NotAdmitted::Expired));
        let revoked = Join { revoked_at: Some(UnixMicros(7)), ..join() };
        assert_eq!(revoked.admits(agent(1), key(1), UnixMicros(8)), Err(NotAdmitted::Revoked));
        let used = JoinUse { agent: agent(1), key: key(1), at: UnixMicros(9) };
        let used = Join { used: Some(used), ..revoked };
        assert_eq!(used.admits(agent(1), key(1), UnixMicros(500)), Ok(Admitted::Again), "the answer was lost");
        for (agent, key) in [(agent(2), key(1)), (agent(1), key(2))] {
            assert!(matches!(used.admits(agent, key, UnixMicros(9)), Err(NotAdmitted::Used(_))));
        }
    }

    #[test]
    fn nobody_takes_over_an_agent_for_whom_somebody_can_speak() {
        let live = HostKey {
            public: key(1),
            join: TokenId::from_uuid(Uuid::nil()),
            enrolled_at: UnixMicros(1),
            revoked_at: None,
        };
        let revoked = HostKey { revoked_at: Some(UnixMicros(2)), ..live };
        let of = |key: Option<&HostKey>, host: Option<&Host>, is_bound| enrols(agent(1), None, key, host, is_bound);
        let known = host(1, 1);
        assert_eq!(of(None, None, false), Ok(Enrols::New));
        assert_eq!(of(Some(&live), None, false), Err(NotEnrolled::Enrolled(agent(1))));
        assert_eq!(of(Some(&live), Some(&known), false), Err(NotEnrolled::Enrolled(agent(1))));
        assert_eq!(of(Some(&revoked), Some(&known), true), Ok(Enrols::New), "it spoke with a key");
        assert!(matches!(of(None, Some(&known), true), Err(NotEnrolled::Bound { .. })));
        assert_eq!(of(None, Some(&known), false), Ok(Enrols::New));

        // What is known of the key that is shown comes first.
        let same = |number, key| Enrolled { agent: agent(number), org: known.org, key };
        let shown =
            |same: Enrolled, current: Option<&HostKey>| enrols(agent(1), Some(&same), current, Some(&known), true);
        let later = HostKey { public: self::key(2), ..live };
        assert_eq!(shown(same(1, live), Some(&live)), Ok(Enrols::Already));
        for current in [revoked, later, HostKey { revoked_at: Some(UnixMicros(3)), ..later }] {
            assert_eq!(shown(same(1, revoked), Some(&current)), Err(NotEnrolled::Revoked(agent(1))), "{current:?}");
        }
        for key in [live, revoked] {
            assert_eq!(shown(same(2, key), None), Err(NotEnrolled::Copied(agent(1))));
        }
    }

    #[test]
    fn a_public_key_is_text_of_one_form() {
        let text = key(7).to_string();
        assert_eq!((text.len(), text.parse()), (43, Ok(key(7))));
        for odd in ["", "AA", &format!("{text}="), &"A".repeat(44), &"!".repeat(43)] {
            assert_eq!(odd.parse::<HostPublicKey>(), Err(InvalidPublicKey), "{odd}");
        }
    }
}
