//! Secrets of orgs and projects: make, give another value, bind, list, remove. No answer bears a value.

use holm_domain::{SecretId, UnixMicros, egress::bound::Bound, secret::SecretName};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// The value of a secret on its way to a server. No text shows it.
#[derive(Clone, Deserialize)]
pub struct SecretValue(SecretString);

impl SecretValue {
    /// The value itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<SecretString> for SecretValue {
    fn from(value: SecretString) -> Self {
        Self(value)
    }
}

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretValue([redacted])")
    }
}

/// For the requests that bring it.
impl Serialize for SecretValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

/// `POST /v1/secrets`: the body.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSecret {
    /// Its name: a letter, then letters, digits, `_`, `-` and `.`, at most 64 in all.
    pub name: String,
    /// The value: 8 to 4096 bytes on one line, and no placeholder of an example file.
    #[schema(value_type = String)]
    pub value: SecretValue,
    /// To where runs may have it brought: 1 to 16 rules that each name one host (`GET,POST api.example.org:8443/v1`), or
    /// `anywhere` alone, by which any member of the org can read it.
    // Where it is left out the way out is told.
    #[serde(default, rename = "for")]
    #[schema(required = true, min_items = 1, max_items = 16)]
    pub bound: Vec<String>,
    /// The project by name, whose runs alone may have it; the whole org where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// `PUT /v1/secrets/{name}`: the body.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateSecret {
    /// The next value: 8 to 4096 bytes on one line, and no placeholder of an example file.
    #[schema(value_type = String)]
    pub value: SecretValue,
    /// To where runs may have it brought from now on; as before where it is left out.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 16)]
    pub bound: Option<Vec<String>>,
    /// The project by name to which the secret belongs; the whole org where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// `PUT /v1/secrets/{name}/for`: the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindSecret {
    /// To where runs may have it brought from now on: 1 to 16 rules that each name one host, or `anywhere` alone.
    // Where it is left out the way out is told.
    #[serde(default, rename = "for")]
    #[schema(required = true, min_items = 1, max_items = 16)]
    pub bound: Vec<String>,
    /// The project by name to which the secret belongs; the whole org where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// `DELETE /v1/secrets/{name}`: the query.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteSecret {
    /// The project by name to which the secret belongs; the whole org where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// A secret as it is shown: never its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretView {
    /// Its identity.
    #[schema(value_type = String)]
    pub id: SecretId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: SecretName,
    /// The project by name, whose runs alone may have it; nothing where it is for the whole org.
    pub project: Option<String>,
    /// How many values it has had, with this one.
    pub version: u64,
    /// To where runs may have it brought: rules, or `anywhere`.
    #[serde(rename = "for")]
    #[schema(value_type = Vec<String>)]
    pub bound: Bound,
    /// When it was made, in microseconds since the Unix epoch.
    #[schema(value_type = i64)]
    pub created_at: UnixMicros,
    /// When it was given its value.
    #[schema(value_type = i64)]
    pub updated_at: UnixMicros,
}

/// `GET /v1/secrets`: the secrets of the org and of its projects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretList {
    /// The secrets, by name; that of the whole org before those of projects.
    pub secrets: Vec<SecretView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_not_shown_but_where_it_is_sent() {
        let value = SecretValue::from(SecretString::from("geheimnis"));
        let bound = vec!["anywhere".to_owned()];
        let body = CreateSecret { name: "token".to_owned(), value, bound, project: None };
        assert!(!format!("{body:?}").contains("geheim"));
        let sent = serde_json::to_string(&body).unwrap();
        assert_eq!(sent, r#"{"name":"token","value":"geheimnis","for":["anywhere"]}"#);
        assert_eq!(serde_json::from_str::<CreateSecret>(&sent).unwrap().value.expose(), "geheimnis");
    }
}
