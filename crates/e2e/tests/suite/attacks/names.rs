//! E7 to E13, E16 and E18: names, what they lead to, and who is asked about them.

use std::net::Ipv4Addr;

use holm_e2e::{host::is_root, names::NameServer, network::Host, probe};

use super::Attack;
use crate::egress::{Server, names, python, refused, world_that_reaches};

/// E7: what some resolver takes for an address is no name of a rule, and leads nowhere inside.
#[test]
fn e07_other_forms_of_addresses_are_no_hosts() {
    let attack = Attack::new();
    for rule in
        ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "1.2.3.4.", "site.0x7f", "[fe80::1%eth0]", "[::1", "::1"]
    {
        attack.world.run(["--allow", rule, "--", "true"]).exits(125).complains_of(&[rule]);
    }
    let told = attack.program_with(
        &format!("public:{}", attack.site.port),
        r#"
for place in ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::1", "0.0.0.0", "::ffff:10.0.0.1", "10.0.0.1", "64:ff9b::7f00:1"]:
    try:
        connection = socket.create_connection((place, port), timeout=30)
        connection.sendall(b"evil")
        told(place, heard(connection)[1])
    except OSError as error:
        told(place, "closed")
"#,
    );
    told.all(12, &["closed"]);
    attack.left_only(&[]);
}

/// What no name may lead to, though an operator lists all there is: the ranges of E8 that nobody lists, and the metadata services
/// of E9.
const NEVER: [&str; 36] = [
    "0.0.0.0",
    "0.1.2.3",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::7f00:1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fe80::1",
    "fec0::1",
    "ff02::1",
];
/// What an operator may list, and did not.
const UNLISTED: [&str; 9] = [
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.2",
    "172.16.0.1",
    "192.168.0.1",
    "::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "fc00::1",
];

/// A name server whose names, `n0.special.example` and so on, lead to these.
fn special(addresses: &[&str]) -> NameServer {
    let name = |number| -> &'static str { Box::leak(format!("n{number}.special.example").into_boxed_str()) };
    let answers = addresses.iter().enumerate();
    NameServer::start(answers.map(|(at, to)| (name(at), vec![vec![to.parse().expect("an address")]])).collect())
}

/// Where nothing but `reach` is listed, names that lead to these lead nowhere.
fn lead_nowhere(addresses: &[&str], reach: &[&str]) {
    let names = special(addresses);
    let world = world_that_reaches(reach, &names);
    let body = format!("for n in range({}):\n    attempt(str(n), f'n{{n}}.special.example', 443)", addresses.len());
    let ran = python(&world, &["*.special.example".to_owned()], &body).succeeds();
    let expected: Vec<String> = (0..addresses.len()).map(|n| format!("{n} ConnectionResetError")).collect();
    assert_eq!(ran.text().lines().collect::<Vec<_>>(), expected);
    let told = world.events_of(&world.newest(), "egress_refused");
    for (n, address) in addresses.iter().enumerate() {
        let host = format!("n{n}.special.example");
        let why = told.iter().find(|event| event["host"] == host.as_str()).and_then(|event| event["reason"].as_str());
        let is_refused = why.is_some_and(|why| why.starts_with("it leads to an address that may not be reached"));
        assert!(is_refused, "{address}: {why:?}");
    }
}

/// E8: ranges that are not of the public internet.
#[test]
fn e08_names_that_lead_to_special_addresses_lead_nowhere() {
    lead_nowhere(&UNLISTED, &["127.0.0.1"]);
}

/// E9: metadata services, and what is never anybody's, whatever the operator lists.
#[test]
fn e09_metadata_is_never_reached_though_everything_is_listed() {
    lead_nowhere(&NEVER, &["0.0.0.0/0", "::/0"]);
}

/// E10: the host's own addresses, which are listed with their range only; the other end of its wire is reached.
#[test]
fn e10_the_host_is_not_reached_by_any_of_its_addresses() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let here: Ipv4Addr = host.reaches();
    let there = Ipv4Addr::from_bits(here.to_bits() + 1);
    let server = Server::start_at(&here.to_string(), |_| Ok(()));
    let listens = "import socket; s = socket.create_server(('', 9)); s.accept()[0].sendall(b'there')";
    let mut command = std::process::Command::new("/usr/bin/python3");
    let _other = holm_e2e::Running::start(&mut host.command(command.args(["-c", listens])));
    let names = NameServer::start(
        [("here.example", vec![vec![here.into()]]), ("there.example", vec![vec![there.into()]])].into(),
    );
    let world = world_that_reaches(&["100.64.0.0/10"], &names);
    let body = format!(
        "
attempt('here', 'here.example', {})
import time
for n in range(100):
    try:
        print('there', ask('there.example', 9, b''), flush=True)
        break
    except OSError:
        time.sleep(0.1)
",
        server.port
    );
    let allow = [format!("here.example:{}", server.port), "there.example:9".to_owned()];
    let ran = python(&world, &allow, &body).succeeds();
    assert_eq!(ran.text(), "here ConnectionResetError\nthere b'there'\n");
    assert_eq!(server.connections(), 0);
}

/// E12: what is no name in its one form is not looked up for anybody, and is no other name.
#[test]
fn e12_names_in_other_forms_are_no_names() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
def labels(*parts):
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
def ask(question, kind=1):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(20)
    server = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]
    s.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + question + struct.pack(">HH", kind, 1), (server, 53))
    try:
        answer = s.recv(2000)
    except OSError:
        return "none"
    return f"{answer[3] & 15} {struct.unpack('>H', answer[6:8])[0]}"
told("control", ask(labels(b"site", b"example")))
told("large", ask(labels(b"SITE", b"eXample")))
for name in [b"site.example", b"site\0", b"site\0.example", b"site ", b"si te", b"site\r\n", b"site@evil", b"site\\", b"site\t", b"site%2e", b"s\xc3\xadte", b"si\xc2\xadte", b"-site", b"site-", b"evil\0.site", b"*", b"_site"]:
    told(repr(name), ask(labels(name, b"example")))
told("whole", ask(labels(b"site.example")))
told("fullwidth", ask(labels("site。example".encode())))
told("below", ask(labels(b"evil", b"site", b"example")))
told("after", ask(labels(b"site", b"example", b"evil", b"test")))
"#,
    );
    let told = told.first_is("control", "0 1").first_is("large", "0 1");
    // A name that no rule names is none, and what is no name at all is refused or not answered.
    told.all(21, &["3 0", "5 0", "1 0", "none"]);
    attack.left_only(&[]);
    for rule in [
        "si te.example",
        "site\u{ad}.example",
        "site_.example",
        "-site.example",
        "site..example",
        "user@site.example",
        "site.example\\x",
        "site%2eexample",
    ] {
        let ran = attack.world.run(["--allow", rule, "--", "true"]);
        if rule.contains('\u{ad}') {
            // People write it, and UTS #46 says what it is.
            ran.succeeds();
        } else {
            ran.exits(125).complains_of(&["--allow"]);
        }
    }
}

/// E13: a wildcard has at least one label before its suffix, and is not wider than one owner.
#[test]
fn e13_a_wildcard_takes_in_what_is_below_and_nothing_beside() {
    let here: &[&str] = &["127.0.0.1"];
    let names = names(&[
        ("x.a.example", here),
        ("y.x.a.example", here),
        ("a.example", here),
        ("evil-a.example", here),
        ("xa.example", here),
        ("a.example.evil.test", here),
        ("example", here),
    ]);
    let server = Server::echo();
    let world = world_that_reaches(&["127.0.0.1"], &names);
    let places =
        ["x.a.example", "y.x.a.example", "a.example", "evil-a.example", "xa.example", "a.example.evil.test", "example"];
    let body = places.map(|place| format!("attempt('{place}', '{place}', {})\n", server.port)).concat();
    let ran = python(&world, &[format!("*.a.example:{}", server.port)], &body).succeeds();
    let (below, beside) = places.split_at(2);
    let expected: Vec<String> = below
        .iter()
        .map(|place| format!("{place} b'hello'"))
        .chain(beside.iter().map(|place| format!("{place} gaierror")))
        .collect();
    assert_eq!(ran.text().lines().collect::<Vec<_>>(), expected);
    assert_eq!(server.connections(), 2);
    assert_eq!(names.all_asked(), ["x.a.example", "y.x.a.example"]);
    assert_eq!(refused(&world).len(), beside.len());
    for rule in [
        "*",
        "*.com",
        "*.co.uk",
        "*.github.io",
        ".a.example",
        "a.*.example",
        "*a.example",
        "**.a.example",
        "*.*.example",
        "*.10.0.0.1",
    ] {
        world.run(["--allow", rule, "--", "true"]).exits(125).complains_of(&["--allow"]);
    }
}

/// E16 and E18: nothing is learnt or said by questions: of what is allowed there is an address and nothing else, and of no
/// question anything leaves.
#[test]
fn e18_questions_carry_nothing_out() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
import base64
def ask(name, kind, over):
    question = b"".join(bytes([len(part)]) + part for part in name) + b"\0" + struct.pack(">HH", kind, 1)
    message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + question
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if over == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(20)
    server = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]
    try:
        s.connect((server, 53))
        s.sendall((struct.pack(">H", len(message)) if over == "tcp" else b"") + message)
        answer = s.recv(2000)
        if over == "tcp":
            answer = answer[2:] or s.recv(2000)
    except OSError as error:
        return "none"
    return f"{answer[3] & 15} {struct.unpack('>H', answer[6:8])[0]}" if len(answer) >= 12 else "none"
site = (b"site", b"example")
# AAAA, TXT, NULL, SVCB, HTTPS, ANY, MX, SRV, CNAME, PTR, AXFR.
for kind in [28, 16, 10, 64, 65, 255, 15, 33, 5, 12, 252]:
    told(f"site {kind}", ask(site, kind, "udp"))
for kind in [1, 16, 10, 65, 255]:
    told(f"tunnel {kind}", ask((base64.b32encode(bytes(39))[:63].lower(), b"evil", b"site", b"example"), kind, "udp"))
for kind in [1, 16]:
    told(f"tcp {kind}", ask((b"evil", b"site", b"example"), kind, "tcp"))
for resolver in ["8.8.8.8", "1.1.1.1"]:
    for other in [53, 853, 443]:
        try:
            connection = socket.create_connection((resolver, other), timeout=20)
            connection.sendall(b"evil")
            told(f"{resolver} {other}", heard(connection)[1])
        except OSError:
            told(f"{resolver} {other}", "closed")
"#,
    );
    told.all(24, &["0 0", "3 0", "4 0", "5 0", "none", "closed"]);
    assert_eq!(attack.names.all_asked(), Vec::<String>::new());
    attack.left_only(&[]);
}

/// E19: what is below TCP is not there.
#[test]
fn e19_no_packet_is_made_by_hand() {
    let attack = Attack::new();
    let body = r#"
for name, family, kind, protocol in [("raw", 2, 3, 6), ("raw icmp", 2, 3, 1), ("raw six", 10, 3, 58), ("packet", 17, 3, 3), ("packet dgram", 17, 2, 3), ("vsock", 40, 1, 0), ("xdp", 44, 3, 0)]:
    attempt(name.replace(" ", "_"), lambda: socket.socket(family, kind, socket.htons(protocol) if family == 17 else protocol))
def ping():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)
    s.settimeout(5)
    s.sendto(b"\x08\0\0\0\0\0\0\0", ("192.0.2.1", 0))
    s.recv(100)
attempt("ping", ping)
def cards():
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not others:
        raise OSError(errno.ENODEV, "no card")
    return others
attempt("cards", cards)
def six():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.connect(("2001:db8::1", 53))
    s.send(b"evil")
    s.settimeout(2)
    s.recv(100)
attempt("six", six)
"#;
    let rule = attack.site.rule("GET", "/");
    let ran = attack.world.run(["--allow", &rule, "--", "/usr/bin/python3", "-c", &probe::program(body)]);
    let mut attempts = probe::Attempts::of(ran);
    let no = ["EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ENODEV"];
    for name in ["raw", "raw_icmp", "raw_six", "packet", "packet_dgram", "vsock", "xdp"] {
        attempts.refused(name, &no);
    }
    attempts.refused("ping", &["EPERM", "EACCES", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH"]);
    attempts.refused("cards", &["ENODEV"]);
    attempts.refused("six", &["EPERM", "EACCES", "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL"]);
    attempts.no_more();
    attack.left_only(&[]);
}
