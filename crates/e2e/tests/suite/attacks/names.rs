//! E7 to E10, E12, E13, E16, E18 and E19: names, what they lead to, who is asked about them, and what is below TCP.

use std::net::Ipv4Addr;

use holm_e2e::{host::is_root, names::NameServer, network::Host, probe};

use super::Attack;
use crate::{
    egress::{Server, names, python, refused, world_that_reaches},
    site::SITE,
};

/// E7: what some resolver takes for an address is no name of a rule, and leads nowhere inside.
#[test]
fn e07_other_forms_of_addresses_are_no_hosts() {
    let attack = Attack::new();
    for rule in
        ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "1.2.3.4.", "site.0x7f", "[fe80::1%eth0]", "[::1", "::1"]
    {
        attack.world.run(["--allow", rule, "--", "true"]).exits(125).complains_of(&[rule]);
    }
    // Most are the sandbox's own loopback, whoever reads them; those that are not come to the proxy.
    let told = attack.program_without_last(
        &format!("public:{}", attack.site.port),
        r#"
for place in ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::1", "0.0.0.0", "64:ff9b::7f00:1", "::ffff:10.0.0.1", "10.0.0.1", "167772162", "0x0a000003", "012.0.0.4", "10.5"]:
    told(place, sent_plain(place, port, b"evil"))
"#,
    );
    told.all(16, &["closed"]);
    let refused = refused(&attack.world);
    for end in 1..=5 {
        let place = format!("10.0.0.{end}:{}", attack.site.port);
        assert!(refused.contains(&place), "{place}: {refused:?}");
    }
    assert!(attack.reasons().contains("it leads to an address that may not be reached"), "{}", attack.reasons());
    assert_eq!((attack.site.wire(), attack.site.asked().len()), (String::new(), 0));
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
pub fn e10_the_host_is_not_reached_by_any_of_its_addresses() {
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
told("control", question((b"site", b"example")))
told("large", question((b"SITE", b"eXample")))
for name in [b"site.example", b"site\0", b"site\0.example", b"site ", b"si te", b"site\r\n", b"site@evil", b"site\\", b"site\t", b"site%2e", b"s\xc3\xadte", b"si\xc2\xadte", b"-site", b"site-", b"evil\0.site", b"*", b"_site"]:
    told(repr(name), question((name, b"example")))
told("whole", question((b"site.example",)))
told("fullwidth", question(("site。example".encode(),)))
told("below", question((b"evil", b"site", b"example")))
told("after", question((b"site", b"example", b"evil", b"test")))
"#,
    );
    let told = told.first_is("control", "0 1").first_is("large", "0 1");
    // A name that no rule names is none, and so is what is no name at all.
    told.all(21, &["3 0", "5 0", "1 0"]);
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
site = (b"site", b"example")
told("control", question(site))
# AAAA, TXT, NULL, SVCB, HTTPS, ANY, MX, SRV, CNAME, PTR, AXFR.
for kind in [28, 16, 10, 64, 65, 255, 15, 33, 5, 12, 252]:
    told(f"site {kind}", question(site, kind))
tunnel = base64.b32encode(bytes(39))[:63].lower()
for kind in [1, 16, 10, 65, 255]:
    told(f"tunnel {kind}", question((tunnel, b"evil", b"site", b"example"), kind))
for kind in [1, 16]:
    told(f"tcp {kind}", question((b"evil", b"site", b"example"), kind, socket.SOCK_STREAM))
for resolver in ["192.0.2.53", "198.51.100.53"]:
    for other in [53, 853, 443]:
        told(f"{resolver} {other}", sent_plain(resolver, other, b"evil"))
"#,
    );
    let told = told.first_is("control", "0 1");
    assert_eq!(told.of("site"), ["0 0"; 11], "there is the name, and nothing of these kinds");
    assert_eq!(told.of("tunnel"), ["5 0"; 5], "nobody is asked");
    assert!(told.of("tcp").iter().all(|result| matches!(*result, "5 0" | "none")), "{:?}", told.0);
    for resolver in ["192.0.2.53", "198.51.100.53"] {
        assert_eq!(told.of(resolver), ["closed"; 3]);
        for port in [53, 853, 443] {
            assert!(refused(&attack.world).contains(&format!("{resolver}:{port}")), "{:?}", refused(&attack.world));
        }
    }
    // The last question of each program is answered for a connection.
    assert!(attack.names.all_asked().iter().all(|name| name == SITE), "{:?}", attack.names.all_asked());
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
