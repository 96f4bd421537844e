//! E1, E6, E14, H10: the greeting of TLS, and what is none.

use super::Attack;
use crate::{egress::refused, site::SITE};

/// E1: another name in the greeting, or none, where requests are seen and where they are not.
#[test]
pub fn e01_a_greeting_that_asks_for_another_name_is_refused() {
    let attack = Attack::new();
    let whole = format!("{SITE}:{}", attack.site.port);
    // The site's own certificate is trusted by nobody inside.
    for (rule, checked) in [(attack.site.rule("GET", "/"), "True"), (whole, "False")] {
        let body = format!(
            r#"
CHECKED = {checked}
told("control", say(head()))
for asked in [EVIL, None, SITE + ".evil.example", "evil." + SITE]:
    try:
        told(str(asked), over(tls(asked), head("GET /evil HTTP/1.1")))
    except OSError as error:
        told(str(asked), "refused")
"#
        );
        attack.program_with(&rule, &body).first_is("control", "200 open").all(4, &["refused"]);
        assert!(attack.reasons().contains("asks for another name"), "{}", attack.reasons());
        attack.left_only(&["GET /open"]);
    }
}

/// E6: a connection is certified for one name, so nothing else is asked for over it.
#[test]
fn e06_a_certificate_is_for_one_name() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
names = [value for kind, value in tls().getpeercert()["subjectAltName"]]
told("names", " ".join(names))
"#,
    );
    told.are(&[("names", SITE)]);
    attack.left_only(&[]);
}

/// E14: a rule is of one port.
#[test]
fn e14_another_port_of_a_host_is_not_allowed() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
for other in [1, 22, 25, 80, 443, 6379, port + 1]:
    told(str(other), sent_plain(SITE, other, b"evil"))
"#,
    );
    told.all(7, &["closed"]);
    assert_eq!(refused(&attack.world).len(), 7);
    attack.left_only(&[]);
}

/// H10: however a greeting is cut it is read whole; what is none is not passed on.
#[test]
fn h10_what_does_not_begin_tls_is_closed_and_a_greeting_in_pieces_is_read() {
    let attack = Attack::new();
    let told = attack.program(
        r#"
def pieces(cut):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    inner = context.wrap_bio(incoming, outgoing, server_hostname=SITE)
    raw = connected()
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    def flush():
        said = cut(outgoing.read())
        for piece in said:
            raw.sendall(piece)
    while True:
        try:
            inner.do_handshake()
            break
        except ssl.SSLWantReadError:
            flush()
            incoming.write(raw.recv(1 << 16))
    inner.write(head())
    flush()
    while True:
        try:
            return inner.read(12).decode()
        except ssl.SSLWantReadError:
            incoming.write(raw.recv(1 << 16))
def bytewise(said):
    return [said[at:at + 1] for at in range(len(said))]
def records(said):
    length = 5 + struct.unpack(">H", said[3:5])[0]
    if said[0] != 22 or length < 100:
        return [said]
    return [said[:3] + b"\x00\x01" + said[at:at + 1] for at in range(5, length)] + [said[length:]]
told("bytes", pieces(bytewise))
told("records", pieces(records))
def plain(said, pause=0):
    raw = connected()
    try:
        raw.sendall(said[:1])
        time.sleep(pause)
        raw.sendall(said[1:])
    except OSError:
        pass
    return heard(raw)[1]
http = b"GET /evil HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n\r\n"
for name, said in [("http", http), ("ssh", b"SSH-2.0-evil\r\n"), ("empty record", b"\x16\x03\x01\x00\x00" + http), ("alert", b"\x15\x03\x01\x00\x02\x01\x5a" + http), ("ssl2", b"\x80\x2e\x01\x03\x01" + http), ("nul", bytes(40) + http)]:
    told(name, plain(said))
    told(name + " late", plain(said, 1))
"#,
    );
    let told = told.first_is("bytes", "HTTP/1.1 200").first_is("records", "HTTP/1.1 200");
    told.all(12, &["closed"]);
    assert!(!attack.site.wire().contains("evil"), "it was passed on as it came");
    attack.left_only(&["GET /open"]);
}
