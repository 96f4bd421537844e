//! Secrets: how they are named, and what is not taken for one.
//!
//! What always holds: a value that was taken can stand in one line of a head, is long enough that what it is masked in is not
//! torn to pieces, and is none of those that stand in example files for the real one (SPEC K4).
//!
//! Left out: the values themselves, and how they are sealed (`holm-server`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest name of a secret, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The shortest value of a secret, in bytes: whatever is as short stands in answers by chance.
pub const VALUE_BYTES_MIN: usize = 8;
/// The longest value of a secret, in bytes.
pub const VALUE_BYTES_MAX: usize = 4_096;
/// The most secrets of an org.
pub const SECRETS_MAX: u32 = 1_000;

/// The name of a secret: a letter, then letters, digits, `_`, `-` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

/// Something that is no name of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a secret is a letter and then letters, digits, `_`, `-` and `.`, at most {NAME_BYTES_MAX} in all")]
pub struct BadSecretName;

impl SecretName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = BadSecretName;

    fn from_str(text: &str) -> Result<Self, BadSecretName> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if begins && text.len() <= NAME_BYTES_MAX && text.bytes().all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadSecretName)
        }
    }
}

impl TryFrom<String> for SecretName {
    type Error = BadSecretName;

    fn try_from(text: String) -> Result<Self, BadSecretName> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a value is not taken for a secret. It does not tell the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// It is shorter than [`VALUE_BYTES_MIN`].
    #[error("it is shorter than {VALUE_BYTES_MIN} bytes: what is as short could not be masked in answers")]
    Short,
    /// It is longer than [`VALUE_BYTES_MAX`].
    #[error("it is longer than {VALUE_BYTES_MAX} bytes")]
    Long,
    /// It has a character that cannot stand in a head.
    #[error("it has a line break, or another control character, which cannot stand in a request")]
    Control,
    /// It begins or ends with a blank, which is lost on the way.
    #[error("it begins or ends with a blank, which is lost in a request")]
    Blank,
    /// It stands in an example for the real one.
    #[error("it is a placeholder, as example files have; give the real one")]
    Placeholder,
}

/// Checks the value of a secret.
pub fn check_value(value: &str) -> Result<(), BadValue> {
    if value.len() < VALUE_BYTES_MIN {
        Err(if is_placeholder(value) { BadValue::Placeholder } else { BadValue::Short })
    } else if value.len() > VALUE_BYTES_MAX {
        Err(BadValue::Long)
    } else if value.chars().any(char::is_control) {
        Err(BadValue::Control)
    } else if value.starts_with(' ') || value.ends_with(' ') {
        Err(BadValue::Blank)
    } else if is_placeholder(value) {
        Err(BadValue::Placeholder)
    } else {
        Ok(())
    }
}

/// What stands in example files in the place of a secret, in small letters and without what is no letter and no digit.
const PLACEHOLDERS: [&str; 21] = [
    "apikey",
    "changeit",
    "changeme",
    "dummy",
    "example",
    "fixme",
    "foobar",
    "insertkeyhere",
    "mysecret",
    "none",
    "null",
    "pastehere",
    "password",
    "placeholder",
    "replaceme",
    "secret",
    "secretkey",
    "test",
    "todo",
    "token",
    "undefined",
];
/// How what stands there begins where more follows.
const BEGINS: [&str; 7] = ["your", "changeme", "replacewith", "replacethis", "insertyour", "enteryour", "addyour"];

/// Whether a value is one that an example has in the place of a secret.
pub fn is_placeholder(value: &str) -> bool {
    let value = value.trim();
    let plain: String = value.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let is_in = |open: &str, close: &str| value.starts_with(open) && value.ends_with(close);
    let mut characters = plain.chars();
    let first = characters.next();
    // `xxxx…`, `****`, `...`: nothing, or one character again and again.
    let is_one = characters.all(|c| Some(c) == first);
    // A key that has a prefix and nothing real behind it: `sk-xxxxxxxx`.
    let is_crossed_out = plain.ends_with("xxxx");
    is_one
        || is_crossed_out
        || is_in("<", ">")
        || is_in("${", "}")
        || is_in("{{", "}}")
        || PLACEHOLDERS.contains(&plain.as_str())
        || BEGINS.iter().any(|begin| plain.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["A", "github", "OPENAI_API_KEY", "team.api-key_2"] {
            assert_eq!(good.parse::<SecretName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "1a", "_a", "a b", "a/b", "a:b", "a=b", "ä", "a\n", "a,b", &"a".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(bad.parse::<SecretName>(), Err(BadSecretName), "{bad:?}");
        }
    }

    #[test]
    fn what_an_example_has_is_no_secret() {
        for placeholder in [
            "changeme",
            "CHANGE-ME",
            "your-api-key",
            "your_token_here",
            "<token>",
            "${TOKEN}",
            "{{ secrets.TOKEN }}",
            "xxxxxxxxxxxx",
            "sk-xxxxxxxxxxxxxxxx",
            "************",
            "................",
            "placeholder",
            "Replace with your key",
            "",
        ] {
            assert!(is_placeholder(placeholder), "{placeholder}");
            assert_eq!(check_value(placeholder), Err(BadValue::Placeholder), "{placeholder}");
        }
        for real in ["b9f2c1e07d5a4488a3fe", "sk-proj-Zk3v", "hunter2hunter3", "correct horse battery"] {
            assert_eq!(check_value(real), Ok(()), "{real}");
        }
    }

    #[test]
    fn what_cannot_stand_in_a_request_is_no_secret() {
        for (value, why) in [
            ("1234567", BadValue::Short),
            ("12345678\n", BadValue::Control),
            ("1234\r\n5678", BadValue::Control),
            ("1234\u{0}5678", BadValue::Control),
            (" 12345678", BadValue::Blank),
            ("12345678 ", BadValue::Blank),
            (&"ab".repeat(VALUE_BYTES_MAX), BadValue::Long),
        ] {
            assert_eq!(check_value(value), Err(why), "{value:?}");
        }
    }
}
