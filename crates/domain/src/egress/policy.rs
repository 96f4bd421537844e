//! The policy of a sandbox: what it may reach, and what of that it may ask for.
//!
//! What always holds: nothing is allowed that no rule names. A name is compared label by label and never with an address; a
//! wildcard has at least one label before its suffix, and is not taken in with a suffix under which everybody may register;
//! addresses are reached by ranges alone, or by the word `public`. Each request is decided by itself, on the same canonical host as
//! its connection.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::name::{BadName, Host, HostName, port};

/// The most rules of a policy.
pub const RULES_MAX: usize = 1_000;

/// The port of a rule that names none: HTTPS.
pub const PORT: u16 = 443;

/// The word for all of the public internet.
const PUBLIC: &str = "public";

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// One host, by its name.
    Name(HostName),
    /// All hosts below a name, and not that itself.
    Below(HostName),
    /// Addresses.
    Range(IpNet),
    /// The public internet.
    Public,
}

impl Place {
    /// Whether a connection to `host` is one to it.
    fn has(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Name(name), Host::Name(asked)) => name == asked,
            (Self::Below(suffix), Host::Name(asked)) => asked.is_below(suffix),
            (Self::Range(range), Host::Address(address)) => range.contains(address),
            // The address that it leads to is looked at before it is dialled.
            (Self::Public, _) => true,
            (_, _) => false,
        }
    }
}

/// One thing that is allowed: `[METHOD,…] HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// Where to.
    pub place: Place,
    /// To which port.
    pub port: u16,
    /// By which methods; by any where there are none.
    pub methods: Vec<String>,
    /// Which paths: that one, and what is below it; any where there is none.
    pub path: Option<String>,
}

/// Why something is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// It is written as a URL is.
    #[error("`{0}` is a URL; write its host alone, and its port where that is not 443")]
    Url(String),
    /// Its host is none.
    #[error("`{0}` is no host: {1}")]
    Host(String, BadName),
    /// Its range is none.
    #[error("`{0}` is no range of addresses; write `192.0.2.0/24`, or `[2001:db8::]/32`")]
    Range(String),
    /// A range is not told by its first address.
    #[error("the range `{0}` begins at another address; write `{1}`")]
    Begins(IpNet, IpNet),
    /// Its port is none.
    #[error("`{0}` is no port; give 1 to 65535")]
    Port(String),
    /// One of its methods is none, or none that may be.
    #[error("`{0}` is no method that can be allowed; write methods in capitals, with commas between (`GET,HEAD`)")]
    Method(String),
    /// Its path is none.
    #[error("`{0}` is no path of a rule: it has no `.`, `..`, `%`, `?`, `#`, `\\`, no empty part and no space")]
    Path(String),
    /// Everybody may register below it.
    #[error("`*.{0}` would allow what anybody registers below `{0}`; name more of it")]
    TooWide(HostName),
    /// A star stands elsewhere than before the first dot.
    #[error("a wildcard is `*.` and a name: `{0}` is none")]
    Wildcard(String),
    /// It becomes the word for everything, and was not that.
    #[error("`{0}` is no host; the word for the whole internet is `{PUBLIC}`")]
    NotPublic(String),
    /// It limits requests where there are none.
    #[error("methods and paths are of requests to a host that is named; `{0}` is not")]
    NoRequests(String),
}

impl FromStr for Rule {
    type Err = BadRule;

    /// The rule that somebody wrote, or that was stored: what may not be taken in any more is still read.
    fn from_str(text: &str) -> Result<Self, BadRule> {
        let (methods, rest) = match text.trim().split_once(' ') {
            Some((methods, rest)) => (methods.split(',').map(method).collect::<Result<_, _>>()?, rest.trim_start()),
            None => (Vec::new(), text.trim()),
        };
        if rest.contains("://") {
            return Err(BadRule::Url(rest.to_owned()));
        }
        let rule = Self::of(methods, rest)?;
        if rule.is_of_requests() && !matches!(rule.place, Place::Name(_) | Place::Below(_)) {
            return Err(BadRule::NoRequests(rule.place.to_string()));
        }
        Ok(rule)
    }
}

impl Rule {
    /// Checks what a rule that is new may not be: wider than what one owner registers (the Public Suffix List).
    pub fn validate(&self) -> Result<(), BadRule> {
        match &self.place {
            Place::Below(suffix) if is_public_suffix(suffix) => Err(BadRule::TooWide(suffix.clone())),
            _ => Ok(()),
        }
    }

    fn of(methods: Vec<String>, text: &str) -> Result<Self, BadRule> {
        if let Some(rule) = Self::of_range(&methods, text)? {
            return Ok(rule);
        }
        let (authority, path) = match text.find('/') {
            Some(at) => (&text[..at], Some(path(&text[at..])?)),
            None => (text, None),
        };
        let (host, port) = port_of(authority)?;
        let place = match host.strip_prefix("*.") {
            _ if host == PUBLIC => Place::Public,
            Some(suffix) => Place::Below(named(suffix)?),
            None if host.contains('*') => return Err(BadRule::Wildcard(host.to_owned())),
            None => Place::Name(named(host)?),
        };
        // Told, it would be read as the other.
        if matches!(&place, Place::Name(name) if name.as_str() == PUBLIC) {
            return Err(BadRule::NotPublic(host.to_owned()));
        }
        Ok(Self { place, port, methods, path })
    }

    /// A range of addresses, or one address, with a port perhaps: `192.0.2.0/24:5432`, `[2001:db8::1]`.
    fn of_range(methods: &[String], text: &str) -> Result<Option<Self>, BadRule> {
        let is_v6 = text.starts_with('[');
        let is_v4 = text.split([':', '/']).next().is_some_and(|host| host.parse::<std::net::Ipv4Addr>().is_ok());
        if !is_v6 && !is_v4 {
            return Ok(None);
        }
        let bad = || BadRule::Range(text.to_owned());
        let (address, rest) = if is_v6 {
            text[1..].split_once(']').ok_or_else(bad)?
        } else {
            text.split_at(text.find([':', '/']).unwrap_or(text.len()))
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let (prefix, port) = match rest.split_once(':') {
            Some((prefix, text)) => (prefix, number(text)?),
            None => (rest, PORT),
        };
        let length = match prefix.strip_prefix('/') {
            Some(length) => length.parse().map_err(|_| bad())?,
            None if prefix.is_empty() => {
                if address.is_ipv4() {
                    32
                } else {
                    128
                }
            }
            None => return Err(bad()),
        };
        let range = IpNet::new(address, length).map_err(|_| bad())?;
        if range.trunc() != range {
            return Err(BadRule::Begins(range, range.trunc()));
        }
        Ok(Some(Self { place: Place::Range(range), port, methods: methods.to_vec(), path: None }))
    }

    /// Whether it names `host`, on whichever port.
    pub fn names(&self, host: &Host) -> bool {
        self.place.has(host)
    }

    /// Whether it allows a connection to `host` and `port`, before it is known what is asked for.
    pub fn connects(&self, host: &Host, port: u16) -> bool {
        self.port == port && self.place.has(host)
    }

    /// Whether it allows connections, by their name, to the one host and port of `other`.
    pub fn leads_by_name(&self, other: &Self) -> bool {
        match &other.place {
            Place::Name(name) => self.place != Place::Public && self.connects(&Host::Name(name.clone()), other.port),
            _ => false,
        }
    }

    /// Whether it allows, to the one host that `other` names, every request that `other` allows.
    pub fn covers(&self, other: &Self) -> bool {
        let is_same_place =
            matches!(self.place, Place::Name(_)) && (&self.place, self.port) == (&other.place, other.port);
        let has_all = |methods: &[String]| !methods.is_empty() && methods.iter().all(|one| self.methods.contains(one));
        let path = other.path.as_deref().unwrap_or_default();
        is_same_place
            && (self.methods.is_empty() || has_all(&other.methods))
            && self.path.as_ref().is_none_or(|allowed| is_within(allowed, path))
    }

    /// Whether what is asked for over such a connection has to be seen.
    pub fn is_of_requests(&self) -> bool {
        !self.methods.is_empty() || self.path.is_some()
    }

    /// Whether it allows a request over a connection that it [allows](Self::connects). `path` is what stands before a `?`.
    pub fn requests(&self, method: &str, path: &str) -> bool {
        let is_method = self.methods.is_empty() || self.methods.iter().any(|allowed| allowed == method);
        is_method && self.path.as_ref().is_none_or(|allowed| is_within(allowed, path))
    }
}

fn named(text: &str) -> Result<HostName, BadRule> {
    HostName::from_text(text).map_err(|why| BadRule::Host(text.to_owned(), why))
}

fn number(text: &str) -> Result<u16, BadRule> {
    port(text).filter(|port| *port > 0).ok_or_else(|| BadRule::Port(text.to_owned()))
}

fn port_of(authority: &str) -> Result<(&str, u16), BadRule> {
    match authority.split_once(':') {
        Some((host, port)) => Ok((host, number(port)?)),
        None => Ok((authority, PORT)),
    }
}

/// A method (RFC 9110, section 9.1). Of those that reflect or tunnel none is allowed to anybody.
fn method(text: &str) -> Result<String, BadRule> {
    let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    if is_token && !matches!(text, "TRACE" | "CONNECT") {
        Ok(text.to_owned())
    } else {
        Err(BadRule::Method(text.to_owned()))
    }
}

/// A path in the one form in which paths are compared.
fn path(text: &str) -> Result<String, BadRule> {
    let whole = text.strip_suffix('/').unwrap_or(text);
    if whole.is_empty() || is_canonical(whole) && !whole.ends_with('/') && !whole.contains('%') {
        return Ok(whole.to_owned());
    }
    Err(BadRule::Path(text.to_owned()))
}

/// Whether a path is read in the same way by everybody: no part of it is empty, or made of dots before what some cut off (a
/// parameter, blanks), and nothing that is escaped stands for a slash, for no character, or for another escape.
pub fn is_canonical(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let is_plain = |part: &str| {
        let lower = part.to_ascii_lowercase();
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'\\'))
            && !HIDDEN.iter().any(|hidden| lower.contains(hidden))
            && !is_dots(&lower)
    };
    rest.strip_suffix('/').unwrap_or(rest).split('/').all(is_plain) || rest.is_empty()
}

/// What is read in another way by who decodes it once more, or cuts there: `/`, `\\`, `%`, `?`, `#`, all control characters, and
/// what is no UTF-8 but stands for some of them to some.
const HIDDEN: [&str; 11] = ["%2f", "%5c", "%25", "%3f", "%23", "%0", "%1", "%7f", "%c0", "%c1", "%u"];

/// Whether a part of a path, in small letters, is `.` or `..` to somebody.
fn is_dots(part: &str) -> bool {
    let decoded = part.replace("%2e", ".").replace("%3b", ";").replace("%20", " ");
    let name = decoded.split(';').next().unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| matches!(byte, b'.' | b' '))
}

/// Whether `path` is `allowed` or below it. All is below the root; what is not read in one way only is within nothing else.
fn is_within(allowed: &str, path: &str) -> bool {
    if allowed.is_empty() {
        return true;
    }
    let rest = path.strip_prefix(allowed);
    is_canonical(path) && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
            Self::Range(IpNet::V4(range)) => range.fmt(f),
            Self::Range(IpNet::V6(range)) => write!(f, "[{}]/{}", range.addr(), range.prefix_len()),
            Self::Public => f.write_str(PUBLIC),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.methods.is_empty() {
            write!(f, "{} ", self.methods.join(","))?;
        }
        self.place.fmt(f)?;
        if self.port != PORT {
            write!(f, ":{}", self.port)?;
        }
        match self.path.as_deref() {
            Some("") => f.write_str("/"),
            Some(path) => f.write_str(path),
            None => Ok(()),
        }
    }
}

/// Whether everybody may register below `name`, or below each of its labels. One label alone is taken for such a name.
fn is_public_suffix(name: &HostName) -> bool {
    let name = name.as_str();
    let below = format!("x.{name}");
    [name, &below].iter().any(|whole| psl::suffix_str(whole).is_some_and(|suffix| suffix == *whole))
}

impl TryFrom<String> for Rule {
    type Error = BadRule;

    fn try_from(text: String) -> Result<Self, BadRule> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Rule, BadRule> {
        let rule: Rule = text.parse()?;
        rule.validate().map(|()| rule)
    }

    fn rule(text: &str) -> Rule {
        checked(text).unwrap()
    }

    fn connects(rule: &Rule, host: &str, port: u16) -> bool {
        rule.connects(&Host::from_wire(host.as_bytes()).unwrap(), port)
    }

    #[test]
    fn a_rule_is_read_and_told_in_one_form() {
        for (written, told) in [
            ("Example.org", "example.org"),
            ("example.org:443", "example.org"),
            ("example.org:22", "example.org:22"),
            ("*.example.org", "*.example.org"),
            ("GET,HEAD example.org/v1/", "GET,HEAD example.org/v1"),
            ("example.org/", "example.org/"),
            ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("[2001:db8::]/32", "[2001:db8::]/32"),
            ("[2001:db8::1]:80", "[2001:db8::1]/128:80"),
            ("public", "public"),
            ("public:80", "public:80"),
            ("bücher.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(rule(written).to_string(), told, "{written}");
            assert_eq!(told.parse::<Rule>().unwrap(), rule(written), "{written}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in [
            "",
            "*",
            "*.com",
            "*.co.uk",
            "*.uk",
            "*.github.io",
            "*.kawasaki.jp",
            "*.internal",
            ".example.org",
            "a.*.org",
            "exa*mple.org",
            "**.example.org",
            "example.org:0",
            "example.org:65536",
            "example.org:+1",
            "example.org:",
            "get example.org",
            "TRACE example.org",
            "CONNECT example.org",
            "GET, example.org",
            "example.org/a/../b",
            "example.org/a%2fb",
            "example.org//a",
            "example.org/a?b",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "127.1",
            "0x7f.0.0.1",
            "[::1",
            "[fe80::1%eth0]",
            "2001:db8::1",
            "GET 10.0.0.0/8",
            "GET public",
            "public/a",
            "user@example.org",
            "https://example.org",
            "example.org//",
            "PUBLIC",
            "public.",
            "ｐublic",
            "example.org/a//",
            "exam ple.org",
        ] {
            assert!(checked(bad).is_err(), "{bad}: {:?}", checked(bad));
        }
    }

    #[test]
    fn a_url_is_no_rule_and_the_way_out_is_told() {
        let error = checked("https://example.org").unwrap_err();
        assert_eq!(error, BadRule::Url("https://example.org".to_owned()));
    }

    #[test]
    fn a_rule_allows_what_it_names() {
        let name = rule("example.org");
        assert!(connects(&name, "EXAMPLE.org.", 443));
        assert!(!connects(&name, "example.org", 80) && !connects(&name, "a.example.org", 443));
        let below = rule("*.example.org");
        assert!(connects(&below, "a.example.org", 443) && connects(&below, "b.a.example.org", 443));
        for other in ["example.org", "evil-example.org", "a.example.org.evil.net", "192.0.2.1"] {
            assert!(!connects(&below, other, 443), "{other}");
        }
        let range = rule("10.0.0.0/8:5432");
        assert!(connects(&range, "10.1.2.3", 5432));
        assert!(!connects(&range, "11.1.2.3", 5432) && !connects(&range, "10.1.2.3", 443));
        assert!(!connects(&range, "db.example.org", 5432), "a name is no address");
        assert!(connects(&rule("public"), "example.org", 443) && connects(&rule("public"), "192.0.2.1", 443));
    }

    #[test]
    fn a_rule_allows_requests_within_its_path() {
        let rule = rule("GET,HEAD example.org/v1/models");
        for path in ["/v1/models", "/v1/models/", "/v1/models/a"] {
            assert!(rule.requests("GET", path), "{path}");
        }
        assert!(!rule.requests("POST", "/v1/models") && !rule.requests("get", "/v1/models"));
        for path in [
            "/v1/modelsx",
            "/v1",
            "/",
            "",
            "v1/models",
            "/v1/models/../keys",
            "/v1/models/%2e%2E/keys",
            "/v1/models/.",
            "/v1/models%2fa",
            "/v1/models/a%5Cb",
            "/v1/models//a",
            "//v1/models",
            "/v1/models\\a",
            "/v1/models/a b",
            // What some servers read as `..`.
            "/v1/models/..;/keys",
            "/v1/models/..;a=b/keys",
            "/v1/models/%2e%2e;a/keys",
            "/v1/models/..%3b/keys",
            "/v1/models/..%20/keys",
            "/v1/models/%252e%252e/keys",
            "/v1/models/.%09./keys",
            "/v1/models/..%00/keys",
            "/v1/models/%7f",
            "/v1/models/..%3fx",
            "/v1/models/..%23x",
            "/v1/models/%c0%ae%c0%ae/keys",
            "/v1/models/%u002e%u002e/keys",
        ] {
            assert!(!rule.requests("GET", path), "{path}");
        }
        for path in ["/v1/models/a;b=c", "/v1/models/a%20b", "/v1/models/...a", "/v1/models/%C3%A9"] {
            assert!(rule.requests("GET", path), "{path}");
        }
        let all = super::tests::rule("example.org/");
        assert!(
            all.requests("DELETE", "/anything")
                && all.requests("GET", "/@scope%2fname")
                && all.requests("GET", "/a//b")
        );
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_is_told_as_it_is_read(text in "\\PC{0,60}") {
            if let Ok(rule) = text.parse::<Rule>() {
                proptest::prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }
    }
}
