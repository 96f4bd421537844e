//! To where a secret may be brought, as its keeper has said: who runs something chooses among that, and adds nothing to it.
//!
//! What always holds: a credential that is allowed is for no request that the rules do not allow as well; nothing is bound to no
//! place at all, and what is bound to all is so by its own word.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    credential::Credential,
    policy::{BadRule, Place, Rule},
};

/// The most rules to which a secret is bound.
pub const BOUND_RULES_MAX: usize = 16;
/// The longest rule to which a secret is bound, in bytes.
pub const BOUND_RULE_BYTES_MAX: usize = 512;
/// The word for all hosts.
pub const ANYWHERE: &str = "anywhere";

/// To where a secret may be brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Bound(Reach);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reach {
    Anywhere,
    Rules(Vec<Rule>),
}

/// Why a secret cannot be bound so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBound {
    /// It is bound to nothing.
    #[error("say to where it may be brought: rules such as `api.example.org/v1`, or `{ANYWHERE}`")]
    Nothing,
    /// It is bound to more than can be kept.
    #[error("a secret is bound to {BOUND_RULES_MAX} rules at most, not {0}")]
    Many(usize),
    /// A rule is longer than can be kept.
    #[error("a rule has {BOUND_RULE_BYTES_MAX} bytes at most, not {0}")]
    Long(usize),
    /// The word for all hosts stands beside rules.
    #[error("`{ANYWHERE}` stands alone: beside it no rule binds anything")]
    Both,
    /// A rule would be read as the word for all hosts.
    #[error("`{0}` is no rule; the word for all hosts is `{ANYWHERE}`, and a host of that name is `{ANYWHERE}/`")]
    NotAnywhere(String),
    /// One of them is no rule.
    #[error(transparent)]
    Rule(#[from] BadRule),
    /// One of them names more than one host.
    #[error("a secret is bound to hosts by their names; `{0}` is none")]
    Wide(String),
}

impl Bound {
    /// What somebody wrote: the word for all hosts alone, or rules.
    pub fn read<T: AsRef<str>>(texts: &[T]) -> Result<Self, BadBound> {
        match texts {
            [] => Err(BadBound::Nothing),
            [word] if word.as_ref() == ANYWHERE => Ok(Self(Reach::Anywhere)),
            texts if texts.len() > BOUND_RULES_MAX => Err(BadBound::Many(texts.len())),
            texts => {
                let rules = texts.iter().map(|text| rule(text.as_ref())).collect::<Result<_, _>>()?;
                Ok(Self(Reach::Rules(rules)))
            }
        }
    }

    /// What is read as it again.
    pub fn texts(&self) -> Vec<String> {
        match &self.0 {
            Reach::Anywhere => vec![ANYWHERE.to_owned()],
            Reach::Rules(rules) => rules.iter().map(ToString::to_string).collect(),
        }
    }

    /// Whether a secret that is bound so may be brought to where the credential is for.
    pub fn allows(&self, credential: &Credential) -> bool {
        match &self.0 {
            Reach::Anywhere => true,
            Reach::Rules(rules) => rules.iter().any(|rule| rule.covers(&credential.to)),
        }
    }
}

fn rule(text: &str) -> Result<Rule, BadBound> {
    if text == ANYWHERE {
        return Err(BadBound::Both);
    }
    if text.len() > BOUND_RULE_BYTES_MAX {
        return Err(BadBound::Long(text.len()));
    }
    let rule: Rule = text.parse()?;
    if !matches!(rule.place, Place::Name(_)) {
        return Err(BadBound::Wide(rule.place.to_string()));
    }
    // Told, it would be read as the other.
    if rule.to_string() == ANYWHERE {
        return Err(BadBound::NotAnywhere(text.to_owned()));
    }
    Ok(rule)
}

impl TryFrom<Vec<String>> for Bound {
    type Error = BadBound;

    fn try_from(texts: Vec<String>) -> Result<Self, BadBound> {
        Self::read(&texts)
    }
}

impl From<Bound> for Vec<String> {
    fn from(bound: Bound) -> Self {
        bound.texts()
    }
}

impl fmt::Display for Bound {
    /// For people: rules have commas of their own, so a blank follows those between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(texts: &[&str]) -> Bound {
        Bound::read(texts).unwrap_or_else(|error| panic!("{texts:?}: {error}"))
    }

    fn credential(to: &str) -> Credential {
        format!("{to}=bearer:KEY").parse().unwrap_or_else(|error| panic!("{to}: {error}"))
    }

    #[test]
    fn it_is_read_and_told_in_one_form() {
        for (written, told) in [
            (&["anywhere"][..], "anywhere"),
            (&["Api.Example.org:443/v1/"], "api.example.org/v1"),
            (&["GET,HEAD api.example.org", "other.example:8443"], "GET,HEAD api.example.org, other.example:8443"),
            (&["anywhere/"], "anywhere/"),
        ] {
            let read = bound(written);
            assert_eq!(read.to_string(), told, "{written:?}");
            let text = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Bound>(&text).unwrap(), read, "{text}");
        }
        assert_eq!(serde_json::to_string(&bound(&["anywhere"])).unwrap(), r#"["anywhere"]"#);
    }

    #[test]
    fn what_binds_to_nothing_or_to_more_than_hosts_is_refused() {
        let many = vec!["api.example.org"; BOUND_RULES_MAX + 1];
        let long = format!("api.example.org/{}", "a".repeat(BOUND_RULE_BYTES_MAX));
        for (texts, words) in [
            (&[][..], "say to where"),
            (&[""], "no host"),
            (&["*.example.org"], "by their names; `*.example.org`"),
            (&["public"], "by their names; `public`"),
            (&["192.0.2.1"], "by their names; `192.0.2.1/32`"),
            (&["https://api.example.org"], "is a URL"),
            (&["api.example.org/a/../b"], "no path"),
            (&["anywhere", "api.example.org"], "stands alone"),
            (&["api.example.org", "anywhere"], "stands alone"),
            (&["Anywhere"], "the word for all hosts"),
            (&["anywhere."], "the word for all hosts"),
            (&["anywhere:443"], "the word for all hosts"),
            (&many, "16 rules at most, not 17"),
            (&[&long], "512 bytes at most"),
        ] {
            let refused = Bound::read(texts).expect_err(&format!("{texts:?}")).to_string();
            assert!(refused.contains(words), "{texts:?}: {refused}");
            assert!(Bound::try_from(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).is_err());
        }
        assert!(Bound::read(&many[1..]).is_ok());
    }

    #[test]
    fn it_allows_what_a_rule_covers_and_nothing_else() {
        let all = bound(&["anywhere"]);
        let narrow = bound(&["GET,POST api.example.org:8443/v1", "git.example.org"]);
        for to in [
            "GET api.example.org:8443/v1",
            "GET,POST api.example.org:8443/v1/",
            "POST,GET api.example.org:8443/v1/things",
            "git.example.org",
            "git.example.org/",
            "GET git.example.org/team",
        ] {
            assert!(narrow.allows(&credential(to)) && all.allows(&credential(to)), "{to}");
        }
        for to in [
            "GET evil.example:8443/v1",
            "GET a.api.example.org:8443/v1",
            "GET example.org:8443/v1",
            "GET api.example.org/v1",
            "GET api.example.org:8444/v1",
            "GET api.example.org:8443",
            "GET api.example.org:8443/",
            "GET api.example.org:8443/v10",
            "GET api.example.org:8443/v",
            "GET api.example.org:8443/V1",
            "api.example.org:8443/v1",
            "GET,DELETE api.example.org:8443/v1",
            "DELETE api.example.org:8443/v1",
            "git.example.org:22",
        ] {
            assert!(!narrow.allows(&credential(to)) && all.allows(&credential(to)), "{to}");
        }
    }

    #[test]
    fn a_rule_for_the_root_is_one_for_every_path() {
        for (rule, to) in [("api.example.org", "api.example.org/"), ("api.example.org/", "api.example.org")] {
            assert!(bound(&[rule]).allows(&credential(to)), "{rule}");
        }
    }

    /// Few hosts, ports, methods and parts, so that they meet.
    fn rules() -> impl Strategy<Value = String> {
        let methods = prop::sample::select(vec!["", "GET ", "POST ", "GET,POST ", "DELETE,GET "]);
        let host = prop::sample::select(vec!["a.example", "b.example", "b.a.example"]);
        let port = prop::sample::select(vec!["", ":443", ":8443"]);
        (methods, host, port, paths()).prop_map(|(methods, host, port, path)| format!("{methods}{host}{port}{path}"))
    }

    fn paths() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec!["/v", "/v1", "/v10", "/x"]);
        prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn whatever_an_allowed_credential_is_for_is_allowed_by_a_rule(
            texts in prop::collection::vec(rules(), 1..4),
            to in rules(),
            method in prop::sample::select(vec!["GET", "POST", "DELETE", "PUT"]),
            (host, port) in (prop::sample::select(vec!["a.example", "b.example", "b.a.example"]), prop::sample::select(vec![443, 8443])),
            path in (paths(), prop::sample::select(vec!["", "/", "/../x", "//x", "/%2e%2e/x"])).prop_map(|(path, end)| path + end),
        ) {
            let (bound, credential) = (Bound::read(&texts).unwrap(), credential(&to));
            let host = super::super::name::Host::from_wire(host.as_bytes()).unwrap();
            if bound.allows(&credential) && credential.is_for((&host, port), method, &path) {
                let rules = texts.iter().map(|text| text.parse::<Rule>().unwrap());
                let allows = |rule: Rule| rule.connects(&host, port) && rule.requests(method, &path);
                prop_assert!(rules.into_iter().any(allows), "{texts:?} {to}: {method} {port} {path}");
            }
        }

        #[test]
        fn what_one_rule_allows_is_allowed_of_a_credential_for_it(text in rules()) {
            prop_assert!(bound(&[&text]).allows(&credential(&text)));
        }
    }
}
