//! Credentials of a sandbox: what is added to its requests, and what they lose for it (SPEC N4).
//!
//! What always holds: a value is added to requests that its credential is for, over TLS that was checked, and to no others; where a
//! host has credentials, no request to it bears one that the sandbox set in the places where they stand.

use std::{collections::BTreeMap, fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holm_domain::{
    egress::{
        credential::{self, Credential, Field, Fill, VALUES_BYTES_MAX},
        name::{Host, HostName},
    },
    secret::SecretName,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{ACCEPT_CHARSET, ACCEPT_ENCODING, IF_RANGE, RANGE, SEC_WEBSOCKET_EXTENSIONS},
    request,
    uri::PathAndQuery,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

use super::{
    super::{Refusal, checks::is_off},
    mask::Patterns,
};

/// Where credentials stand by habit: a request to a host with credentials loses them, so that it is not made for somebody else's
/// account where that is told in a usual place. [Folded](fold), as all such names.
const BY_HABIT: [&str; 26] = [
    "api_key",
    "api_token",
    "apikey",
    "authorization",
    "cookie",
    "dd_api_key",
    "dd_application_key",
    "job_token",
    "ocp_apim_subscription_key",
    "private_token",
    "x_access_token",
    "x_amz_security_token",
    "x_api_key",
    "x_api_token",
    "x_apikey",
    "x_auth_email",
    "x_auth_key",
    "x_auth_token",
    "x_figma_token",
    "x_functions_key",
    "x_github_token",
    "x_goog_api_key",
    "x_goog_iam_authorization_token",
    "x_rapidapi_key",
    "x_shopify_access_token",
    "x_vault_token",
];
/// The same for parameters of a query: tokens (RFC 6750, section 2.3), keys, and what signs a target.
const PARAMETERS_BY_HABIT: [&str; 11] = [
    "access_token",
    "api_key",
    "apikey",
    "private_token",
    "sig",
    "x_amz_credential",
    "x_amz_security_token",
    "x_amz_signature",
    "x_goog_credential",
    "x_goog_signature",
    "x_api_key",
];
/// By which an answer would come in parts, or compressed, whole or in its messages.
const OTHER_FORMS: [HeaderName; 9] = [
    RANGE,
    IF_RANGE,
    SEC_WEBSOCKET_EXTENSIONS,
    ACCEPT_CHARSET,
    HeaderName::from_static("a-im"),
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("connect-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("connect-content-encoding"),
];
/// What has a percent sign in a query: all but what is unreserved (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What stands for the secret `name` in a sandbox, for tools that insist on one.
pub fn placeholder(name: &SecretName) -> String {
    format!("holm-placeholder-{name}")
}

/// The values of the credentials of a sandbox.
pub type Values = BTreeMap<SecretName, SecretString>;

/// The credentials of a sandbox with their values.
pub struct Vault {
    filled: Vec<Filled>,
    patterns: Arc<Patterns>,
}

struct Filled {
    credential: Credential,
    value: Value,
}

enum Value {
    Header(HeaderName, HeaderValue),
    /// The name, and the value as it stands in a query.
    Query(String, SecretString),
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.filled.iter().map(|filled| filled.credential.to_string())).finish()
    }
}

/// Why credentials cannot be added to anything. It does not tell a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is no value for one.
    #[error("there is no value for the secret `{0}`")]
    Missing(SecretName),
    /// It cannot stand where it is to.
    #[error("the secret `{0}` cannot stand in a head")]
    Unfit(SecretName),
    /// They are too long together.
    #[error("the secrets of a run have {VALUES_BYTES_MAX} bytes at most together")]
    TooLong,
}

impl Vault {
    /// That of `credentials`, whose values are among `values`.
    pub fn new(credentials: &[Credential], values: &Values) -> Result<Self, Unusable> {
        let of = |name: &SecretName| values.get(name).ok_or_else(|| Unusable::Missing(name.clone()));
        let filled = credentials.iter().map(|credential| {
            let value = value(credential, of(&credential.secret)?.expose_secret())?;
            Ok(Filled { credential: credential.clone(), value })
        });
        let filled = filled.collect::<Result<_, Unusable>>()?;
        let exposed = || values.values().map(ExposeSecret::expose_secret);
        if exposed().map(str::len).sum::<usize>() > VALUES_BYTES_MAX {
            return Err(Unusable::TooLong);
        }
        Ok(Self { filled, patterns: Patterns::new(exposed()).map_err(|_| Unusable::TooLong)? })
    }

    /// By what the answers of a host are masked.
    pub fn patterns(&self) -> &Arc<Patterns> {
        &self.patterns
    }

    /// The credentials of a host and port.
    fn of<'a>(&'a self, host: &Host, port: u16) -> impl Iterator<Item = &'a Filled> + use<'a> {
        let host = host.clone();
        self.filled.iter().filter(move |filled| filled.credential.to.connects(&host, port))
    }

    /// Adds to a request to `name` and `port`, whose target is whole, what credentials add to it, and takes from it what it
    /// brings in their places. Returns the names of what was added; nothing where the host has no credentials.
    pub fn apply(
        &self,
        head: &mut request::Parts,
        name: &HostName,
        port: u16,
    ) -> Result<Option<Vec<SecretName>>, Refusal> {
        let host = Host::Name(name.clone());
        let mut bound = self.of(&host, port).peekable();
        if bound.peek().is_none() {
            return Ok(None);
        }
        let (method, path) = (head.method.as_str().to_owned(), head.uri.path().to_owned());
        let brings_its_own = if is_off("own") { false } else { self.strip(head, &host, port)? };
        let mut used: Vec<&Filled> = Vec::new();
        for filled in bound.filter(|filled| is_off("bound") || filled.credential.is_for((&host, port), &method, &path))
        {
            if brings_its_own && filled.credential.require_ours {
                return Err(Refusal::OwnCredential);
            }
            let field = filled.credential.fill.field();
            match used.iter_mut().find(|other| other.credential.fill.field() == field) {
                Some(other) if other.credential.path().len() < filled.credential.path().len() => *other = filled,
                Some(_) => {}
                None => used.push(filled),
            }
        }
        for filled in &used {
            filled.value.add(head)?;
        }
        readable(&mut head.headers);
        Ok(Some(used.into_iter().map(|filled| filled.credential.secret.clone()).collect()))
    }

    /// Takes from a request what stands in the places of credentials, by habit or because one of its host has it there. Returns
    /// whether there was something else than what stands for a secret inside.
    fn strip(&self, head: &mut request::Parts, host: &Host, port: u16) -> Result<bool, Refusal> {
        let (mut headers, mut parameters) = (Vec::new(), Vec::new());
        for filled in self.of(host, port) {
            match &filled.value {
                Value::Header(name, _) => headers.push(fold(name.as_str())),
                Value::Query(name, _) => parameters.push(fold(name)),
            }
        }
        let placeholders: Vec<String> =
            self.of(host, port).map(|filled| placeholder(&filled.credential.secret)).collect();
        let is_own = |value: &[u8]| !stands_for_one(value, &placeholders);
        let is_header = |name: String| BY_HABIT.contains(&name.as_str()) || headers.contains(&name);
        let is_parameter = |name: String| PARAMETERS_BY_HABIT.contains(&name.as_str()) || parameters.contains(&name);
        let taken: Vec<HeaderName> =
            head.headers.keys().filter(|name| is_header(fold(name.as_str()))).cloned().collect();
        let values = taken.iter().flat_map(|name| head.headers.get_all(name));
        let mut brings_its_own = values.map(HeaderValue::as_bytes).any(is_own);
        for name in taken {
            head.headers.remove(name);
        }
        let Some(query) = head.uri.query() else { return Ok(brings_its_own) };
        // Some divide at semicolons too.
        let parts = query.split(['&', ';']);
        let (taken, kept): (Vec<&str>, Vec<&str>) = parts.partition(|part| is_parameter(parameter(part)));
        brings_its_own |= taken.iter().any(|part| is_own(part.as_bytes()));
        if !taken.is_empty() {
            head.uri = with_query(&head.uri, &kept.join("&"))?;
        }
        Ok(brings_its_own)
    }
}

/// A name as it is to whoever is lenient about how it is written: some take capitals, `-`, `.` and blanks for `_`, or leave them
/// out at the begin, and what stands in brackets.
fn fold(name: &str) -> String {
    let name = name.trim_start_matches([' ', '+']).split('[').next().unwrap_or_default();
    name.to_ascii_lowercase().replace(['-', '.', ' ', '+'], "_")
}

/// The name of a part of a query, folded.
fn parameter(part: &str) -> String {
    let name = part.split_once('=').map_or(part, |(name, _)| name);
    fold(&percent_decode_str(name).decode_utf8_lossy())
}

/// Whether a value is one that stands for a secret inside, as it is or as the password of somebody.
fn stands_for_one(value: &[u8], placeholders: &[String]) -> bool {
    let value = String::from_utf8_lossy(value);
    let encoded = value.rsplit(' ').next().and_then(|last| STANDARD.decode(last).ok());
    let password = encoded.map(|decoded| String::from_utf8_lossy(&decoded).into_owned());
    let ends = |text: &str| placeholders.iter().any(|placeholder| text.ends_with(placeholder.as_str()));
    ends(&value) || password.is_some_and(|password| ends(&password))
}

/// What a credential fills its place with.
fn value(credential: &Credential, secret: &str) -> Result<Value, Unusable> {
    let unfit = || Unusable::Unfit(credential.secret.clone());
    let text = match &credential.fill {
        Fill::Bearer {} => format!("Bearer {secret}"),
        Fill::Basic { user } => format!("Basic {}", STANDARD.encode(format!("{user}:{secret}"))),
        Fill::Header { value, .. } => value.replace(credential::VALUE, secret),
        Fill::Query { name } => {
            let encoded = utf8_percent_encode(secret, RESERVED).to_string();
            return Ok(Value::Query(name.clone(), encoded.into()));
        }
    };
    let Field::Header(name) = credential.fill.field() else { return Err(unfit()) };
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit())?;
    let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| unfit())?;
    // No log shows it, and no table of HPACK keeps it (RFC 7541, section 7.1.3).
    value.set_sensitive(true);
    Ok(Value::Header(name, value))
}

impl Value {
    fn add(&self, head: &mut request::Parts) -> Result<(), Refusal> {
        match self {
            Self::Header(name, value) => {
                head.headers.insert(name, value.clone());
            }
            Self::Query(name, value) => {
                let own = format!("{name}={}", value.expose_secret());
                let query = match head.uri.query().filter(|query| !query.is_empty()) {
                    Some(query) => format!("{query}&{own}"),
                    None => own,
                };
                head.uri = with_query(&head.uri, &query)?;
            }
        }
        Ok(())
    }
}

/// The same target with another query.
fn with_query(uri: &Uri, query: &str) -> Result<Uri, Refusal> {
    let target = if query.is_empty() { uri.path().to_owned() } else { format!("{}?{query}", uri.path()) };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| Refusal::MalformedRequest)?);
    Uri::from_parts(parts).map_err(|_| Refusal::MalformedRequest)
}

/// Asks for an answer in which a secret can be found: whole, and not compressed.
fn readable(headers: &mut HeaderMap) {
    if is_off("readable") {
        return;
    }
    for name in &OTHER_FORMS {
        headers.remove(name);
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const VALUE: &str = "s3cret/+ value";

    fn vault(credentials: &[&str], require_ours: bool) -> Vault {
        let read = |text: &&str| Credential { require_ours, ..text.parse().unwrap() };
        let credentials: Vec<_> = credentials.iter().map(read).collect();
        let values = credentials.iter().map(|credential| {
            (credential.secret.clone(), SecretString::from(format!("{VALUE} {}", credential.secret)))
        });
        Vault::new(&credentials, &values.collect()).unwrap()
    }

    /// What `vault` makes of a request; the names of what it added.
    fn applied(
        vault: &Vault,
        request: http::request::Builder,
    ) -> Result<(request::Parts, Option<Vec<String>>), Refusal> {
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        let name = HostName::from_wire(head.uri.host().unwrap().as_bytes()).unwrap();
        let port = head.uri.port_u16().unwrap_or(443);
        let used = vault.apply(&mut head, &name, port)?;
        Ok((head, used.map(|used| used.iter().map(ToString::to_string).collect())))
    }

    fn get(uri: &str) -> http::request::Builder {
        Request::get(uri)
    }

    #[test]
    fn a_value_stands_where_its_credential_has_it() {
        for (credential, field, expected) in [
            ("api.example=bearer:KEY", "authorization", "Bearer s3cret/+ value KEY"),
            ("api.example=basic:me:KEY", "authorization", "Basic bWU6czNjcmV0LysgdmFsdWUgS0VZ"),
            ("api.example=header:X-Key:KEY", "x-key", "s3cret/+ value KEY"),
            ("api.example=header:authorization:token {KEY};v=1", "authorization", "token s3cret/+ value KEY;v=1"),
        ] {
            let (head, used) = applied(&vault(&[credential], false), get("https://api.example/v1?a=b")).unwrap();
            assert_eq!(head.headers[field], expected);
            assert!(head.headers[field].is_sensitive());
            assert_eq!(used.unwrap(), ["KEY"]);
            assert_eq!(head.uri, "https://api.example/v1?a=b");
        }
        let vault = vault(&["api.example=query:key:KEY"], false);
        for (asked, sent) in [
            ("https://api.example/", "https://api.example/?key=s3cret%2F%2B%20value%20KEY"),
            ("https://api.example/a?b=c", "https://api.example/a?b=c&key=s3cret%2F%2B%20value%20KEY"),
            (
                "https://api.example/a?key=mine&b;KEY=x&%6bey=y&+key=z&key[]=u&access.token=v",
                "https://api.example/a?b&key=s3cret%2F%2B%20value%20KEY",
            ),
        ] {
            assert_eq!(applied(&vault, get(asked)).unwrap().0.uri, sent);
        }
    }

    #[test]
    fn it_is_added_to_nothing_else() {
        let vault = vault(&["GET api.example:8443/v1=bearer:KEY"], false);
        let own = |builder: http::request::Builder| builder.header("authorization", "Bearer mine");
        for (request, is_bound) in [
            (Request::post("https://api.example:8443/v1"), true),
            (get("https://api.example:8443/v2"), true),
            (get("https://api.example:8443/v1/../v2"), true),
            (get("https://api.example/v1"), false),
            (get("https://other.example:8443/v1"), false),
            (get("https://x.api.example:8443/v1"), false),
        ] {
            let (head, used) = applied(&vault, own(request)).unwrap();
            let expected = (!is_bound).then_some("Bearer mine");
            let sent = head.headers.get("authorization").map(|value| value.to_str().unwrap());
            assert_eq!(sent, expected, "{}", head.uri);
            assert_eq!(used, is_bound.then(Vec::new), "{}", head.uri);
        }
    }

    #[test]
    fn what_the_sandbox_set_in_its_place_is_gone() {
        let vault = vault(&["api.example=header:x-key:KEY"], false);
        let request = get("https://api.example/?access_token=mine&a=b")
            .header("X-Key", "mine")
            .header("x-key", "mine too")
            .header("Authorization", "Bearer mine")
            .header("x-API-key", "mine")
            .header("x_api_key", "mine")
            .header("X_Key", "mine")
            .header("cookie", "session=mine")
            .header("x-other", "kept");
        let (head, _) = applied(&vault, request).unwrap();
        let values: Vec<_> = head.headers.get_all("x-key").iter().collect();
        assert_eq!(values, ["s3cret/+ value KEY"]);
        let left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-other", "x-key", "accept-encoding"]);
        assert_eq!((&head.headers["x-other"], head.uri.query()), (&HeaderValue::from_static("kept"), Some("a=b")));
    }

    #[test]
    fn where_it_must_be_ours_a_request_with_another_is_refused_and_one_with_what_stands_for_it_is_not() {
        let vault = vault(&["api.example=bearer:KEY", "api.example=query:key:OTHER"], true);
        let root = || get("https://api.example/");
        let basic = format!("Basic {}", STANDARD.encode(format!("me:{}", placeholder(&"KEY".parse().unwrap()))));
        for fit in [
            root(),
            root().header("authorization", "Bearer holm-placeholder-KEY"),
            root().header("x-api-key", "holm-placeholder-KEY"),
            root().header("authorization", basic),
            get("https://api.example/?key=holm-placeholder-OTHER"),
        ] {
            let (head, _) = applied(&vault, fit).unwrap();
            assert_eq!(head.headers["authorization"], "Bearer s3cret/+ value KEY");
            assert_eq!(head.uri.query(), Some("key=s3cret%2F%2B%20value%20OTHER"));
        }
        for own in [
            root().header("authorization", "Bearer mine"),
            root().header("x-api-key", "mine"),
            root().header("authorization", "Bearer holm-placeholder-KEY").header("authorization", "Bearer mine"),
            get("https://api.example/?key=mine"),
            get("https://api.example/?access_token=mine"),
        ] {
            assert_eq!(applied(&vault, own).unwrap_err(), Refusal::OwnCredential);
        }
    }

    #[test]
    fn of_several_for_a_place_the_closest_fills_it() {
        for order in [[0, 1, 2], [2, 1, 0]] {
            let all = ["api.example=bearer:ALL", "api.example/v1=bearer:ONE", "api.example/v1/x=header:x-key:X"];
            let vault = vault(&order.map(|at| all[at]), false);
            for (uri, expected) in [
                ("https://api.example/", ["Bearer s3cret/+ value ALL", ""]),
                ("https://api.example/v1/y", ["Bearer s3cret/+ value ONE", ""]),
                ("https://api.example/v1/x", ["Bearer s3cret/+ value ONE", "s3cret/+ value X"]),
            ] {
                let (head, _) = applied(&vault, get(uri)).unwrap();
                let of = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
                assert_eq!([of("authorization"), of("x-key")], expected.map(str::to_owned), "{uri}");
            }
        }
    }

    #[test]
    fn the_answer_is_asked_for_in_a_form_in_which_it_can_be_masked() {
        let vault = vault(&["api.example/v1=bearer:KEY"], false);
        let request = |uri| {
            let request =
                get(uri).header("accept-encoding", "gzip, br").header("range", "bytes=0-9").header("if-range", "x");
            request.header("sec-websocket-extensions", "permessage-deflate")
        };
        let (head, _) = applied(&vault, request("https://api.example/elsewhere")).unwrap();
        assert_eq!(head.headers["accept-encoding"], "identity");
        assert_eq!(head.headers.len(), 1, "{:?}", head.headers);
        let (head, _) = applied(&vault, request("https://other.example/")).unwrap();
        assert_eq!(head.headers.len(), 4);
    }

    #[test]
    fn no_text_shows_a_value() {
        let vault = vault(&["api.example=bearer:KEY", "api.example=query:key:KEY"], false);
        let (head, _) = applied(&vault, get("https://api.example/")).unwrap();
        assert!(!format!("{vault:?} {:?}", head.headers).contains("s3cret"));
        let error = Vault::new(&["a.example=bearer:KEY".parse().unwrap()], &Values::new()).unwrap_err();
        assert_eq!(error, Unusable::Missing("KEY".parse().unwrap()));
    }
}
