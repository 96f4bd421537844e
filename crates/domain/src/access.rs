//! Who may do what: roles of API tokens.

use serde::{Deserialize, Serialize};

use crate::{OrgId, TokenId, UnixMicros};

/// What a token may do within its org. Roles do not include one another; each action names the roles it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything within the org, tokens and hosts included.
    Admin,
    /// Runs, logs and hosts; no tokens. Of secrets the names, and for its runs the use where they are bound to.
    Member,
    /// The agent protocol only.
    Agent,
    /// The metrics of the server only.
    Monitor,
}

/// The kinds of actions that requests ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// See runs, logs, events, hosts and which secrets there are.
    Read,
    /// Create, cancel and delete runs.
    Run,
    /// Create, list and revoke tokens; keep, bind, replace and remove secrets; say which hosts take new runs; read the audit log.
    Administer,
    /// Speak the agent protocol.
    Serve,
    /// Read the metrics of the server.
    Observe,
}

impl Role {
    /// Every role, for help texts and tests.
    pub const ALL: [Role; 4] = [Role::Admin, Role::Member, Role::Agent, Role::Monitor];

    /// Whether a token with this role may do `action`.
    pub const fn allows(self, action: Action) -> bool {
        matches!(
            (self, action),
            (Role::Admin, Action::Read | Action::Run | Action::Administer | Action::Observe)
                | (Role::Member, Action::Read | Action::Run)
                | (Role::Agent, Action::Serve)
                | (Role::Monitor, Action::Observe)
        )
    }

    /// The word used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Member => "member",
            Role::Agent => "agent",
            Role::Monitor => "monitor",
        }
    }

    /// The role of that word.
    pub fn parse(text: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// An API token as it is stored: the secret itself is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its identity, which may be shown.
    pub id: TokenId,
    /// The org it belongs to.
    pub org: OrgId,
    /// What it may do.
    pub role: Role,
    /// A name for people.
    pub name: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: UnixMicros,
    /// When it stops working, if ever.
    pub expires_at: Option<UnixMicros>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<UnixMicros>,
}

impl Token {
    /// Whether the token works at `now`.
    pub fn is_live(&self, now: UnixMicros) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_may_only_serve_and_nobody_else_may() {
        for action in [Action::Read, Action::Run, Action::Administer] {
            assert!(!Role::Agent.allows(action));
            assert!(Role::Admin.allows(action));
        }
        assert!(Role::Agent.allows(Action::Serve));
        assert!(!Role::Admin.allows(Action::Serve) && !Role::Member.allows(Action::Serve));
        assert!(!Role::Member.allows(Action::Administer));
    }

    #[test]
    fn who_monitors_sees_no_run() {
        for action in [Action::Read, Action::Run, Action::Administer, Action::Serve] {
            assert!(!Role::Monitor.allows(action));
        }
        assert!(Role::Monitor.allows(Action::Observe) && Role::Admin.allows(Action::Observe));
        assert!(!Role::Member.allows(Action::Observe) && !Role::Agent.allows(Action::Observe));
    }

    #[test]
    fn words_and_back() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("root"), None);
    }
}
