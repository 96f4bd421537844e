//! The attacks on the way out of a sandbox, a test each, by programs that use no library where one would be too polite.
//!
//! The rules here allow every path of the site, so that what an attack is marked with would come there if nothing saw to it. A
//! test says what came, on the wire and within TLS. Every program is answered once it is through, so that none is refused
//! because nothing works any more. Told elsewhere in this suite ([`egress`](crate::egress)) are addresses that change
//! between two looks (E11), what a program reaches that asks the proxy itself (E15), other protocols than TCP (E17), and another
//! name in a greeting in pieces that is passed through (H10).

mod credentials;
mod http1;
mod http2;
mod names;
mod tls;
mod unchecked;

use holm_e2e::{World, names::NameServer};

use crate::site::{self, EVIL, SITE, Site};

/// What every program begins with: `tls` greets, `say` says bytes over TLS, `over` says them over a connection that is there.
const PRELUDE: &str = r#"
import re, socket, ssl, struct, sys, time
port, SITE, EVIL, CHECKED = int(sys.argv[1]), "site.example", "evil.example", True
HOST, CLOSE = f"{SITE}:{port}", "Connection: close"
def connected(place=SITE, to=port):
    return socket.create_connection((place, to), timeout=30)
def tls(asked=SITE, protocol="http/1.1"):
    context = ssl.create_default_context()
    context.check_hostname = asked == SITE and CHECKED
    context.verify_mode = ssl.CERT_REQUIRED if CHECKED else ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(connected(), server_hostname=asked)
def codes(whole):
    return [code.decode() for code in re.findall(rb"HTTP/1\.[01] (\d+)", whole)]
# What is heard until the other side ends, or is quiet for three seconds once it gave its answers.
def heard(stream, answers=1):
    whole = b""
    try:
        while True:
            stream.settimeout(3 if len(codes(whole)) >= answers else 30)
            piece = stream.recv(1 << 16)
            if not piece:
                return whole, "closed"
            whole += piece
    except TimeoutError:
        return whole, "open"
    except OSError:
        return whole, "closed"
def over(stream, said, answers=1):
    try:
        stream.sendall(said)
    except OSError:
        pass
    whole, then = heard(stream, answers)
    return " ".join(codes(whole) + [then])
def say(said, answers=1):
    return over(tls(), said, answers)
def sent_plain(place, to, said):
    try:
        stream = connected(place, to)
        stream.sendall(said)
        return heard(stream)[1]
    except OSError:
        return "closed"
def told(name, result):
    print(name.replace(" ", "_"), result, flush=True)
def head(line="GET /open HTTP/1.1", host=HOST, *fields):
    return "\r\n".join([line, *([f"Host: {host}"] if host is not None else []), *fields]).encode() + b"\r\n\r\n"
# The code of an answer of the name server inside, and how many records it has.
def question(labels, kind=1, by=socket.SOCK_DGRAM):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name + struct.pack(">HH", kind, 1)
    stream = socket.socket(socket.AF_INET, by)
    stream.settimeout(10)
    server = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]
    try:
        stream.connect((server, 53))
        stream.sendall((struct.pack(">H", len(message)) if by == socket.SOCK_STREAM else b"") + message)
        answer = stream.recv(2000)
    except OSError:
        return "none"
    return f"{answer[3] & 15} {struct.unpack('>H', answer[6:8])[0]}" if len(answer) >= 12 else "none"
"#;
/// What every program ends with, and what is asked then.
const LAST: &str = "told('last', say(head('GET /last HTTP/1.1')))\n";
const ASKED_LAST: &str = "GET /last site.example";

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
        Self::loud("info")
    }

    /// The same, where all that is done is told in as many words.
    fn loud(filter: &str) -> Self {
        let names = site::names();
        let (world, site) = site::world_that_says(&names, filter);
        Self { world, site, names }
    }

    /// Runs a program that may ask the site for anything by these methods.
    #[track_caller]
    fn program(&self, body: &str) -> Told {
        self.program_with(&self.site.rule("GET,POST,OPTIONS", "/"), body)
    }

    /// The same by any method.
    #[track_caller]
    fn program_by_any_method(&self, body: &str) -> Told {
        self.program_with(&format!("{SITE}:{}/", self.site.port), body)
    }

    /// The same with a rule of its own.
    #[track_caller]
    fn program_with(&self, rule: &str, body: &str) -> Told {
        self.program_with_flags(rule, &[], body)
    }

    /// The same with further flags.
    #[track_caller]
    fn program_with_flags(&self, rule: &str, flags: &[&str], body: &str) -> Told {
        let mut told = self.told(rule, flags, &format!("{body}{LAST}"));
        let last = told.0.pop().expect("what it ends with");
        assert_eq!((last.0.as_str(), last.1.as_str()), ("last", "200 open"), "{:?}", told.0);
        told
    }

    /// The same where the site is not to be asked.
    #[track_caller]
    fn program_without_last(&self, rule: &str, body: &str) -> Told {
        self.told(rule, &[], body)
    }

    #[track_caller]
    fn told(&self, rule: &str, flags: &[&str], body: &str) -> Told {
        let (text, port) = (format!("{PRELUDE}{body}"), self.site.port.to_string());
        let ran = self
            .world
            .run(["--allow", rule].iter().chain(flags).chain(&["--", "/usr/bin/python3", "-c", &text, &port]))
            .succeeds();
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

    /// Nothing but `asked` was asked of the site, however often, and what every program ends with.
    #[track_caller]
    fn asked_only(&self, asked: &[&str]) {
        let mut came = self.site.asked();
        came.retain(|asked| asked != ASKED_LAST);
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

    /// What came of the attempts whose names begin so.
    fn of(&self, begin: &str) -> Vec<&str> {
        self.0.iter().filter(|(name, _)| name.starts_with(begin)).map(|(_, result)| result.as_str()).collect()
    }

    /// What came of the first attempt, and all others.
    #[track_caller]
    fn first_is(mut self, name: &str, result: &str) -> Self {
        let rest = self.0.split_off(1.min(self.0.len()));
        self.are(&[(name, result)]);
        Self(rest)
    }
}
