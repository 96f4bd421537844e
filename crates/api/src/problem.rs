//! Problem documents (RFC 9457): the one form in which errors leave a server.

use holm_domain::{ErrorCode, error::InvalidField};
use serde::{Deserialize, Serialize};

/// The body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// A URI of the kind of problem: its page in the documentation.
    #[serde(rename = "type")]
    pub kind: String,
    /// The stable code.
    #[schema(value_type = String)]
    pub code: ErrorCode,
    /// A title that does not change from one occurrence to the next.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong this time, and the way out.
    pub detail: String,
    /// The field of the request that is wrong, if one is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    /// The value of that field, cut to 256 characters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    /// After how many seconds the request may be tried again: a rate of the org is used up. The header `Retry-After` says the
    /// same.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after_s: Option<u64>,
    /// The number under which the request stands in the server's log.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_id: Option<String>,
}

impl Problem {
    /// A problem of `code` with a sentence about this occurrence.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("https://holm.dev/errors/{}", code.as_str()),
            code,
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            field: None,
            value: None,
            retry_after_s: None,
            request_id: None,
        }
    }

    /// Whether only the log of the server says why, under the number of the request.
    fn refers_to_log(&self) -> bool {
        matches!(self.code, ErrorCode::Internal | ErrorCode::LogDamaged)
    }
}

impl From<InvalidField> for Problem {
    fn from(error: InvalidField) -> Self {
        let detail = format!("`{}` is not accepted: {}", error.value, error.problem);
        Self { field: Some(error.field), value: Some(error.value), ..Self::new(error.code, detail) }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        write!(f, "{} ({}", self.detail, self.code)?;
        match &self.request_id {
            Some(id) if self.refers_to_log() => write!(f, ", request {id})"),
            _ => f.write_str(")"),
        }
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_request_is_told_where_the_log_has_more() {
        let told = |code| Problem { request_id: Some("req_1".to_owned()), ..Problem::new(code, "no") }.to_string();
        assert_eq!(told(ErrorCode::Internal), "no (internal, request req_1)");
        assert_eq!(told(ErrorCode::LogDamaged), "no (log_damaged, request req_1)");
        assert_eq!(told(ErrorCode::NotFound), "no (not_found)");
        assert_eq!(Problem::new(ErrorCode::Internal, "no").to_string(), "no (internal)");
    }
}
