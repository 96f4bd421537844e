//! Rules about requests: each is decided by its method and its path, with clients that were told nothing of that.

use std::fs;

use crate::site::{SITE, names, script, world};

#[test]
fn a_request_is_decided_by_its_method_and_its_path() {
    let names = names();
    let (world, site) = world(&names);
    let url = format!("https://{SITE}:{}", site.port);
    let text = format!(
        "set -u
ask() {{ curl --silent --show-error --max-time 30 --write-out ' %{{http_code}}\\n' \"$@\"; }}
ask {url}/open/a?q=1
ask --head --output /dev/null {url}/open
ask --request POST --data secret {url}/open/a | tail -1
ask {url}/closed/a
ask --path-as-is {url}/open/../closed/a
ask --header 'Host: other.example' {url}/open/a
"
    );
    let ran = script(&world, &site.rule("GET,HEAD", "/open"), &text).succeeds();
    let said = ran.text();
    let codes: Vec<&str> = said.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(codes, ["site", "200", "200", "403", "403", "403", "421"], "{said}");
    let denied = format!("{SITE}: no rule allows it");
    assert!(said.contains("\"code\":\"not_allowed\"") && said.contains(&denied), "{said}");
    assert_eq!(site.asked(), [format!("GET /open/a?q=1 {SITE}"), format!("HEAD /open {SITE}")]);
    let told = world.events_of(&world.newest(), "egress_refused");
    let of_requests = told.iter().filter(|event| event["protocol"] == "http");
    let mut reasons: Vec<&str> = of_requests.filter_map(|event| event["reason"].as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            "no rule allows it: GET /closed/a",
            "no rule allows it: GET /open/../closed/a",
            "no rule allows it: POST /open/a",
            "the request is for another host than its connection: GET /open/a",
        ],
        "{told:?}"
    );
}

#[test]
fn clients_trust_the_authority_of_their_sandbox_and_are_told_nothing() {
    let names = names();
    let (world, site) = world(&names);
    let url = format!("https://{SITE}:{}", site.port);
    let fetch = format!("fetch('{url}/node').then(r => r.text()).then(t => process.stdout.write(t))");
    let clients = [
        ("curl", format!("curl --silent --show-error {url}/curl")),
        ("wget", format!("wget --quiet --output-document=- {url}/wget")),
        ("git", format!("git ls-remote {url}/git 2>&1 | grep -q 'not valid' && echo site")),
        (
            "python3",
            format!(
                "python3 -c 'import urllib.request as u; print(u.urlopen(\"{url}/python3\").read().decode(), end=\"\")'"
            ),
        ),
        (
            "openssl",
            format!(
                "printf 'GET /openssl HTTP/1.0\\r\\nHost: {SITE}:{}\\r\\n\\r\\n' | openssl s_client -quiet -verify_return_error -connect {SITE}:{} -servername {SITE} 2>/dev/null | tail -1",
                site.port, site.port
            ),
        ),
        ("node", format!("node -e \"{fetch}\"")),
    ];
    for (client, command) in clients {
        let ran = script(&world, &site.rule("GET", "/"), &command).succeeds();
        assert_eq!(ran.text().trim(), "site", "{client}: {ran}");
        let asked = site.asked();
        assert!(asked.iter().any(|asked| asked.starts_with(&format!("GET /{client}"))), "{client}: {asked:?}");
    }
}

#[test]
fn who_trusts_nobody_else_is_refused_and_the_run_says_why() {
    let names = names();
    let (world, site) = world(&names);
    let lent = fs::read_to_string(&site.authority).expect("the authority");
    let text = format!(
        "printf %s '{lent}' > /tmp/pinned.pem
curl --silent --cacert /tmp/pinned.pem https://{SITE}:{}/x; echo $?",
        site.port
    );
    let ran = script(&world, &site.rule("GET", "/"), &text).succeeds();
    assert_eq!(ran.text(), "60\n", "curl does not know the authority of the sandbox");
    assert!(site.asked().is_empty());
    let told = world.events_of(&world.newest(), "egress_refused");
    let why = "the client does not trust the certificate authority of its sandbox";
    assert!(told.iter().any(|event| event["reason"] == why), "{told:?}");
    // Where nothing is to be seen, nothing is looked at.
    let ran = script(&world, &format!("{SITE}:{}", site.port), &text).succeeds();
    assert_eq!(ran.text(), "site\n0\n");
    let authority = script(&world, &site.rule("GET", "/"), "cat /run/holm-trust/authority.pem").succeeds();
    assert_ne!(authority.text(), lent);
    let another = script(&world, &site.rule("GET", "/"), "cat /run/holm-trust/authority.pem; env").succeeds();
    assert!(another.text().contains("BEGIN CERTIFICATE") && !another.text().contains("PRIVATE"));
    assert!(!another.text().starts_with(authority.text()), "each sandbox has its own");
    let none = script(&world, &format!("{SITE}:{}", site.port), "ls /run; env").succeeds();
    assert!(!none.text().contains("holm-trust"), "{none}");
}

/// A client of HTTP/2 in frames, which does what no library does: `connections` with `streams` requests each, of the path
/// `path`, with `fields` fields before their bodies and `trailers` behind them, and nothing of the answers is read.
const HOSTILE: &str = r#"
import socket, ssl, struct, sys, time
port, path = int(sys.argv[1]), sys.argv[2].encode()
connections, streams, fields, trailers = map(int, sys.argv[3:])
context = ssl.create_default_context()
context.set_alpn_protocols(["h2"])
def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
def field(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
authority = b"site.example:%d" % port
head = b"".join(field(*pair) for pair in [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", authority), (b":path", path)])
head += field(b"x", b"") * fields
after = field(b"x", b"") * trailers
address, held = socket.gethostbyname("site.example"), []
for _ in range(connections):
    try:
        stream = context.wrap_socket(socket.create_connection((address, port), timeout=3), server_hostname="site.example")
        stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, 0x7fffffff)))
        stream.sendall(frame(8, 0, 0, struct.pack(">I", 0x7fff0000)))
        held.append(stream)
        for number in range(streams):
            for block, ends in [(head, not after), (after, True)][: 2 if after else 1]:
                first = True
                while first or block:
                    piece, block = block[:16000], block[16000:]
                    flags = (1 if first and ends else 0) | (0 if block else 4)
                    stream.sendall(frame(1 if first else 9, flags, 1 + 2 * number, piece))
                    first = False
    except OSError:
        pass
time.sleep(5)
print("alive", len(held))
"#;

#[test]
fn a_hostile_client_takes_nothing_that_its_shim_does_not_have() {
    let names = names();
    let (world, site) = world(&names);
    let port = site.port.to_string();
    for (path, connections, streams, fields, trailers) in [
        ("/big", "40", "90", "0", "0"),
        ("/hang", "40", "90", "90", "0"),
        ("/hang", "40", "90", "430", "430"),
        ("/hang", "40", "90", "90", "430"),
        ("/hang", "40", "90", "4000", "0"),
    ] {
        let rule = site.rule("GET", "/");
        let command = ["--allow", &rule, "--", "/usr/bin/python3", "-c", HOSTILE, &port];
        let ran = world.run(command.into_iter().chain([path, connections, streams, fields, trailers])).succeeds();
        assert!(ran.text().starts_with("alive"), "{path} {fields}: {ran}");
    }
}

#[test]
fn what_a_command_has_sent_whole_arrives_though_it_ends() {
    let names = names();
    let (world, site) = world(&names);
    let text = format!(
        "python3 -c '
import os, socket, ssl
context = ssl.create_default_context()
stream = context.wrap_socket(socket.create_connection((\"{SITE}\", {})), server_hostname=\"{SITE}\")
stream.sendall(b\"POST /last HTTP/1.1\\r\\nhost: {SITE}:{}\\r\\ncontent-length: 4\\r\\n\\r\\nlast\")
os._exit(0)'",
        site.port, site.port
    );
    for _ in 0..3 {
        script(&world, &site.rule("POST", "/"), &text).succeeds();
        assert_eq!(site.asked(), [format!("POST /last {SITE}")]);
    }
}

#[test]
fn who_sends_much_that_is_refused_hears_why() {
    let names = names();
    let (world, site) = world(&names);
    let text = format!(
        "head -c 8000000 /dev/zero | curl --silent --show-error --http1.1 --header 'Expect:' --data-binary @- \
         https://{SITE}:{}/upload",
        site.port
    );
    let ran = script(&world, &site.rule("GET", "/"), &text).succeeds();
    assert!(ran.text().contains("\"code\":\"not_allowed\""), "{ran}");
    assert!(site.asked().is_empty());
}

#[test]
fn a_list_of_authorities_that_the_user_mounts_counts_and_stays_as_it_is() {
    let names = names();
    let (world, site) = world(&names);
    let own = world.dir().join("own.pem");
    fs::copy(&site.authority, &own).expect("a copy");
    let before = fs::read(&own).expect("a list");
    let mount = format!("{}:/etc/ssl/certs/ca-certificates.crt", own.display());
    let command = ["--allow", &site.rule("GET", "/"), "--mount", &mount, "--", "cat", "/run/holm-trust/bundle.pem"];
    let ran = world.run(command).succeeds();
    let own_text = String::from_utf8(before.clone()).expect("text");
    assert!(ran.text().starts_with(&own_text) && ran.text().len() > own_text.len(), "{ran}");
    assert_eq!(fs::read(&own).expect("a list"), before, "what is mounted is not the sandbox's");
}
