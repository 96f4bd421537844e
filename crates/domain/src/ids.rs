//! Identities: a prefix that names the kind, and a UUID of version 7 (RFC 9562 §5.7) in Crockford's base 32.
//!
//! The text form is `run_01j9…`: 26 lower-case characters after the prefix, so ids sort by creation time, survive a double
//! click and can be told apart. Parsing accepts exactly that form; an id is never pasted into a path before it was parsed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 26;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id of the form `{prefix}_` followed by 26 characters of 0-9a-z")]
pub struct InvalidId {
    /// The kind that was wanted.
    pub prefix: &'static str,
    /// What was given, cut to 64 characters.
    pub text: String,
}

fn encode(value: u128) -> [u8; DIGITS] {
    let mut digits = [0u8; DIGITS];
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    digits
}

fn decode(text: &str) -> Option<u128> {
    let bytes = text.as_bytes();
    // 26 digits hold 130 bits: the first may only carry the upper three.
    if bytes.len() != DIGITS || bytes[0] > b'7' {
        return None;
    }
    bytes.iter().try_fold(0u128, |value, byte| {
        let digit = ALPHABET.iter().position(|a| a == byte)?;
        Some((value << 5) | digit as u128)
    })
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// The text before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// Makes an id of a UUID that the caller drew.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let digits = encode(self.0.as_u128());
                f.write_str($prefix)?;
                f.write_str("_")?;
                f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(decode)
                    .map(|value| Self(Uuid::from_u128(value)))
                    .ok_or_else(|| InvalidId { prefix: $prefix, text: text.chars().take(64).collect() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A tenant: the boundary that nothing crosses.
    OrgId, "org"
);
id!(
    /// A project of an org.
    ProjectId, "prj"
);
id!(
    /// One workload from submission to its end.
    RunId, "run"
);
id!(
    /// The identity of an agent, and of the host that it serves.
    AgentId, "agt"
);
id!(
    /// One process of an agent, drawn anew at each start: it tells an agent from its predecessors and from its copies.
    InstanceId, "ins"
);
id!(
    /// An API token; its secret is another thing.
    TokenId, "tok"
);
id!(
    /// A key by which the deployment signs tokens: the `kid` of what it signed.
    KeyId, "key"
);
id!(
    /// A data key: it seals other secrets and is sealed itself by the root key.
    EnvelopeId, "env"
);
id!(
    /// A secret of an org.
    SecretId, "sec"
);
id!(
    /// One signed token (`jti`).
    SignedTokenId, "jti"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_back(value: u128) {
            let id = RunId::from_uuid(Uuid::from_u128(value));
            prop_assert_eq!(id.to_string().parse::<RunId>(), Ok(id));
        }

        #[test]
        fn order_of_text_is_order_of_value(a: u128, b: u128) {
            let (x, y) = (RunId::from_uuid(Uuid::from_u128(a)), RunId::from_uuid(Uuid::from_u128(b)));
            prop_assert_eq!(x.cmp(&y), x.to_string().cmp(&y.to_string()));
        }

        #[test]
        fn nothing_else_parses(text in "\\PC{0,40}") {
            if let Ok(id) = text.parse::<RunId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn another_kind_is_refused() {
        let org = OrgId::from_uuid(Uuid::nil()).to_string();
        assert!(org.parse::<RunId>().is_err());
        assert!("run_80000000000000000000000000".parse::<RunId>().is_err(), "more than 128 bits");
        assert!("run_../../../etc/passwd0000000".parse::<RunId>().is_err());
    }
}
