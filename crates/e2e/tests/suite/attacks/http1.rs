//! E2 to E4, E17, H1, H2, H4, H5, H7 to H9, H11 to H13, H15 and C2: requests over HTTP/1.1.

use super::Attack;
use crate::site::{SITE, script};

/// E2: another host than that of the connection, in its first request and in a later one.
#[test]
pub fn e02_every_request_over_a_connection_names_its_host() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
evil = f"{EVIL}:{port}"
told("control", say(head()))
told("first", say(head("GET /evil HTTP/1.1", evil)))
stream = tls()
told("before", over(stream, head("GET /open HTTP/1.1")))
told("second", over(stream, head("GET /evil HTTP/1.1", evil)))
told("pipelined", say(head("GET /open HTTP/1.1") + head("GET /evil HTTP/1.1", evil), 2))
"#,
    );
    told.are(&[
        ("control", "200 open"),
        ("first", "421 closed"),
        ("before", "200 open"),
        ("second", "421 closed"),
        ("pipelined", "200 421 closed"),
    ]);
    attack.left_only(&["GET /open"]);
}

/// E3: a target that names a host itself.
#[test]
fn e03_a_target_names_no_other_host() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
told("control", say(head(f"GET https://{HOST}/open HTTP/1.1")))
for target in [f"https://{EVIL}:{port}/evil", f"https://{EVIL}/evil", f"http://{HOST}/evil", f"http://{EVIL}/evil", f"https://{HOST}@{EVIL}/evil", f"https://user@{HOST}/evil", f"{EVIL}/evil", f"ftp://{HOST}/evil", f"https://{SITE}:{port + 1}/evil"]:
    told(target, say(head(f"GET {target} HTTP/1.1")))
    told(target + " both", say(head(f"GET {target} HTTP/1.1", f"{EVIL}:{port}")))
"#,
    );
    told.first_is("control", "200 open").all(18, &["421 closed", "400 closed", "405 closed", "403 closed"]);
    attack.left_only(&["GET /open"]);
}

/// E4: a host that may be read in more than one way.
#[test]
pub fn e04_there_is_one_host_and_it_is_that_of_the_connection() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
told("control", say(head(host=HOST.upper())))
get = "GET /evil HTTP/1.1"
for host in ["", " ", f"user@{HOST}", f"{HOST}, {EVIL}", f"{HOST} {EVIL}", SITE, f"{SITE}:{port + 1}", f"{SITE}:443", f"{HOST}/", f"{SITE}:", f"{SITE}:{port}x", f"{SITE}:+{port}", "127.0.0.1", f"127.0.0.1:{port}", f"[::1]:{port}", f"{SITE}..:{port}", f"{SITE}\x0b:{port}", f"{EVIL}#{HOST}", f"{EVIL}\\@{HOST}"]:
    told(f"host {host!r}", say(head(get, host)))
told("none", say(head(get, None)))
told("two", say(head(get, HOST, f"Host: {EVIL}")))
told("two same", say(head(get, HOST, f"Host: {HOST}")))
told("two cases", say(head(get, f"{EVIL}:{port}", f"hOST: {HOST}")))
told("old", say(head("GET /evil HTTP/1.0", None)))
"#,
    );
    told.first_is("control", "200 open").all(24, &["421 closed", "400 closed"]);
    attack.left_only(&["GET /open"]);
}

/// What a body hides: another request, where somebody reads the length otherwise.
const HIDDEN: &str = r#"
hidden = head("GET /evil HTTP/1.1")
def post(*fields, body=b"", line="POST /open HTTP/1.1"):
    return head(line, HOST, *fields) + body
"#;

/// H1: lengths that may be read in more than one way. What is read in one way by all hides nothing.
#[test]
fn h01_where_a_request_ends_is_not_in_doubt() {
    let attack = Attack::new();
    let body = r#"
length = len(hidden)
chunks = b"0\r\n\r\n" + hidden
told("control", say(post("Content-Length: 2", body=b"ab")))
for name, fields in [
    ("two lengths", ["Content-Length: 0", f"Content-Length: {length}"]),
    ("listed lengths", [f"Content-Length: 0, {length}"]),
    ("plus", ["Content-Length: +0"]),
    ("minus", ["Content-Length: -1"]),
    ("hex", ["Content-Length: 0x0"]),
    ("huge", ["Content-Length: 184467440737095516160"]),
    ("empty", ["Content-Length: "]),
    ("identity", ["Transfer-Encoding: chunked, identity"]),
    ("xchunked", ["Transfer-Encoding: xchunked"]),
    ("tab", ["Transfer-Encoding:\tidentity"]),
    ("vertical", ["Transfer-Encoding: \x0bchunked"]),
    ("quoted", ['Transfer-Encoding: "chunked"']),
    ("gzip", ["Transfer-Encoding: gzip"]),
]:
    told(name, say(post(*fields, body=chunks)))
told("old chunked", say(post("Transfer-Encoding: chunked", body=chunks, line="POST /open HTTP/1.0")))
"#;
    let told = attack.program(&format!("{HIDDEN}{body}"));
    told.first_is("control", "200 open").all(14, &["400 closed", "501 closed", "closed"]);
    attack.left_only(&["POST /open"]);
    let body = r#"
chunks = b"0\r\n\r\n" + hidden
for name, fields in [
    ("both", [f"Content-Length: {len(chunks)}", "Transfer-Encoding: chunked"]),
    ("both turned", ["Transfer-Encoding: chunked", f"Content-Length: {len(chunks)}"]),
    ("twice", ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"]),
    ("listed twice", ["Transfer-Encoding: chunked, chunked"]),
    ("space", ["Transfer-Encoding: chunked ", "Content-Length: 4"]),
]:
    told(name, say(post(*fields, body=chunks)))
"#;
    // Nothing follows over the connection where there was a doubt.
    attack.program(&format!("{HIDDEN}{body}")).all(5, &["200 closed", "400 closed", "501 closed", "closed"]);
    attack.left_only(&["POST /open"]);
}

/// H2: lines, fields and chunks that some servers read otherwise.
#[test]
fn h02_heads_and_chunks_are_in_one_form() {
    let attack = Attack::new();
    let body = r#"
told("control", say(post("Transfer-Encoding: chunked", body=b"2;a=b\r\nab\r\n0\r\n\r\n")))
get = f"GET /evil HTTP/1.1\r\nHost: {HOST}\r\n"
for name, said in [
    ("bare return", get + "a: b\rc: d\r\n\r\n"),
    ("folded", get + "a: b\r\n evil: c\r\n\r\n"),
    ("folded host", f"GET /evil HTTP/1.1\r\nHost: {HOST}\r\n .evil\r\n\r\n"),
    ("blank before colon", get + "a : b\r\n\r\n"),
    ("blank before host", f"GET /evil HTTP/1.1\r\nHost : {HOST}\r\n\r\n"),
    ("nul", get + "a: b\0c\r\n\r\n"),
    ("control sign", get + "a: b\x01c\r\n\r\n"),
    ("no name", get + ": b\r\n\r\n"),
    ("no colon", get + "evil\r\n\r\n"),
    ("odd name", get + "a(b): c\r\n\r\n"),
    ("leading blank", f" GET /evil HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    ("blank in target", f"GET /evil /open HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    ("no version", f"GET /evil\r\nHost: {HOST}\r\n\r\n"),
    ("version", f"GET /evil HTTP/1.2\r\nHost: {HOST}\r\n\r\n"),
    ("version 2", f"GET /evil HTTP/2.0\r\nHost: {HOST}\r\n\r\n"),
    ("method", f"GE(T /evil HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    ("nul in target", f"GET /evil\0 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
]:
    told(name, say(said.encode()))
"#;
    let told = attack.program(&format!("{HIDDEN}{body}"));
    told.first_is("control", "200 closed").all(17, &["400 closed", "closed", "405 closed", "505 closed"]);
    attack.left_only(&["POST /open"]);
    let body = r#"
for name, chunks in [
    ("overflow", b"fffffffffffffffff\r\nab\r\n0\r\n\r\n"),
    ("signed", b"+2\r\nab\r\n0\r\n\r\n"),
    ("hex", b"0x2\r\nab\r\n0\r\n\r\n"),
    ("empty", b"\r\nab\r\n0\r\n\r\n"),
    ("line feeds", b"2\nab\n0\n\n"),
    ("no end", b"2\r\nabXX0\r\n\r\n"),
    ("long extension", b"2;" + b"a" * 100_000 + b"\r\nab\r\n0\r\n\r\n"),
    ("return in extension", b"2;a\rb\r\nab\r\n0\r\n\r\n"),
    ("feed in extension", b"2;a\nb\r\nab\r\n0\r\n\r\n"),
    ("blank", b"2 x\r\nab\r\n0\r\n\r\n"),
]:
    told(name, say(post("Transfer-Encoding: chunked", body=chunks + hidden)))
"#;
    attack.program(&format!("{HIDDEN}{body}")).all(10, &["400 closed", "502 closed", "closed"]);
    attack.left_only(&[]);
}

/// H4: what follows a request that is refused is not a request.
#[test]
fn h04_after_a_refused_request_nothing_is_read() {
    let attack = Attack::new();
    let body = r#"
told("control", say(head("POST /open HTTP/1.1", HOST, "Content-Length: 0") + head("GET /open HTTP/1.1"), 2))
denied = "DELETE /open HTTP/1.1"
told("pipelined", say(head(denied) + hidden))
told("body", say(post(f"Content-Length: {len(hidden)}", body=hidden, line=denied)))
told("longer", say(post("Content-Length: 5", body=b"abcde" + hidden, line=denied)))
told("chunked", say(post("Transfer-Encoding: chunked", body=b"0\r\n\r\n" + hidden, line=denied)))
told("expects", say(post("Expect: 100-continue", f"Content-Length: {len(hidden)}", body=hidden, line=denied)))
told("half", say(post("Content-Length: 1000", body=hidden, line=denied)))
"#;
    let told = attack.program(&format!("{HIDDEN}{body}"));
    told.first_is("control", "200 200 open").all(6, &["403 closed"]);
    attack.left_only(&["GET /open", "POST /open"]);
}

/// H5 and H7: what is about the connection, or for a proxy, ends here; so does what a client lists as such.
#[test]
pub fn h05_what_is_about_a_connection_does_not_leave() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
get = "GET /open HTTP/1.1"
told("listed", say(head(get, HOST, "Connection: x-one, x-two", "X-One: evil", "X-Two: evil")))
told("lists", say(head(get, HOST, "Connection: x-one", "connection: X-TWO", "X-One: evil", "x-two: evil")))
told("host", say(head(get, HOST, "Connection: host, authorization", "Authorization: evil")))
told("close", say(head(get, HOST, "Connection: close, x-one", "X-One: evil")))
told("proxy", say(head(get, HOST, "Proxy-Authorization: evil", "Proxy-Connection: evil", "Keep-Alive: evil", "Proxy-Authenticate: evil")))
told("te", say(head(get, HOST, "TE: evil", "Trailer: evil")))
told("others", say(head(get, HOST, "X-HTTP-Method-Override: evil", "X-Original-URL: /evil", "X-Rewrite-URL: /evil")))
"#,
    );
    told.all(7, &["200 open", "200 closed"]);
    attack.left_only(&["GET /open"]);
}

/// H8: heads that are too much.
#[test]
fn h08_heads_have_limits() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
told("control", say(head("GET /open HTTP/1.1", HOST, *[f"a{n}: {'b' * 300}" for n in range(90)])))
told("long field", say(head("GET /evil HTTP/1.1", HOST, "a: " + "b" * 200_000)))
told("long line", say(head("GET /evil?" + "b" * 200_000 + " HTTP/1.1")))
told("many fields", say(head("GET /evil HTTP/1.1", HOST, *[f"a{n}: b" for n in range(101)])))
told("very many", say(head("GET /evil HTTP/1.1", HOST, *["a: b"] * 100_000)))
told("long name", say(head("GET /evil HTTP/1.1", HOST, "a" * 70_000 + ": b")))
"#,
    );
    told.first_is("control", "200 open").all(5, &["400 closed", "431 closed", "414 closed", "closed"]);
    attack.left_only(&["GET /open"]);
}

/// H9: who begins to greet and does not go on is not waited for.
#[test]
fn h09_a_greeting_that_is_not_finished_has_an_end() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
def begun(said):
    raw = connected()
    raw.sendall(said)
    return raw
waiting = [begun(said) for said in [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] for _ in range(5)]
told("control", say(head()))
for n, raw in enumerate(waiting):
    told(str(n), heard(raw)[1])
"#,
    );
    told.first_is("control", "200 open").all(15, &["closed"]);
    attack.left_only(&["GET /open"]);
}

/// H11: what expects a word before its body.
#[test]
fn h11_an_expectation_is_answered_and_hides_nothing() {
    let attack = Attack::new();
    let body = r#"
stream = tls()
told("asked", over(stream, post("Expect: 100-continue", "Content-Length: 2")))
told("answered", over(stream, b"ab"))
told("at once", say(post("Expect: 100-continue", "Content-Length: 2", body=b"ab"), 2))
told("none", say(post("Expect: 100-continue", "Content-Length: 0", body=hidden.replace(b"evil", b"open")), 2))
told("other", say(post("Expect: evil", "Content-Length: 2", body=b"ab")))
"#;
    let told = attack.program(&format!("{HIDDEN}{body}"));
    told.are(&[
        ("asked", "100 open"),
        ("answered", "200 open"),
        ("at_once", "100 200 open"),
        ("none", "200 200 open"),
        ("other", "200 open"),
    ]);
    attack.left_only(&["GET /open", "POST /open"]);
}

/// H12: methods that reflect, or that tunnel, or that are of no path, are not passed on whatever a rule says; others are what
/// they are called, letter by letter.
#[test]
pub fn h12_no_request_tunnels_or_reflects() {
    let attack = Attack::new();
    let told = attack.program_by_any_method(
        r#"
told("control", say(head("OPTIONS /open HTTP/1.1")))
for line in ["TRACE /evil HTTP/1.1", "OPTIONS * HTTP/1.1", f"CONNECT {EVIL}:{port} HTTP/1.1", f"CONNECT {HOST} HTTP/1.1", "CONNECT /evil HTTP/1.1"]:
    told(line, say(head(line)))
"#,
    );
    told.first_is("control", "200 open").all(5, &["400 closed", "405 closed"]);
    attack.left_only(&["OPTIONS /open"]);
    let told = attack.program(
        r#"
for method in ["TRACK", "trace", "get", "GETS", "DELETE"]:
    told(method, say(head(f"{method} /evil HTTP/1.1")))
"#,
    );
    told.all(5, &["403 closed"]);
    attack.left_only(&[]);
}

/// H13: a connection becomes nothing but one of WebSocket.
#[test]
fn h13_a_connection_becomes_no_other_protocol() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
get = "GET /open HTTP/1.1"
told("h2c", say(head(get, HOST, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: evil")))
told("tls", say(head(get, HOST, "Connection: upgrade", "Upgrade: TLS/1.0, evil")))
told("both", say(head(get, HOST, "Connection: Upgrade", "Upgrade: h2c", "Upgrade: evil")))
told("preface", over(tls(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
"#,
    );
    let (upgrades, preface) = told.0.split_at(3);
    assert!(upgrades.iter().all(|(_, result)| result == "200 open"), "{upgrades:?}");
    assert!(preface.iter().all(|(_, result)| result.ends_with("closed") && !result.contains("200")), "{preface:?}");
    let heard = attack.site.heard();
    assert!(!heard.contains("upgrade") && !heard.contains("http2-settings"), "{heard}");
    attack.left_only(&["GET /open"]);
}

/// H15: nothing is answered but by the server; E17: nothing of its answers leads to another protocol.
#[test]
fn h15_each_answer_is_the_servers_own_and_names_no_other_way() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
for n in range(3):
    stream = tls()
    stream.sendall(head())
    whole = heard(stream)[0].lower()
    told(str(n), "alt-svc" if b"alt-svc" in whole else "200" if b" 200 " in whole else "none")
"#,
    );
    told.all(3, &["200"]);
    assert_eq!(attack.site.asked().iter().filter(|asked| asked.starts_with("GET /open")).count(), 3);
}

/// C2: who is sent elsewhere asks anew, and is judged anew.
#[test]
fn c02_another_place_is_another_request() {
    let attack = Attack::new();
    let url = format!("https://{SITE}:{}", attack.site.port);
    let follow = |path: &str| {
        let said = "--silent --location --output /dev/null --write-out '%{http_code} %{num_redirects} %{exitcode}'";
        script(&attack.world, &attack.site.rule("GET", path), &format!("curl {said} {url}{path}; true")).succeeds()
    };
    assert_eq!(follow("/elsewhere").text(), "302 1 6");
    attack.asked_only(&["GET /elsewhere"]);
    assert_eq!(follow("/inside").text(), "403 1 0");
    attack.left_only(&["GET /inside"]);
}
