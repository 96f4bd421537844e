//! The stable codes of everything that can go wrong, one page each under `docs/errors/`.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $title:literal;)+) => {
        /// A stable code of an error, as it stands in a problem document (RFC 9457) and under `docs/errors/`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $code)] $name,)+
        }

        impl ErrorCode {
            /// Every code there is.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),+];

            /// The code as text.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $code),+ }
            }

            /// The HTTP status (RFC 9110 §15) that goes with it.
            pub const fn status(self) -> u16 {
                match self { $(ErrorCode::$name => $status),+ }
            }

            /// A short title that does not change from one occurrence to the next.
            pub const fn title(self) -> &'static str {
                match self { $(ErrorCode::$name => $title),+ }
            }
        }
    };
}

codes! {
    /// The request could not be read at all.
    InvalidRequest = "invalid_request", 400, "The request could not be read";
    /// A field has a value that cannot be.
    InvalidField = "invalid_field", 422, "A field has a value that is not accepted";
    /// A cursor that this server did not give out.
    InvalidCursor = "invalid_cursor", 400, "The cursor is not one that was given out";
    /// No token, or one that does not work.
    Unauthenticated = "unauthenticated", 401, "A valid token is needed";
    /// The token's role does not allow this.
    Forbidden = "forbidden", 403, "The token does not allow this";
    /// There is no such thing in this org.
    NotFound = "not_found", 404, "There is no such thing";
    /// The method is not one of this resource.
    MethodNotAllowed = "method_not_allowed", 405, "The resource has no such method";
    /// The state does not allow this now.
    Conflict = "conflict", 409, "The state does not allow this now";
    /// The idempotency key was used for another request.
    IdempotencyMismatch = "idempotency_mismatch", 409, "The idempotency key was used for another request";
    /// The operation bears a fence that is not the newest.
    StaleFence = "stale_fence", 409, "The lease is no longer held";
    /// A newer process of the agent has registered.
    AgentSuperseded = "agent_superseded", 409, "A newer process of this agent has registered";
    /// The join token has enrolled another host.
    JoinTokenUsed = "join_token_used", 409, "The join token was used by another host";
    /// The key of the host was revoked.
    HostRevoked = "host_revoked", 403, "The key of this host was revoked";
    /// The log was kept for as long as the server was told to.
    LogsDeleted = "logs_deleted", 410, "The log was deleted";
    /// A log batch does not follow the one before.
    LogGap = "log_gap", 409, "The log batch does not follow what is stored";
    /// The body is larger than is accepted.
    TooLarge = "too_large", 413, "The body is too large";
    /// The image is not one that can be resolved.
    UnknownImage = "unknown_image", 422, "The image is not known";
    /// No host can meet what the run asks for.
    NoRuntime = "no_runtime", 422, "No runtime meets what the run asks for";
    /// A limit was required that the host cannot enforce.
    LimitsNotEnforceable = "limits_not_enforceable", 422, "The host cannot enforce a limit that is required";
    /// A path of the host is not one that the agent lends.
    HostPathRefused = "host_path_refused", 422, "The host does not lend this path";
    /// A limit on how much may be asked for at once.
    TooMany = "too_many", 429, "Too many at once";
    /// The request took longer than it may.
    DeadlineExceeded = "deadline_exceeded", 504, "The request took too long";
    /// The server is going down, or what it stands on is not there.
    Unavailable = "unavailable", 503, "The service is not available now";
    /// The server's disk is nearly full.
    StorageFull = "storage_full", 507, "The server has no room left";
    /// What is stored of a log cannot be read.
    LogDamaged = "log_damaged", 500, "The stored log is damaged";
    /// An error of Holm's own.
    Internal = "internal", 500, "An error of Holm's own";
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A field with a value that cannot be: which, what was given, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: `{value}` is not accepted: {problem}")]
pub struct InvalidField {
    /// The stable code: `invalid_field` or a more specific one.
    pub code: ErrorCode,
    /// The path of the field in the request, such as `limits.memory_bytes`.
    pub field: String,
    /// What was given, cut to 256 characters.
    pub value: String,
    /// Why it is not accepted and what would be.
    pub problem: String,
}

impl InvalidField {
    /// An `invalid_field` error.
    pub fn new(field: impl Into<String>, value: impl ToString, problem: impl Into<String>) -> Self {
        let value = value.to_string().chars().take(256).collect();
        Self { code: ErrorCode::InvalidField, field: field.into(), value, problem: problem.into() }
    }

    /// The same error under a more specific code.
    pub fn with_code(mut self, code: ErrorCode) -> Self {
        self.code = code;
        self
    }
}
