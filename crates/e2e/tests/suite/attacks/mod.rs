//! The attacks on the way out of a sandbox, a test each, by programs that use no library where one would be too polite.
//!
//! Every test ends with what left: nothing but what the rule allows. Where nothing is attacked the same program is answered,
//! so that none is refused for a mistake of its own. Told elsewhere in this suite are addresses that change between two looks
//! ([`egress`](crate::egress)), other protocols than TCP, and what a program reaches that asks the proxy itself.

mod http1;
mod http2;
mod names;
mod tls;

use holm_e2e::{World, names::NameServer};

use crate::site::{self, EVIL, SITE, Site};

/// What every program begins with: `tls` greets, `say` says bytes over TLS, `over` says them over a connection that is there.
const PRELUDE: &str = r#"
import re, socket, ssl, struct, sys, time
port, SITE, EVIL = int(sys.argv[1]), "site.example", "evil.example"
HOST = f"{SITE}:{port}"
def tls(asked=SITE, protocol="http/1.1", checked=True):
    context = ssl.create_default_context()
    context.check_hostname = asked == SITE and checked
    context.verify_mode = ssl.CERT_REQUIRED if checked else ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(socket.create_connection((SITE, port), timeout=30), server_hostname=asked)
def heard(stream, patience=2):
    whole = b""
    stream.settimeout(patience)
    try:
        while piece := stream.recv(1 << 16):
            whole += piece
    except TimeoutError:
        return whole, "open"
    except OSError:
        pass
    return whole, "closed"
def over(stream, said, patience=2):
    try:
        stream.sendall(said)
    except OSError:
        pass
    whole, then = heard(stream, patience)
    return " ".join([code.decode() for code in re.findall(rb"HTTP/1\.[01] (\d+)", whole)] + [then])
def say(said, patience=2):
    return over(tls(), said, patience)
def told(name, result):
    print(name.replace(" ", "_"), result, flush=True)
def head(line="GET /open HTTP/1.1", host=HOST, *fields):
    return "\r\n".join([line, *([f"Host: {host}"] if host is not None else []), *fields]).encode() + b"\r\n\r\n"
"#;

/// An installation, a site that its runs may reach, and another name for that.
pub struct Attack {
    world: World,
    site: Site,
    names: NameServer,
}

/// What a program told: of each attempt its name, and what came of it.
pub struct Told(Vec<(String, String)>);

impl Attack {
    fn new() -> Self {
        let names = site::names();
        let (world, site) = site::world(&names);
        Self { world, site, names }
    }

    /// Runs a program that may ask the site for `/open` and `/hang`.
    #[track_caller]
    fn program(&self, body: &str) -> Told {
        self.program_with(&self.site.rule("GET,POST,OPTIONS", "/"), body)
    }

    /// The same with a rule of its own.
    #[track_caller]
    fn program_with(&self, rule: &str, body: &str) -> Told {
        let (text, port) = (format!("{PRELUDE}{body}"), self.site.port.to_string());
        let ran = self.world.run(["--allow", rule, "--", "/usr/bin/python3", "-c", &text, &port]).succeeds();
        let lines =
            ran.text().lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned()));
        Told(lines.collect())
    }

    /// Why connections or requests were refused, by the events of the newest run.
    fn reasons(&self) -> String {
        let told = self.world.events_of(&self.world.newest(), "egress_refused");
        let reasons: Vec<&str> = told.iter().filter_map(|event| event["reason"].as_str()).collect();
        reasons.join("\n")
    }

    /// Nothing that an attack is marked with has come to the site, and nothing but `asked` was asked of it.
    #[track_caller]
    fn left_only(&self, asked: &[&str]) {
        let heard = self.site.heard();
        assert!(!heard.contains("evil"), "{heard}");
        self.asked_only(asked);
    }

    /// Nothing but `asked` was asked of the site, however often.
    #[track_caller]
    fn asked_only(&self, asked: &[&str]) {
        let mut came = self.site.asked();
        came.sort();
        came.dedup();
        let expected: Vec<String> = asked.iter().map(|asked| format!("{asked} {SITE}")).collect();
        assert_eq!(came, expected);
        assert!(!self.names.all_asked().iter().any(|name| name == EVIL), "another name was looked up");
    }
}

impl Told {
    /// Each of `count` attempts had one of these results.
    #[track_caller]
    fn all(&self, count: usize, results: &[&str]) {
        for (name, result) in &self.0 {
            assert!(results.contains(&result.as_str()), "{name}: {result}, wanted one of {results:?}\n{:?}", self.0);
        }
        assert_eq!(self.0.len(), count, "{:?}", self.0);
    }

    /// These attempts had these results, in this order.
    #[track_caller]
    fn are(&self, expected: &[(&str, &str)]) {
        let told: Vec<(&str, &str)> = self.0.iter().map(|(name, result)| (name.as_str(), result.as_str())).collect();
        assert_eq!(told, expected);
    }

    /// What came of the first attempt, and all others.
    #[track_caller]
    fn first_is(mut self, name: &str, result: &str) -> Self {
        let rest = self.0.split_off(1.min(self.0.len()));
        self.are(&[(name, result)]);
        Self(rest)
    }
}
