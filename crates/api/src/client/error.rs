//! Why a request did not bring what was asked for.

use std::time::Duration;

use holm_domain::ErrorCode;

use crate::problem::Problem;

/// Why a request did not bring what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused, and said why.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The server answered with an error that is not a problem document; a proxy in between, perhaps.
    #[error("{endpoint} answered {status} without a problem document: {excerpt}")]
    Status {
        /// The server.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The start of the body, printable characters only.
        excerpt: String,
    },
    /// No connection, or it broke.
    #[error("cannot reach {endpoint}: {problem}")]
    Transport {
        /// The server.
        endpoint: String,
        /// What the operating system or the protocol said, down to the cause.
        problem: String,
    },
    /// The deadline of the request passed.
    #[error("{endpoint} did not answer within {waited:?}")]
    Deadline {
        /// The server.
        endpoint: String,
        /// The time that really passed.
        waited: Duration,
    },
    /// The answer is not what the API promises.
    #[error("{endpoint} answered something that cannot be understood: {problem}")]
    Decode {
        /// The server.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The answer is larger than is read.
    #[error("{endpoint} answered more than {limit} bytes")]
    TooLarge {
        /// The server.
        endpoint: String,
        /// The limit.
        limit: usize,
    },
    /// The text is not an endpoint.
    #[error("`{0}` is not a server: give `http://HOST[:PORT]`, `https://HOST[:PORT]` or `unix:/PATH`")]
    Endpoint(String),
    /// The token has characters that cannot be sent.
    #[error("the token has characters that cannot be sent in a header")]
    Token,
    /// The request could not be made, or what it stands on (a socket's directory, certificates) is not there.
    #[error("{endpoint}: {problem}")]
    Setup {
        /// The server.
        endpoint: String,
        /// Why.
        problem: String,
    },
}

impl ClientError {
    /// The stable code, where the server gave one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// How long to wait where a rate of the org is used up. Nothing was done.
    pub fn limited(&self) -> Option<Duration> {
        match self {
            Self::Problem(problem) if problem.code == ErrorCode::TooMany => {
                problem.retry_after_s.map(Duration::from_secs)
            }
            _ => None,
        }
    }

    /// Whether the same request may succeed a little later: the server was not reached, or is not up to it now.
    pub fn is_transient(&self) -> bool {
        match self {
            // It stays as it is until somebody repairs it.
            Self::Problem(problem) if problem.code == ErrorCode::LogDamaged => false,
            Self::Problem(problem) => problem.status >= 500 || problem.status == 429,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::Transport { .. } | Self::Deadline { .. } => true,
            _ => false,
        }
    }
}
