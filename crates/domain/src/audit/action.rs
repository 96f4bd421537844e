//! What is told of, by names that never change: records of before are read by them.

/// What a record may tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A secret was made.
    SecretCreated,
    /// A secret was given its next value.
    SecretReplaced,
    /// A secret was bound to other places.
    SecretBound,
    /// A secret was removed.
    SecretRemoved,
    /// A secret was given to a run, for its proxy.
    SecretGiven,
    /// A token was made.
    TokenCreated,
    /// A token was revoked.
    TokenRevoked,
    /// A join token was made.
    HostJoinCreated,
    /// A join token was revoked.
    HostJoinRevoked,
    /// The key of a host was enrolled.
    HostEnrolled,
    /// The key of a host was revoked.
    HostRevoked,
    /// A host takes no new runs.
    HostCordoned,
    /// A host takes new runs again.
    HostUncordoned,
    /// A new key signs.
    KeyRotated,
    /// A signing key was withdrawn.
    KeyWithdrawn,
    /// A new data key seals.
    EnvelopeRotated,
    /// An org was made.
    OrgCreated,
    /// A limit of an org was set, or taken back.
    OrgLimitsSet,
    /// A pool serves another org.
    PoolShared,
    /// A pool serves an org no longer.
    PoolUnshared,
    /// A host was put into a pool.
    PoolHostAdded,
    /// A host was taken out of a pool.
    PoolHostRemoved,
}

impl Action {
    /// Each of them.
    pub const ALL: [Action; 22] = [
        Action::SecretCreated,
        Action::SecretReplaced,
        Action::SecretBound,
        Action::SecretRemoved,
        Action::SecretGiven,
        Action::TokenCreated,
        Action::TokenRevoked,
        Action::HostJoinCreated,
        Action::HostJoinRevoked,
        Action::HostEnrolled,
        Action::HostRevoked,
        Action::HostCordoned,
        Action::HostUncordoned,
        Action::KeyRotated,
        Action::KeyWithdrawn,
        Action::EnvelopeRotated,
        Action::OrgCreated,
        Action::OrgLimitsSet,
        Action::PoolShared,
        Action::PoolUnshared,
        Action::PoolHostAdded,
        Action::PoolHostRemoved,
    ];

    /// The name by which it is stored, which never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::SecretCreated => "secret.created",
            Action::SecretReplaced => "secret.replaced",
            Action::SecretBound => "secret.bound",
            Action::SecretRemoved => "secret.removed",
            Action::SecretGiven => "secret.given",
            Action::TokenCreated => "token.created",
            Action::TokenRevoked => "token.revoked",
            Action::HostJoinCreated => "host.join_created",
            Action::HostJoinRevoked => "host.join_revoked",
            Action::HostEnrolled => "host.enrolled",
            Action::HostRevoked => "host.revoked",
            Action::HostCordoned => "host.cordoned",
            Action::HostUncordoned => "host.uncordoned",
            Action::KeyRotated => "key.rotated",
            Action::KeyWithdrawn => "key.withdrawn",
            Action::EnvelopeRotated => "envelope.rotated",
            Action::OrgCreated => "org.created",
            Action::OrgLimitsSet => "org.limits_set",
            Action::PoolShared => "pool.shared",
            Action::PoolUnshared => "pool.unshared",
            Action::PoolHostAdded => "pool.host_added",
            Action::PoolHostRemoved => "pool.host_removed",
        }
    }
}
