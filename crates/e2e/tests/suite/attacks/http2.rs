//! E5, E6, H3 and H8: requests over HTTP/2.

use super::Attack;

/// A client of HTTP/2 in frames: `ask` is one request of these fields, and tells its status, or how it was refused.
const FRAMES: &str = r#"
def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
def field(name, value):
    name, value = name.encode("latin1"), value.encode("latin1")
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
def greeted():
    stream = tls(protocol="h2")
    assert stream.selected_alpn_protocol() == "h2"
    stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
    return stream
def exactly(stream, length):
    whole = b""
    while len(whole) < length:
        piece = stream.recv(length - len(whole))
        if not piece:
            raise ConnectionError
        whole += piece
    return whole
def answer(stream, patience=10):
    stream.settimeout(patience)
    status = None
    try:
        while True:
            length, kind, flags, number = struct.unpack(">IBBI", b"\0" + exactly(stream, 9))
            payload = exactly(stream, length)
            if kind == 7:
                return f"goaway {struct.unpack('>I', payload[4:8])[0]}"
            if kind == 4 and not flags & 1:
                stream.sendall(frame(4, 1, 0))
            if kind == 3:
                return f"reset {struct.unpack('>I', payload)[0]}"
            if kind == 1 and payload[:1] == b"\x88":
                status = "200"
            elif kind == 1:
                status = "other"
            if kind == 0 and (found := re.search(rb'"status":(\d+)', payload)):
                status = found[1].decode()
            if kind in (0, 1) and flags & 1:
                return status or "none"
    except TimeoutError:
        return status or "silence"
    except OSError:
        return status or "closed"
BASE = {":method": "GET", ":scheme": "https", ":authority": HOST, ":path": "/evil"}
def ask(fields, body=None, stream=None, number=1):
    stream = stream or greeted()
    block = b"".join(field(*pair) for pair in (fields.items() if isinstance(fields, dict) else fields))
    try:
        stream.sendall(frame(1, 4 | (1 if body is None else 0), number, block))
        if body is not None:
            stream.sendall(frame(0, 1, number, body))
    except OSError:
        pass
    return answer(stream)
def pairs(*more, **changed):
    named = {":" + name: value for name, value in changed.items()}
    return [(name, value) for name, value in {**BASE, **named}.items() if value is not None] + list(more)
"#;
/// What is answered to what may not be passed on.
const REFUSED: [&str; 5] = ["400", "405", "421", "reset 1", "goaway 1"];

/// E5 and E6: pseudo-headers that may be read in more than one way, another host over the same connection, tunnels.
#[test]
fn e05_a_request_has_one_host_which_is_that_of_its_connection() {
    let attack = Attack::new();
    let body = r#"
told("control", ask(pairs(path="/open")))
evil = f"{EVIL}:{port}"
told("another", ask(pairs(authority=evil)))
told("and host", ask(pairs(("host", evil))))
told("host alone", ask(pairs(("host", evil), authority=None)))
told("two hosts", ask(pairs(("host", HOST), ("host", evil))))
told("none", ask(pairs(authority=None)))
told("empty", ask(pairs(authority="")))
told("user", ask(pairs(authority=f"user@{HOST}")))
told("port", ask(pairs(authority=f"{SITE}:443")))
told("scheme", ask(pairs(scheme="http")))
told("no scheme", ask(pairs(scheme=None)))
told("no path", ask(pairs(path=None)))
told("no method", ask(pairs(method=None)))
told("twice", ask(pairs() + [(":path", "/open")]))
told("two authorities", ask(pairs() + [(":authority", evil)]))
told("late", ask([(":method", "GET"), (":scheme", "https"), ("a", "b"), (":authority", HOST), (":path", "/evil")]))
told("unknown", ask(pairs(evil="x")))
told("connect", ask([(":method", "CONNECT"), (":authority", evil)]))
told("connect here", ask([(":method", "CONNECT"), (":authority", HOST)]))
told("websocket", ask(pairs(method="CONNECT", protocol="websocket")))
told("other protocol", ask(pairs(method="CONNECT", protocol="connect-udp")))
told("trace", ask(pairs(method="TRACE")))
told("star", ask(pairs(method="OPTIONS", path="*")))
"#;
    let told = attack.program_by_any_method(&format!("{FRAMES}{body}"));
    told.first_is("control", "200").all(22, &REFUSED);
    attack.left_only(&["GET /open"]);
    let body = r#"
stream = greeted()
told("first", ask(pairs(path="/open"), stream=stream))
told("second", ask(pairs(authority=f"{EVIL}:{port}"), stream=stream, number=3))
told("third", ask(pairs(path="/open"), stream=stream, number=5))
"#;
    attack.program(&format!("{FRAMES}{body}")).are(&[("first", "200"), ("second", "421"), ("third", "200")]);
    attack.left_only(&["GET /open"]);
}

/// H3: what would be another request where it is written as HTTP/1.1.
#[test]
fn h03_what_http2_carries_is_no_other_request_in_http1() {
    let attack = Attack::new();
    let body = r#"
told("control", ask(pairs(("a", "b"), path="/open")))
hidden = f"b\r\nhost: {HOST}\r\n\r\nGET /evil HTTP/1.1"
for name, fields in [
    ("coding", pairs(("transfer-encoding", "chunked"))),
    ("connection", pairs(("connection", "close"))),
    ("keep-alive", pairs(("keep-alive", "1"))),
    ("upgrade", pairs(("upgrade", "h2c"))),
    ("proxy-connection", pairs(("proxy-connection", "x"))),
    ("te", pairs(("te", "gzip"))),
    ("line in value", pairs(("a", hidden))),
    ("feed in value", pairs(("a", "b\nc"))),
    ("nul in value", pairs(("a", "b\0c"))),
    ("line in name", pairs(("a\r\nb", "c"))),
    ("colon in name", pairs(("a:b", "c"))),
    ("blank in name", pairs(("a b", "c"))),
    ("capital", pairs(("Evil", "c"))),
    ("empty name", pairs(("", "c"))),
    ("line in path", pairs(path="/evil HTTP/1.1\r\na: b")),
    ("blank in path", pairs(path="/evil x")),
    ("no slash", pairs(path="evil")),
    ("empty path", pairs(path="")),
    ("blank in method", pairs(method="GET /evil")),
    ("line in method", pairs(method="GET\r\n")),
    ("line in authority", pairs(authority=f"{HOST}\r\na: b")),
]:
    told(name, ask(fields))
"#;
    let told = attack.program_by_any_method(&format!("{FRAMES}{body}"));
    told.first_is("control", "200").all(21, &REFUSED);
    attack.left_only(&["GET /open"]);
    // What says another length than it has is no whole request.
    let body = r#"
told("shorter", ask(pairs(("content-length", "10"), method="POST"), b"abc"))
told("longer", ask(pairs(("content-length", "1"), method="POST"), b"abc"))
told("two lengths", ask(pairs(("content-length", "3"), ("content-length", "1"), method="POST"), b"abc"))
told("odd length", ask(pairs(("content-length", "+3"), method="POST"), b"abc"))
"#;
    let told = attack.program(&format!("{FRAMES}{body}"));
    told.all(4, &["400", "502", "reset 1", "reset 2", "goaway 1"]);
    attack.asked_only(&[]);
}

/// H8: floods of frames, and a head that is large once it is read. Whatever becomes of who floods, the others go on; what would be
/// kept without an end is cut off.
#[test]
fn h08_floods_of_frames_cost_nobody_else_anything() {
    let attack = Attack::new();
    let body = r#"
def flood(name, frames, count=20_000):
    stream = greeted()
    stream.settimeout(5)
    try:
        for at in range(0, count, 100):
            stream.sendall(b"".join(frames(n) for n in range(at, at + 100)))
        told(name, "taken")
    except TimeoutError:
        told(name, "stalled")
    except OSError:
        told(name, "cut")
    told(name + " after", ask(pairs(path="/open")))
block = b"".join(field(*pair) for pair in pairs(path="/hang"))
resets = lambda n: frame(1, 5, 1 + 2 * n, block) + frame(3, 0, 1 + 2 * n, struct.pack(">I", 8))
flood("resets", resets)
flood("settings", lambda n: frame(4, 0, 0, struct.pack(">HI", 3, n)))
flood("pings", lambda n: frame(6, 0, 0, struct.pack(">Q", n)))
flood("continuations", lambda n: frame(1, 1, 1, block) if n == 0 else frame(9, 0, 1, field("a", "b" * 200)))
flood("empty continuations", lambda n: frame(1, 1, 1, block) if n == 0 else frame(9, 0, 1, b""))
flood("empty data", lambda n: frame(1, 4, 1, b"".join(field(*pair) for pair in pairs(method="POST", path="/hang"))) if n == 0 else frame(0, 0, 1, b""))
flood("priorities", lambda n: frame(2, 0, 1 + 2 * (n % 1000), struct.pack(">IB", 0, 1)))
flood("windows", lambda n: frame(8, 0, 0, struct.pack(">I", 1)))
flood("streams", lambda n: frame(1, 5, 1 + 2 * n, block))
flood("unknown", lambda n: frame(200, 0, 0, b"evil" * 50))
# A field of 4,033 bytes in the table, and named 12,000 times.
bomb = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 12_000
stream = greeted()
stream.sendall(frame(1, 5, 1, b"".join(field(*pair) for pair in pairs()) + bomb))
told("bomb", answer(stream))
told("bomb after", ask(pairs(path="/open")))
"#;
    let told = attack.program(&format!("{FRAMES}{body}"));
    let (after, floods): (Vec<_>, Vec<_>) = told.0.iter().partition(|(name, _)| name.ends_with("_after"));
    assert_eq!((after.len(), floods.len()), (11, 11), "{:?}", told.0);
    assert!(after.iter().all(|(_, result)| result == "200"), "{:?}", told.0);
    for (name, expected) in [("continuations", "cut"), ("empty_continuations", "cut"), ("bomb", "goaway 11")] {
        let result = floods.iter().find(|(flood, _)| flood == name).map(|(_, result)| result.as_str());
        assert_eq!(result, Some(expected), "{:?}", told.0);
    }
    assert!(!attack.site.heard().contains("evil"));
}
