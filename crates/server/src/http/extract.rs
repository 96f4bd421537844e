//! Readers of what requests bring, whose refusals are problem documents that name the field and its value.

use std::sync::Arc;

use axum::{
    body::HttpBody as _,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, rejection::QueryRejection},
    http::request::Parts,
};
use bytes::Bytes;
use holm_domain::{
    AgentId, ErrorCode, KeyId, RunId, TokenId,
    error::InvalidField,
    secret::{BadSecretName, SecretName},
};
use http::{HeaderMap, header::CONTENT_TYPE};
use serde::de::DeserializeOwned;

use crate::{
    account::Account,
    app::App,
    problem::{Failure, REDACTED},
};

/// The longest body that is read once more to tell what stands in a wrong field, in bytes.
const TOLD_BYTES_MAX: usize = 64 * 1024;

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        media_type(request.headers(), "application/json")?;
        let Body(bytes) = Body::from_request(request, app).await?;
        parse_json(&bytes).map(Self)
    }
}

/// A JSON body that bears a secret: what stands in it is not told to anybody, whatever is wrong with it.
pub struct SecretJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for SecretJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        media_type(request.headers(), "application/json")?;
        let Body(bytes) = Body::from_request(request, app).await?;
        parse_secret_json(&bytes).map(Self)
    }
}

/// A JSON body of at most `MAX` bytes, which no other may keep out: it is not counted.
pub struct Short<const MAX: usize, T>(pub T);

impl<const MAX: usize, T: DeserializeOwned> FromRequest<Arc<App>> for Short<MAX, T> {
    type Rejection = Failure;

    async fn from_request(mut request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        media_type(request.headers(), "application/json")?;
        DefaultBodyLimit::max(MAX).apply(&mut request);
        parse_json(&whole(request, app).await?).map(Self)
    }
}

/// A whole body, up to the limit of its route. It is on the account of its sender until the answer is sent.
pub struct Body(pub Bytes);

impl FromRequest<Arc<App>> for Body {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        let longest = app.config.limits.body_bytes_max.max(app.config.limits.log_body_bytes_max);
        let announced = request.body().size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        Account::of(request.extensions())?.take(app, announced.map_or(longest, |bytes| bytes.min(longest)))?;
        whole(request, app).await.map(Self)
    }
}

async fn whole(request: Request, app: &Arc<App>) -> Result<Bytes, Failure> {
    Bytes::from_request(request, app).await.map_err(|rejection| {
        let code = match rejection.status() {
            http::StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
            _ => ErrorCode::InvalidRequest,
        };
        Failure::new(code, format!("the body could not be read: {rejection}"))
    })
}

/// Refuses a body of another media type than `wanted`.
pub fn media_type(headers: &HeaderMap, wanted: &str) -> Result<(), Failure> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    let detail = format!("send the header `content-type: {wanted}` and such a body");
    Err(Failure::new(ErrorCode::InvalidRequest, detail).at("content-type", given))
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    parse(bytes, |field, message| {
        let given = value_at(bytes, &field);
        // JSON has fields without a name.
        let field = if field.is_empty() { "\"\"".to_owned() } else { field };
        InvalidField::new(field, given, without_position(message))
    })
}

fn parse_secret_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    parse(bytes, |field, message| {
        // Other messages have the value in them.
        let is_of_names = ["missing field ", "unknown field ", "duplicate field "];
        let is_told = is_of_names.iter().any(|begin| message.starts_with(begin));
        let problem =
            if is_told { without_position(message) } else { "give what the description of the API has there" };
        InvalidField::new(field, REDACTED, problem)
    })
}

/// Reads JSON; what is wrong with a field is told by `wrong`, which is given its path and what the parser says.
fn parse<T: DeserializeOwned>(bytes: &[u8], wrong: impl FnOnce(String, &str) -> InvalidField) -> Result<T, Failure> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if !inner.is_data() {
            return Failure::new(ErrorCode::InvalidRequest, format!("the body is not valid JSON: {inner}"));
        }
        let message = inner.to_string();
        let field = match (path.as_str(), quoted(&message, "missing field ")) {
            (".", Some(missing)) => missing.to_owned(),
            (path, Some(missing)) => format!("{path}.{missing}"),
            (".", None) => "body".to_owned(),
            (path, None) => path.to_owned(),
        };
        wrong(field, &message).into()
    })?;
    reader.end().map_err(|error| {
        Failure::new(ErrorCode::InvalidRequest, format!("the body goes on after its JSON value: {error}"))
    })?;
    Ok(value)
}

/// What stands at `path` (`limits.pids`, `argv[1]`), as JSON; empty where nothing does, or where the body is so long that it
/// would take many times its memory to tell.
fn value_at(bytes: &[u8], path: &str) -> String {
    if bytes.len() > TOLD_BYTES_MAX {
        return String::new();
    }
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return String::new() };
    for step in path.split(['.', '[']).map(|step| step.trim_end_matches(']')) {
        let next = match &mut value {
            serde_json::Value::Array(items) => {
                step.parse().ok().and_then(|index: usize| items.get_mut(index)).map(serde_json::Value::take)
            }
            serde_json::Value::Object(fields) => fields.get_mut(step).map(serde_json::Value::take),
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => return String::new(),
        }
    }
    match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    }
}

/// What stands in backquotes after `before` at the start of a message.
fn quoted<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    message.strip_prefix(before)?.strip_prefix('`')?.split_once('`').map(|(name, _)| name)
}

fn without_position(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(message, _)| message)
}

/// The query of a request.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let read: Result<Query<T>, QueryRejection> = Query::try_from_uri(&parts.uri);
        match read {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let text = rejection.body_text();
                let (_, detail) = text.split_once(": ").unwrap_or(("", &text));
                let (field, problem) = query_field(detail);
                Err(InvalidField::new(field, query_value(&parts.uri, field), problem).into())
            }
        }
    }
}

/// Which field of a query is wrong and how, from the words of axum: `name: problem`, or a message that quotes the name.
fn query_field(detail: &str) -> (&str, &str) {
    let plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let unnamed = detail.split_once(": ").filter(|(name, _)| plain(name)).map_or(detail, |(_, problem)| problem);
    let quoted =
        ["missing field ", "unknown field ", "duplicate field "].iter().find_map(|before| quoted(unnamed, before));
    match (quoted, detail.split_once(": ")) {
        (Some(name), _) => (name, unnamed),
        (None, Some((name, problem))) if plain(name) => (name, problem),
        _ => ("query", detail),
    }
}

fn query_value(uri: &http::Uri, field: &str) -> String {
    let pairs: Vec<(String, String)> = Query::try_from_uri(uri).map(|Query(pairs)| pairs).unwrap_or_default();
    pairs.into_iter().find(|(name, _)| name == field).map(|(_, value)| value).unwrap_or_default()
}

async fn path_id<T, S>(parts: &mut Parts, state: &S) -> Result<T, Failure>
where
    T: std::str::FromStr<Err = holm_domain::ids::InvalidId>,
    S: Send + Sync,
{
    let Path(text) = Path::<String>::from_request_parts(parts, state)
        .await
        .map_err(|rejection| Failure::new(ErrorCode::InvalidRequest, rejection.body_text()))?;
    Ok(text.parse::<T>()?)
}

/// The run that the path names.
pub struct RunPath(pub RunId);

impl<S: Send + Sync> FromRequestParts<S> for RunPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        path_id(parts, state).await.map(Self)
    }
}

/// The host that the path names, by the identity of its agent.
pub struct HostPath(pub AgentId);

impl<S: Send + Sync> FromRequestParts<S> for HostPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        path_id(parts, state).await.map(Self)
    }
}

/// The signing key that the path names.
pub struct KeyPath(pub KeyId);

impl<S: Send + Sync> FromRequestParts<S> for KeyPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        path_id(parts, state).await.map(Self)
    }
}

/// The secret that the path names.
pub struct SecretPath(pub SecretName);

impl<S: Send + Sync> FromRequestParts<S> for SecretPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Failure::new(ErrorCode::InvalidRequest, rejection.body_text()))?;
        let name = text.parse().map_err(|bad: BadSecretName| InvalidField::new("name", &text, bad.to_string()))?;
        Ok(Self(name))
    }
}

/// The token that the path names.
pub struct TokenPath(pub TokenId);

impl<S: Send + Sync> FromRequestParts<S> for TokenPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        path_id(parts, state).await.map(Self)
    }
}

/// Refuses a number outside `min..=max`.
pub fn within(field: &str, given: u64, min: u64, max: u64) -> Result<u64, InvalidField> {
    if (min..=max).contains(&given) {
        return Ok(given);
    }
    Err(InvalidField::new(field, given, format!("give {min} to {max}")))
}

#[cfg(test)]
mod tests {
    use holm_api::runs::CreateRun;

    use super::*;

    fn refusal(body: &str) -> (ErrorCode, Option<String>, Option<String>) {
        let problem = parse_json::<CreateRun>(body.as_bytes()).map(|_| ()).unwrap_err().into_problem();
        (problem.code, problem.field, problem.value)
    }

    #[test]
    fn the_field_and_its_value_are_named() {
        let body = r#"{"spec": {"root": {"kind": "host"}, "argv": ["a", 7]}}"#;
        assert_eq!(refusal(body), (ErrorCode::InvalidField, Some("spec.argv[1]".into()), Some("7".into())));
        let body = r#"{"spec": {"root": {"kind": "host"}, "argv": [], "limits": {"pids": -1}}}"#;
        assert_eq!(refusal(body), (ErrorCode::InvalidField, Some("spec.limits.pids".into()), Some("-1".into())));
        let body = r#"{"spec": {"root": {"kind": "host"}, "argv": [], "colour": "red"}}"#;
        assert_eq!(refusal(body), (ErrorCode::InvalidField, Some("spec.colour".into()), Some("red".into())));
        let body = r#"{"spec": {"root": {"kind": "host"}}}"#;
        assert_eq!(refusal(body), (ErrorCode::InvalidField, Some("spec.argv".into()), Some(String::new())));
        assert_eq!(refusal("{}"), (ErrorCode::InvalidField, Some("spec".into()), Some(String::new())));
        assert_eq!(refusal("[]").1.as_deref(), Some("body"));
        assert_eq!(refusal(r#"{"": 7}"#), (ErrorCode::InvalidField, Some("\"\"".into()), Some("7".into())));
    }

    #[test]
    fn what_stands_in_a_long_body_is_not_read_again() {
        let long = |pids: &str, spaces: usize| {
            let spec = format!(r#"{{"root": {{"kind": "host"}}, "argv": [], "limits": {{"pids": {pids}}}}}"#);
            refusal(&format!(r#"{{"spec": {spec}{}}}"#, " ".repeat(spaces)))
        };
        let named = |value: &str| (ErrorCode::InvalidField, Some("spec.limits.pids".into()), Some(value.into()));
        assert_eq!(long("-1", TOLD_BYTES_MAX / 2), named("-1"));
        assert_eq!(long("-1", TOLD_BYTES_MAX), named(""));
    }

    #[test]
    fn what_stands_in_a_body_with_a_secret_is_not_told() {
        use holm_api::secrets::CreateSecret;
        for (body, named) in [
            (r#"{"name": "a", "value": 12345678}"#, "value"),
            (r#"{"name": "a", "value": ["geheimnis"]}"#, "value"),
            (r#"{"name": "a", "valeu": "geheimnis"}"#, "valeu"),
            (r#"{"name": {"geheimnis": 1}, "value": "geheimnis"}"#, "name"),
            (r#"{"value": "geheimnis"}"#, "name"),
            (r#"{"name": "a", "value": "geheimnis", "value": "geheimnis"}"#, "body"),
            (r#""geheimnis""#, "body"),
        ] {
            let problem = parse_secret_json::<CreateSecret>(body.as_bytes()).map(drop).unwrap_err().into_problem();
            assert_eq!((problem.code, problem.field.as_deref()), (ErrorCode::InvalidField, Some(named)), "{body}");
            assert_eq!(problem.value.as_deref(), Some(REDACTED));
            let told = serde_json::to_string(&problem).unwrap();
            assert!(!told.contains("geheim") && !told.contains("1234"), "{told}");
        }
        let torn = parse_secret_json::<CreateSecret>(br#"{"value": "geheimnis"#).map(drop).unwrap_err();
        assert_eq!(torn.code(), ErrorCode::InvalidRequest);
        assert!(!torn.for_log().contains("geheim"), "{torn}");
    }

    #[test]
    fn what_is_no_json_is_no_request() {
        for body in ["", "{", "{\"spec\": {\"root\": {\"kind\": \"host\"}, \"argv\": []}} x", "\u{1}"] {
            assert_eq!(refusal(body).0, ErrorCode::InvalidRequest, "{body:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(matches!(refusal(&deep).0, ErrorCode::InvalidRequest | ErrorCode::InvalidField));
    }
}
