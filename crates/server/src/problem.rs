//! Errors on their way out: every one becomes a problem document (RFC 9457) with a stable code.
//!
//! A handler returns a [`Failure`]. It travels as an extension of an empty answer, and the outermost layer
//! ([`crate::http::frame`]) writes the document, adds the number of the request, and logs it: once. What a user may not
//! know (the text of a database error) goes to the log and never into the document.

use std::{fmt::Display, time::Duration};

use axum::response::{IntoResponse, Response};
use holm_api::problem::Problem;
use holm_domain::{
    ErrorCode, RunId, UnixMicros,
    error::InvalidField,
    ids::InvalidId,
    lease::grant::{FinishRefused, StaleFence},
};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};

/// What stands in the place of a value that nobody may see.
pub(crate) const REDACTED: &str = "[redacted]";

/// Why a request is not answered as it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{problem}")]
pub struct Failure {
    /// What the client is told.
    problem: Box<Problem>,
    /// What only the log is told.
    cause: Option<String>,
    /// Whether it is because what is stored cannot be read.
    is_damage: bool,
}

impl Failure {
    /// A failure of `code` with a sentence about this occurrence.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { problem: Box::new(Problem::new(code, detail)), cause: None, is_damage: false }
    }

    /// There is no such thing in the org of the caller; whether another org has one is not told.
    pub fn not_found(kind: &str, id: impl Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {kind} `{id}`"))
    }

    /// An error of Holm's own; `cause` is for the log alone.
    pub fn internal(cause: impl Display) -> Self {
        let detail = "an error of Holm's own; the server's log has more under the number of the request";
        Self { cause: Some(cause.to_string()), ..Self::new(ErrorCode::Internal, detail) }
    }

    /// What the server stands on is not there; `cause` is for the log alone.
    pub fn unavailable(detail: &str, cause: impl Display) -> Self {
        Self { cause: Some(cause.to_string()), ..Self::new(ErrorCode::Unavailable, detail) }
    }

    /// What is stored of a log cannot be read; `cause` is for the log of the server alone.
    pub fn log_damaged(cause: impl Display) -> Self {
        let detail = "a part of the log is gone or damaged where the server keeps it; the rest can be read from behind \
                      it (--after), and the server's log has more under the number of the request";
        Self { cause: Some(cause.to_string()), ..Self::new(ErrorCode::LogDamaged, detail) }
    }

    /// The log of `run` was deleted at `at`.
    pub fn logs_deleted(run: RunId, at: UnixMicros) -> Self {
        let time = jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| format!("{} µs", at.0), |at| at.to_string());
        let detail = format!(
            "the log of {run} was deleted at {time}, when the server had kept it as long as it was told to \
             (--log-retention); the run is still there"
        );
        Self::new(ErrorCode::LogsDeleted, detail)
    }

    /// The same failure, naming the field that is wrong and its value.
    pub fn at(mut self, field: impl Into<String>, value: impl Display) -> Self {
        self.problem.field = Some(field.into());
        self.problem.value = Some(value.to_string().chars().take(256).collect());
        self
    }

    /// The same failure, and when it is worth trying again.
    pub fn after(mut self, wait: Duration) -> Self {
        let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.problem.retry_after_s = Some(whole.max(1));
        self
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.problem.code
    }

    /// Whether it is because what is stored cannot be read.
    pub(crate) fn is_damage(&self) -> bool {
        self.is_damage
    }

    /// What the log is told: the cause, or what the client is told, where that says all.
    pub(crate) fn for_log(&self) -> String {
        self.cause.clone().unwrap_or_else(|| self.problem.to_string())
    }

    /// What the client is told.
    pub(crate) fn into_problem(self) -> Problem {
        *self.problem
    }
}

impl From<InvalidField> for Failure {
    fn from(error: InvalidField) -> Self {
        Self { problem: Box::new(Problem::from(error)), cause: None, is_damage: false }
    }
}

impl From<InvalidId> for Failure {
    fn from(error: InvalidId) -> Self {
        let problem = format!("give an id of the form `{}_` and 26 characters of 0-9a-z", error.prefix);
        InvalidField::new("id", error.text, problem).into()
    }
}

impl From<holm_store::Error> for Failure {
    fn from(error: holm_store::Error) -> Self {
        use holm_store::Error;
        let is_damage = error.is_damage();
        let failure = match error {
            Error::Conflict { what } => Self::new(
                ErrorCode::Conflict,
                format!("the {what} was changed at the same time; look at it and try again"),
            ),
            Error::NotFound { what } => Self::new(ErrorCode::NotFound, format!("there is no such {what}")),
            Error::Unavailable { .. } => Self::unavailable("the store does not answer; try again", error),
            Error::Limit { .. } => Self::new(ErrorCode::TooMany, error.to_string()),
            error if error.is_damaged_log() => Self::log_damaged(error),
            // What clients give was checked before, so these are Holm's own.
            Error::Corrupt { .. } | Error::Damaged { .. } | Error::Invalid { .. } => Self::internal(error),
        };
        Self { is_damage, ..failure }
    }
}

impl From<FinishRefused> for Failure {
    fn from(error: FinishRefused) -> Self {
        match error {
            FinishRefused::Stale(stale) => stale.into(),
            FinishRefused::Inconsistent(outcome) => {
                let given = serde_json::to_string(&outcome).unwrap_or_default();
                InvalidField::new("outcome", given, "the parts of the outcome contradict each other").into()
            }
        }
    }
}

impl From<StaleFence> for Failure {
    fn from(error: StaleFence) -> Self {
        Self::new(ErrorCode::StaleFence, error.to_string()).at("fence", error.given)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        if matches!(self.code(), ErrorCode::TooMany | ErrorCode::Unavailable | ErrorCode::StorageFull) {
            let wait = HeaderValue::from(self.problem.retry_after_s.unwrap_or(1));
            response.headers_mut().insert(RETRY_AFTER, wait);
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stay_out_of_the_document() {
        let failure = Failure::internal("password=hunter2");
        assert_eq!(failure.for_log(), "password=hunter2");
        assert!(!serde_json::to_string(&failure.into_problem()).unwrap().contains("hunter2"));
    }

    #[test]
    fn values_are_cut() {
        let failure = Failure::not_found("run", "x").at("id", "y".repeat(10_000));
        assert_eq!(failure.problem.value.map(|value| value.len()), Some(256));
    }
}
