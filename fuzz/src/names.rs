//! Names and addresses of hosts, and rules about them.
//!
//! The first byte says which: a name from a wire, the host of an authority, or a rule and what is asked for by it: after a NUL
//! byte each the host of an authority, a method and a path. What must hold: what is accepted is in the one form, and comes back
//! from it; a rule comes back from how it is told; a rule about names allows what a comparison label by label does, and nothing
//! for an address; one about paths allows what a comparison part by part does, and nothing that may be read in another way.

use std::net::IpAddr;

use holm_domain::egress::{
    name::{Host, HostName, NAME_MAX},
    policy::{Place, Rule},
};

use crate::input::Input;

const PORT: u16 = 443;

/// Seeds: what is a name and what only looks like one.
pub fn seeds() -> Vec<Vec<u8>> {
    let of =
        |kind: u8, texts: &[&str]| texts.iter().map(|text| [&[kind], text.as_bytes()].concat()).collect::<Vec<_>>();
    let names =
        ["example.org", "EXAMPLE.org.", "a.b.c.example.org", "127.1", "0x7f.1", "xn--bcher-kva.example", "-a.b"];
    let hosts = ["192.0.2.1", "[2001:db8::1]", "[::ffff:127.0.0.1]", "[fe80::1%eth0]", "example.org", "0177.0.0.1"];
    let rules = [
        "example.org\0example.org",
        "*.example.org\0a.example.org",
        "*.example.org\0evil-example.org",
        "192.0.2.0/24\x00192.0.2.7",
        "[2001:db8::]/32:443\0[2001:db8::7]",
        "public\0example.org",
        "GET,HEAD example.org/v1\0example.org",
        "GET,HEAD example.org/v1\0example.org\0GET\0/v1/a%20b",
        "example.org/v1/\0example.org\0POST\0/v1",
        "example.org/v1\0example.org\0GET\0/v1/../v2",
    ];
    [of(0, &names), of(1, &hosts), of(2, &rules)].concat()
}

/// Reads it.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 3 {
        0 => name(input.rest()),
        1 => drop(host(input.rest())),
        _ => rule(input.rest()),
    }
}

fn name(bytes: &[u8]) {
    let Ok(name) = HostName::from_wire(bytes) else { return };
    let text = name.as_str();
    let whole = bytes.strip_suffix(b".").unwrap_or(bytes);
    assert!(text.as_bytes().eq_ignore_ascii_case(whole), "nothing is mended");
    assert!(!text.bytes().any(|byte| byte.is_ascii_uppercase()) && text.len() <= NAME_MAX);
    assert!(text.parse::<IpAddr>().is_err(), "{text} is an address");
    assert_eq!(HostName::from_wire(text.as_bytes()), Ok(name.clone()));
    if let Ok(written) = HostName::from_text(text) {
        assert_eq!(written, name);
    }
}

fn host(bytes: &[u8]) -> Option<Host> {
    let host = Host::from_wire(bytes).ok()?;
    assert_eq!(Host::from_wire(host.to_string().as_bytes()).as_ref(), Ok(&host));
    Some(host)
}

fn rule(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let mut part = |otherwise| parts.next().unwrap_or(otherwise);
    let (written, asked, method, path) = (part(""), part("example.org"), part("GET"), part("/"));
    let Ok(rule) = written.parse::<Rule>() else { return };
    assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule), "it comes back");
    requests(&rule, method, path);
    let Some(host) = host(asked.as_bytes()) else { return };
    let is_allowed = rule.connects(&host, PORT);
    assert!(!is_allowed || rule.names(&host));
    assert!(!is_allowed || rule.port == PORT);
    let labels = |name: &HostName| name.as_str().split('.').map(str::to_owned).collect::<Vec<_>>();
    let expected = match (&rule.place, &host) {
        (Place::Name(name), Host::Name(asked)) => labels(name) == labels(asked),
        (Place::Below(suffix), Host::Name(asked)) => {
            let (suffix, asked) = (labels(suffix), labels(asked));
            asked.len() > suffix.len() && asked.ends_with(&suffix)
        }
        (Place::Range(range), Host::Address(address)) => range.contains(address),
        (Place::Public, _) => true,
        _ => false,
    };
    assert_eq!(rule.names(&host), expected, "{rule} and {host}");
}

/// Whether a rule allows what is asked for, part by part.
fn requests(rule: &Rule, method: &str, path: &str) {
    let is_method = rule.methods.is_empty() || rule.methods.iter().any(|allowed| allowed == method);
    let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let is_path = match rule.path.as_deref() {
        None | Some("") => true,
        Some(allowed) => parts(path).starts_with(&parts(allowed)) && is_plain(path),
    };
    let is_allowed = rule.requests(method, path);
    assert!(!is_allowed || is_method && is_path, "{rule} allows {method} {path}");
    let is_simple = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'/');
    assert!(is_allowed || !(is_method && is_path && is_simple), "{rule} does not allow {method} {path}");
}

/// Whether no part of a path is empty or made of dots, as it is or once it is unescaped, any number of times.
fn is_plain(path: &str) -> bool {
    let inner = path.strip_prefix('/').map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let is_part = |part: &str| {
        let lower = part.to_ascii_lowercase();
        !part.is_empty()
            && !matches!(&*lower.replace("%2e", "."), "." | "..")
            && !["%2f", "%5c", "%00", "%25"].iter().any(|hidden| lower.contains(hidden))
    };
    inner.is_some_and(|inner| inner.split('/').all(is_part)) && !path.contains(['\\', '?', '#'])
}
