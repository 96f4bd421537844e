//! Names of hosts, in the one form in which they are compared, resolved, certified and told.
//!
//! What always holds: two names are the same where their bytes are. What comes over a wire is in that form but for the case of
//! its letters and one dot at its end, or is refused: it is not mended, because what is mended here may be mended otherwise
//! elsewhere. Only what people write into a policy may have letters of any script (UTS #46, strict and non-transitional).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};

/// The most characters of a name (RFC 1035, section 2.3.4, without the dot at its end).
pub const NAME_MAX: usize = 253;

/// The most characters of a label (RFC 1035, section 2.3.4).
pub const LABEL_MAX: usize = 63;

/// Why something is not the name of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// There is nothing, or nothing between two dots.
    #[error("a label is empty")]
    EmptyLabel,
    /// It is too long.
    #[error("it is longer than {NAME_MAX} characters")]
    TooLong,
    /// One of its labels is.
    #[error("a label is longer than {LABEL_MAX} characters")]
    LabelTooLong,
    /// A label has something else than letters, digits and hyphens.
    #[error("a label has other characters than letters, digits and hyphens")]
    Character,
    /// A label begins or ends with a hyphen.
    #[error("a label begins or ends with a hyphen")]
    Hyphen,
    /// Some would read it as an address (the WHATWG URL Standard's "ends in a number").
    #[error("its last label is a number, so some would read it as an address")]
    Number,
    /// What people wrote is no name in any script.
    #[error("it is no name by UTS #46")]
    Idna,
}

/// The number of a port: digits alone (RFC 3986, section 3.2.3), 0 to 65,535.
pub fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The name of a host: letters, which are small, digits and hyphens, in labels; no dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// The name that came over a wire. Its letters may be large, and one dot may be at its end.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, BadName> {
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        if bytes.len() > NAME_MAX {
            return Err(BadName::TooLong);
        }
        let labels = bytes.split(|byte| *byte == b'.');
        let last = labels.map(label).try_fold(&b""[..], |_, label| label)?;
        if is_number(last) {
            return Err(BadName::Number);
        }
        // All of it is ASCII.
        Ok(Self(bytes.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect()))
    }

    /// The name that somebody wrote, in any script.
    pub fn from_text(text: &str) -> Result<Self, BadName> {
        let ascii = Uts46::new().to_ascii(text.as_bytes(), AsciiDenyList::STD3, Hyphens::Check, DnsLength::Ignore);
        Self::from_wire(ascii.map_err(|_| BadName::Idna)?.as_bytes())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has at least one label before `suffix`.
    pub fn is_below(&self, suffix: &Self) -> bool {
        self.0.strip_suffix(suffix.as_str()).is_some_and(|before| before.len() > 1 && before.ends_with('.'))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HostName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        Self::from_wire(text.as_bytes())
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

/// A label, if it is one.
fn label(label: &[u8]) -> Result<&[u8], BadName> {
    if label.is_empty() {
        return Err(BadName::EmptyLabel);
    }
    if label.len() > LABEL_MAX {
        return Err(BadName::LabelTooLong);
    }
    if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') {
        return Err(BadName::Character);
    }
    if label.starts_with(b"-") || label.ends_with(b"-") {
        return Err(BadName::Hyphen);
    }
    Ok(label)
}

/// Whether a label is a number, as resolvers and browsers read one: by tens, eights or sixteens.
fn is_number(label: &[u8]) -> bool {
    let by_sixteens = label.strip_prefix(b"0x").or(label.strip_prefix(b"0X"));
    label.iter().all(u8::is_ascii_digit) || by_sixteens.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

/// Where a connection is to go: what the client asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// By name.
    Name(HostName),
    /// By address.
    Address(IpAddr),
}

impl Host {
    /// The host of an authority as it came over a wire (RFC 3986, section 3.2.2): a name, four numbers by tens, or an address of
    /// IPv6 in brackets and without a zone.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, BadName> {
        let text = |bytes| str::from_utf8(bytes).map_err(|_| BadName::Character);
        if let Some(inner) = bytes.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
            return Ipv6Addr::from_str(text(inner)?).map(|v6| Self::Address(v6.into())).map_err(|_| BadName::Character);
        }
        match HostName::from_wire(bytes) {
            Err(BadName::Number) => {
                Ipv4Addr::from_str(text(bytes)?).map(|v4| Self::Address(v4.into())).map_err(|_| BadName::Number)
            }
            name => name.map(Self::Name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(v4)) => v4.fmt(f),
            Self::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(text: &str) -> Result<String, BadName> {
        HostName::from_wire(text.as_bytes()).map(String::from)
    }

    #[test]
    fn a_name_from_a_wire_is_in_its_form_but_for_case_and_a_dot() {
        assert_eq!(wire("Example.ORG."), Ok("example.org".to_owned()));
        assert_eq!(wire("xn--bcher-kva.example"), Ok("xn--bcher-kva.example".to_owned()));
        assert_eq!(wire(&"a".repeat(63)), Ok("a".repeat(63)));
        let cases = [
            ("", BadName::EmptyLabel),
            (".", BadName::EmptyLabel),
            ("example.org..", BadName::EmptyLabel),
            (".example.org", BadName::EmptyLabel),
            ("a..b", BadName::EmptyLabel),
            ("evil.example\0.google.com", BadName::Character),
            ("a b.example", BadName::Character),
            ("a%2eb.example", BadName::Character),
            ("user@example.org", BadName::Character),
            ("example.org\\", BadName::Character),
            ("example.org\r\nx", BadName::Character),
            ("bücher.example", BadName::Character),
            ("example。org", BadName::Character),
            ("a_b.example", BadName::Character),
            ("*.example.org", BadName::Character),
            ("-a.example", BadName::Hyphen),
            ("a-.example", BadName::Hyphen),
            ("2130706433", BadName::Number),
            ("0x7f000001", BadName::Number),
            ("0x", BadName::Number),
            ("0177.0.0.1", BadName::Number),
            ("127.1", BadName::Number),
            ("example.0X7F", BadName::Number),
        ];
        for (text, expected) in cases {
            assert_eq!(wire(text), Err(expected), "{text}");
        }
        assert_eq!(wire(&"a".repeat(64)), Err(BadName::LabelTooLong));
        assert_eq!(wire(&["a"; 128].join(".")), Err(BadName::TooLong));
    }

    #[test]
    fn what_people_write_may_be_in_any_script() {
        let text = |text: &str| HostName::from_text(text).map(String::from);
        assert_eq!(text("Bücher.example"), Ok("xn--bcher-kva.example".to_owned()));
        assert_eq!(text("straße.example"), Ok("xn--strae-oqa.example".to_owned()), "not as it was in 2003");
        assert_eq!(text("example。org"), Ok("example.org".to_owned()));
        assert_eq!(text("EXAMPLE.org."), Ok("example.org".to_owned()));
        for bad in ["a b.example", "xn--a.example", "a\u{200d}b.example", "a_b.example", "example\0.org"] {
            assert_eq!(text(bad), Err(BadName::Idna), "{bad:?}");
        }
    }

    #[test]
    fn what_is_below_a_name_has_a_label_more() {
        let name = |text: &str| HostName::from_text(text).unwrap();
        let suffix = name("example.org");
        assert!(name("a.example.org").is_below(&suffix) && name("b.a.example.org").is_below(&suffix));
        for other in ["example.org", "evil-example.org", "example.org.evil.net", "xexample.org", "org"] {
            assert!(!name(other).is_below(&suffix), "{other}");
        }
    }

    #[test]
    fn an_address_is_written_in_one_way() {
        let host = |text: &str| Host::from_wire(text.as_bytes()).map(|host| host.to_string());
        assert_eq!(host("127.0.0.1"), Ok("127.0.0.1".to_owned()));
        assert_eq!(host("[::FFFF:7f00:1]"), Ok("[::ffff:127.0.0.1]".to_owned()));
        assert_eq!(host("Example.org"), Ok("example.org".to_owned()));
        for bad in ["127.1", "0177.0.0.1", "127.0.0.1.", "0x7f.0.0.1", "256.0.0.1", "1.2.3.4.5"] {
            assert_eq!(host(bad), Err(BadName::Number), "{bad}");
        }
        for bad in ["::1", "[::1%eth0]", "[fe80::1%25eth0]", "[127.0.0.1]", "[::1", "[]"] {
            assert_eq!(host(bad), Err(BadName::Character), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_name_that_is_accepted_is_its_own_form(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            if let Ok(name) = HostName::from_wire(&bytes) {
                proptest::prop_assert_eq!(HostName::from_wire(name.as_str().as_bytes()), Ok(name.clone()));
                let written = HostName::from_text(name.as_str());
                proptest::prop_assert!(written.is_err() || written.as_ref() == Ok(&name), "{:?}", written);
                proptest::prop_assert!(!name.as_str().ends_with('.') && name.as_str().is_ascii());
            }
        }
    }
}
