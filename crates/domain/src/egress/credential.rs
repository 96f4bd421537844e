//! Credentials: what the proxy of a sandbox adds to which requests (SPEC N4).
//!
//! What always holds: a credential is bound to one host by its name, to a port, and to methods and a path where they are given; it
//! says of what it adds everything but the value. Of several that would fill the same field of a request the one with the longest
//! path does, and no two of them are as long.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    name::Host,
    policy::{BadRule, Place, Rule},
};
use crate::secret::{BadSecretName, SecretName};

/// The most credentials of a run.
pub const CREDENTIALS_MAX: usize = 16;
/// The most bytes of all values of a run together: what they are masked by takes some hundred times as much.
pub const VALUES_BYTES_MAX: usize = 8 * 1024;
/// Where the value of a secret stands in the value of a field.
pub const VALUE: &str = "{secret}";
/// The longest value of a field without that of its secret, the longest name of one and of a user, in bytes.
const TEMPLATE_BYTES_MAX: usize = 256;

/// Fields that say what a request is, or are about its connection: no credential is in them.
const NEVER: [&str; 26] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "expect",
    "host",
    "http2-settings",
    "if-range",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// What is added to which requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// To which requests: those to one host, by its name.
    pub to: Rule,
    /// Of which secret the value is.
    pub secret: SecretName,
    /// Where it stands in them.
    pub fill: Fill,
    /// Whether a request that brings a credential of its own is refused; otherwise it loses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_ours: bool,
}

/// Where the value of a secret stands in a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fill {
    /// In `Authorization`, after `Bearer` (RFC 6750, section 2.1).
    // With braces: beside the tag of a variant without them, serde lets every field pass.
    Bearer {},
    /// In `Authorization`, as the password of a user (RFC 7617, section 2).
    Basic {
        /// The name of the user.
        user: String,
    },
    /// In another field of the head.
    Header {
        /// Its name, in small letters.
        name: String,
        /// Its value, in which [`VALUE`] stands once.
        value: String,
    },
    /// In the query of the target.
    Query {
        /// The name of the parameter.
        name: String,
    },
}

/// A place in a request that a credential fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field<'a> {
    /// A field of the head, by its name.
    Header(&'a str),
    /// A parameter of the query, by its name.
    Query(&'a str),
}

impl Field<'_> {
    /// Whether both are one to somebody: who reads a query may not tell capitals from small letters.
    fn is_taken_for(self, other: Field<'_>) -> bool {
        match (self, other) {
            (Self::Header(name), Field::Header(other)) => name == other,
            (Self::Query(name), Field::Query(other)) => name.eq_ignore_ascii_case(other),
            _ => false,
        }
    }
}

/// Why something is no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCredential {
    /// It is not written as one.
    #[error(
        "write a rule, `=` and where the secret stands: `api.example.org/v1=bearer:NAME`, `=basic:USER:NAME`, \
         `=header:FIELD:NAME`, `=header:FIELD:token {{NAME}}` or `=query:PARAMETER:NAME`"
    )]
    Form,
    /// What it is added to is no rule.
    #[error(transparent)]
    Rule(#[from] BadRule),
    /// Its secret has no name.
    #[error(transparent)]
    Secret(#[from] BadSecretName),
    /// It is bound to more than one host.
    #[error("a credential is bound to one host by its name; `{0}` is none")]
    Wide(String),
    /// Its field is none, or none that a credential may fill.
    #[error("`{0}` is no field that a credential may fill")]
    Header(String),
    /// The value of its field is none.
    #[error("`{0}` is no value of a field: `{{secret}}` stands in it once, and it has no line break")]
    Template(String),
    /// Its user is none.
    #[error("`{0}` is no user: give 1 to {TEMPLATE_BYTES_MAX} characters without `:` and line breaks")]
    User(String),
    /// Its parameter is none.
    #[error("`{0}` is no parameter: give letters, digits, `-`, `.`, `_` and `~`")]
    Parameter(String),
}

impl Fill {
    /// Which place in a request it fills.
    pub fn field(&self) -> Field<'_> {
        match self {
            Self::Bearer {} | Self::Basic { .. } => Field::Header("authorization"),
            Self::Header { name, .. } => Field::Header(name),
            Self::Query { name } => Field::Query(name),
        }
    }

    fn validate(&self) -> Result<(), BadCredential> {
        match self {
            Self::Bearer {} => Ok(()),
            Self::Basic { user } => {
                let is_user = is_short(user) && !user.contains(':') && !user.chars().any(char::is_control);
                if is_user { Ok(()) } else { Err(BadCredential::User(user.clone())) }
            }
            Self::Header { name, .. } if !is_field(name) => Err(BadCredential::Header(name.clone())),
            Self::Header { value, .. } => {
                let has_one = value.matches(VALUE).count() == 1 && value.trim() == value;
                let is_visible = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
                if has_one && is_visible && is_short(value) {
                    Ok(())
                } else {
                    Err(BadCredential::Template(value.clone()))
                }
            }
            Self::Query { name } => {
                let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
                if is_short(name) && name.bytes().all(is_plain) {
                    Ok(())
                } else {
                    Err(BadCredential::Parameter(name.clone()))
                }
            }
        }
    }
}

fn is_short(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEMPLATE_BYTES_MAX
}

/// Whether a name is one of a field (RFC 9110, section 5.6.2) in small letters that a credential may fill.
fn is_field(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    is_short(name) && name.bytes().all(is_token) && !NEVER.contains(&name) && !name.starts_with("sec-websocket-")
}

impl Credential {
    /// Checks what of it may not be, whatever else a run asks for.
    pub fn validate(&self) -> Result<(), BadCredential> {
        if !matches!(self.to.place, Place::Name(_)) {
            return Err(BadCredential::Wide(self.to.place.to_string()));
        }
        self.fill.validate()
    }

    /// Whether it is added to a request to `host` and `port`. `path` is what stands before a `?`.
    pub fn is_for(&self, (host, port): (&Host, u16), method: &str, path: &str) -> bool {
        self.to.connects(host, port) && self.to.requests(method, path)
    }

    /// Whether there are requests of which it cannot be said if this one fills the field or `other`.
    pub fn clashes(&self, other: &Self) -> bool {
        let is_same = (&self.to.place, self.to.port) == (&other.to.place, other.to.port)
            && self.fill.field().is_taken_for(other.fill.field());
        let (methods, others) = (&self.to.methods, &other.to.methods);
        let has_common =
            methods.is_empty() || others.is_empty() || methods.iter().any(|method| others.contains(method));
        is_same && has_common && self.path() == other.path()
    }

    /// The path that it is bound to, empty where it is bound to none: the longer the closer.
    pub fn path(&self) -> &str {
        self.to.path.as_deref().unwrap_or_default()
    }
}

impl FromStr for Credential {
    type Err = BadCredential;

    /// The credential that somebody wrote.
    fn from_str(text: &str) -> Result<Self, BadCredential> {
        let (to, what) = text.split_once('=').ok_or(BadCredential::Form)?;
        let (kind, rest) = what.split_once(':').ok_or(BadCredential::Form)?;
        let with_name = |rest: &str| -> Result<(String, SecretName), BadCredential> {
            let (name, secret) = rest.split_once(':').ok_or(BadCredential::Form)?;
            Ok((name.to_owned(), secret.parse()?))
        };
        let (secret, fill) = match kind {
            "bearer" => (rest.parse()?, Fill::Bearer {}),
            "basic" => {
                let (user, secret) = with_name(rest)?;
                (secret, Fill::Basic { user })
            }
            "query" => {
                let (name, secret) = with_name(rest)?;
                (secret, Fill::Query { name })
            }
            "header" => {
                let (name, text) = rest.split_once(':').ok_or(BadCredential::Form)?;
                let (secret, value) = template(text)?;
                (secret, Fill::Header { name: name.to_ascii_lowercase(), value })
            }
            _ => return Err(BadCredential::Form),
        };
        let credential = Self { to: to.parse()?, secret, fill, require_ours: false };
        credential.validate().map(|()| credential)
    }
}

/// `NAME`, or `token {NAME}`: the secret, and the value of the field.
fn template(text: &str) -> Result<(SecretName, String), BadCredential> {
    let Some((before, rest)) = text.split_once('{') else { return Ok((text.parse()?, VALUE.to_owned())) };
    let (name, after) = rest.split_once('}').ok_or_else(|| BadCredential::Template(text.to_owned()))?;
    Ok((name.parse()?, format!("{before}{VALUE}{after}")))
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, secret, fill, .. } = self;
        match fill {
            Fill::Bearer {} => write!(f, "{to}=bearer:{secret}"),
            Fill::Basic { user } => write!(f, "{to}=basic:{user}:{secret}"),
            Fill::Header { name, value } => {
                write!(f, "{to}=header:{name}:{}", value.replace(VALUE, &format!("{{{secret}}}")))
            }
            Fill::Query { name } => write!(f, "{to}=query:{name}:{secret}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Credential {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_credential_is_written_in_one_line() {
        for text in [
            "api.example.org=bearer:KEY",
            "GET,POST api.example.org:8443/v1=bearer:KEY",
            "git.example.org/team=basic:x-access-token:GIT.TOKEN",
            "api.example.org=header:x-api-key:{KEY}",
            "api.example.org=header:authorization:token {KEY}",
            "api.example.org=query:key:KEY",
        ] {
            assert_eq!(read(text).to_string(), text);
        }
        let plain = read("api.example.org=header:X-API-Key:KEY");
        assert_eq!(plain.fill, Fill::Header { name: "x-api-key".into(), value: "{secret}".into() });
        assert_eq!(plain.secret.as_str(), "KEY");
    }

    #[test]
    fn what_is_none_is_refused_by_what_is_wrong_with_it() {
        for (text, problem) in [
            ("api.example.org", "write a rule"),
            ("api.example.org=KEY", "write a rule"),
            ("api.example.org=token:KEY", "write a rule"),
            ("api.example.org=basic:KEY", "write a rule"),
            ("api.example.org=header:KEY", "write a rule"),
            ("api.example.org=bearer:1KEY", "the name of a secret"),
            ("https://api.example.org=bearer:KEY", "is a URL"),
            ("*.example.org=bearer:KEY", "bound to one host"),
            ("public=bearer:KEY", "bound to one host"),
            ("192.0.2.1=bearer:KEY", "bound to one host"),
            ("api.example.org=header:host:KEY", "no field"),
            ("api.example.org=header:Content-Length:KEY", "no field"),
            ("api.example.org=header:sec-websocket-key:KEY", "no field"),
            ("api.example.org=header:a b:KEY", "no field"),
            ("api.example.org=header:x-key:{KEY", "no value of a field"),
            ("api.example.org=header:x-key:{KEY} {secret}", "no value of a field"),
            ("api.example.org=header:x-key:a\r\nb {KEY}", "no value of a field"),
            ("api.example.org=basic:a\nb:KEY", "no user"),
            ("api.example.org=query:a&b:KEY", "no parameter"),
        ] {
            let refused = text.parse::<Credential>().expect_err(text).to_string();
            assert!(refused.contains(problem), "{text}: {refused}");
        }
    }

    #[test]
    fn it_is_added_where_it_is_bound_to_and_nowhere_else() {
        let credential = read("GET api.example.org:8443/v1=bearer:KEY");
        let host = |name: &str| Host::from_wire(name.as_bytes()).unwrap();
        let is_for = |name, port, method, path| credential.is_for((&host(name), port), method, path);
        assert!(is_for("api.example.org", 8443, "GET", "/v1/things"));
        assert!(!is_for("api.example.org", 443, "GET", "/v1/things"));
        assert!(!is_for("api.example.org", 8443, "POST", "/v1/things"));
        assert!(!is_for("api.example.org", 8443, "GET", "/v10"));
        assert!(!is_for("api.example.org", 8443, "GET", "/v1/../admin"));
        assert!(!is_for("a.api.example.org", 8443, "GET", "/v1"));
        assert!(!is_for("example.org", 8443, "GET", "/v1"));
    }

    #[test]
    fn two_for_the_same_requests_and_field_clash() {
        let clash = |a: &str, b: &str| read(a).clashes(&read(b));
        assert!(clash("api.example.org=bearer:A", "api.example.org=basic:u:B"));
        assert!(clash("GET api.example.org/v1=bearer:A", "GET,POST api.example.org/v1=bearer:B"));
        assert!(clash("api.example.org=bearer:A", "api.example.org/=bearer:B"));
        assert!(clash("api.example.org=query:key:A", "api.example.org=query:KEY:B"));
        assert!(!clash("GET api.example.org=bearer:A", "POST api.example.org=bearer:B"));
        assert!(!clash("api.example.org/v1=bearer:A", "api.example.org/v2=bearer:B"));
        assert!(!clash("api.example.org/v1=bearer:A", "api.example.org/v1/x=bearer:B"));
        assert!(!clash("api.example.org=bearer:A", "api.example.org=header:x-api-key:B"));
        assert!(!clash("api.example.org=bearer:A", "api.example.org:8443=bearer:B"));
    }
}
