//! What a run that may reach something reaches: by name, by any protocol over TCP, and nothing that its policy does not name.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use holm_e2e::{
    World,
    names::{Answers, NameServer},
    postgres::Postgres,
    probe,
    ran::Ran,
};

/// A server on this machine that does `each` with every connection, and counts them.
pub struct Server {
    pub port: u16,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub fn start(each: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", each)
    }

    /// One at an address of this machine.
    pub fn start_at(address: &str, each: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a port for a server");
        let port = listener.local_addr().expect("its address").port();
        let connections = Arc::<AtomicUsize>::default();
        let (each, count) = (Arc::new(each), connections.clone());
        thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let each = each.clone();
                thread::spawn(move || each(connection));
            }
        });
        Self { port, connections }
    }

    /// One that says all that it was told, once that has ended.
    pub fn echo() -> Self {
        Self::start(|mut connection| {
            let mut told = Vec::new();
            connection.read_to_end(&mut told)?;
            connection.write_all(&told)
        })
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An installation whose host asks `names`, and lets runs reach 127.0.0.1 beside the public internet.
pub fn world(names: &NameServer) -> World {
    world_that_reaches(&["127.0.0.1"], names)
}

pub fn world_that_reaches(ranges: &[&str], names: &NameServer) -> World {
    let mut world = World::new();
    let address = names.address();
    let reach = ranges.iter().flat_map(|range| ["--host-reach", range]);
    world.start_up_with(&["--host-name-server", &address].into_iter().chain(reach).collect::<Vec<_>>());
    world
}

pub fn names(answers: &[(&'static str, &[&str])]) -> NameServer {
    let parsed = |list: &[&str]| vec![list.iter().map(|address| address.parse().expect("an address")).collect()];
    NameServer::start(answers.iter().map(|(name, list)| (*name, parsed(list))).collect::<Answers>())
}

/// What a program says that may use `ask(host, port)`, which returns what an echo server says to `hello`.
pub fn python(world: &World, allow: &[String], body: &str) -> Ran {
    let program = format!(
        r#"
import errno, socket, sys
def ask(host, port, said=b"hello"):
    connection = socket.create_connection((host, port), timeout=30)
    connection.sendall(said)
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        # It was reset already, which is told to who reads.
        if error.errno != errno.ENOTCONN:
            raise
    heard = bytearray()
    while piece := connection.recv(1 << 16):
        heard += piece
    return bytes(heard)
def attempt(name, *what):
    try:
        print(name, ask(*what), flush=True)
    except OSError as error:
        print(name, type(error).__name__, flush=True)
{body}
"#
    );
    let allow = allow.iter().flat_map(|rule| ["--allow".to_owned(), rule.clone()]);
    let command = ["--", "/usr/bin/python3", "-c", &program].map(str::to_owned);
    world.run(allow.chain(command))
}

/// Who was refused, by the events of the newest run, however often it was told.
pub fn refused(world: &World) -> Vec<String> {
    let told = world.events_of(&world.newest(), "egress_refused");
    let text = |event: &serde_json::Value| format!("{}:{}", event["host"].as_str().unwrap_or_default(), event["port"]);
    let mut told: Vec<String> = told.iter().map(text).collect();
    told.sort();
    told.dedup();
    told
}

#[test]
fn a_run_reaches_what_is_allowed_and_nothing_else() {
    let names = names(&[("allowed.example", &["127.0.0.1"]), ("other.example", &["127.0.0.1"])]);
    let (server, other) = (Server::echo(), Server::echo());
    let world = world(&names);
    let (port, other_port) = (server.port, other.port);
    let body = format!(
        r#"
attempt("allowed", "ALLOWED.example", {port})
attempt("port", "allowed.example", {other_port})
attempt("name", "other.example", {port})
attempt("address", "192.0.2.7", {port})
attempt("host", "127.0.0.1", {port})
attempt("metadata", "169.254.169.254", 80)
attempt("six", "2001:db8::7", {port})
"#
    );
    let ran = python(&world, &[format!("allowed.example:{port}")], &body).succeeds();
    assert_eq!(
        ran.text().lines().collect::<Vec<_>>(),
        [
            "allowed b'hello'",
            "port ConnectionResetError",
            "name gaierror",
            "address ConnectionResetError",
            "host ConnectionRefusedError",
            "metadata ConnectionResetError",
            "six ConnectionRefusedError",
        ]
    );
    assert_eq!((server.connections(), other.connections()), (1, 0));
    assert_eq!(names.all_asked(), ["allowed.example"], "what is not allowed is asked of nobody");
    let wanted = [
        "169.254.169.254:80".to_owned(),
        format!("192.0.2.7:{port}"),
        format!("2001:db8::7:{port}"),
        format!("allowed.example:{other_port}"),
        "other.example:0".to_owned(),
    ];
    assert_eq!(refused(&world), wanted);
}

#[test]
fn a_name_that_leads_to_what_nobody_listed_leads_nowhere() {
    let names = names(&[
        ("private.example", &["10.1.2.3"]),
        ("metadata.example", &["169.254.169.254"]),
        ("second.example", &["127.0.0.2"]),
        ("six.example", &["::1"]),
        ("mapped.example", &["::ffff:127.0.0.2"]),
        ("translated.example", &["64:ff9b::7f00:2"]),
        ("benchmark.example", &["198.18.0.1"]),
        ("mixed.example", &["10.1.2.3", "127.0.0.1"]),
        ("nothing.example", &[]),
    ]);
    let server = Server::echo();
    let world = world(&names);
    let port = server.port;
    let places = ["private", "metadata", "second", "six", "mapped", "translated", "benchmark", "nothing", "missing"];
    let allow: Vec<String> = places.iter().chain(&["mixed"]).map(|name| format!("{name}.example:{port}")).collect();
    let body: String = places.map(|name| format!("attempt('{name}', '{name}.example', {port})\n")).concat();
    let body = format!("{body}attempt('mixed', 'mixed.example', {port})");
    let ran = python(&world, &allow, &body).succeeds();
    let expected = places.map(|name| format!("{name} ConnectionResetError")).join("\n");
    assert_eq!(ran.text(), format!("{expected}\nmixed b'hello'\n"));
    assert_eq!(server.connections(), 1, "of the mixed ones only the address that may be reached");
    // The last two have no address; the others were refused, and not merely out of reach.
    let (special, nowhere) = places.split_at(places.len() - 2);
    let told = world.events_of(&world.newest(), "egress_refused");
    let told: BTreeMap<&str, &str> =
        told.iter().filter_map(|event| Some((event["host"].as_str()?, event["reason"].as_str()?))).collect();
    assert_eq!(told.len(), places.len(), "{told:?}");
    let all_say = |names: &[&str], why: &str| {
        names.iter().all(|name| told.get(&*format!("{name}.example")).is_some_and(|told| told.starts_with(why)))
    };
    assert!(all_say(special, "it leads to an address that may not be reached"), "{told:?}");
    assert!(all_say(nowhere, "its name has no address"), "{told:?}");
}

#[test]
fn the_host_itself_is_reached_where_it_is_listed_by_itself_only() {
    let names = names(&[("host.example", &["127.0.0.1"])]);
    let server = Server::echo();
    let world = world_that_reaches(&["127.0.0.0/8"], &names);
    let port = server.port;
    let body = format!("attempt('host', 'host.example', {port})");
    let ran = python(&world, &[format!("host.example:{port}")], &body).succeeds();
    assert_eq!(ran.text(), "host ConnectionResetError\n");
    assert_eq!((server.connections(), refused(&world)), (0, vec![format!("host.example:{port}")]));
}

#[test]
fn each_connection_goes_to_an_address_that_was_checked_for_it() {
    let (good, evil) = (vec!["127.0.0.1".parse().unwrap()], vec!["127.0.0.2".parse().unwrap()]);
    let names = NameServer::start([("rebound.example", vec![good, evil])].into());
    let server = Server::echo();
    let elsewhere = TcpListener::bind(("127.0.0.2", server.port)).expect("the same port of another address");
    let world = world(&names);
    let port = server.port;
    let body = format!("for n in range(3):\n    attempt(str(n), 'rebound.example', {port})");
    let ran = python(&world, &[format!("rebound.example:{port}")], &body).succeeds();
    assert_eq!(ran.text(), "0 b'hello'\n1 ConnectionResetError\n2 ConnectionResetError\n");
    assert!(names.asked_for("rebound.example") >= 2, "an answer without a time to live is not kept");
    elsewhere.set_nonblocking(true).unwrap();
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn addresses_are_reached_by_their_ranges_alone() {
    let names = names(&[("named.example", &["127.0.0.1"])]);
    let server = Server::echo();
    let world = world(&names);
    let port = server.port;
    // Inside, 127.0.0.0/8 is the sandbox's own: the host is not reached by that address, whatever the rule.
    let body = format!("attempt('own', '127.0.0.1', {port})\nattempt('named', 'named.example', {port})");
    let ran = python(&world, &[format!("127.0.0.0/8:{port}")], &body).succeeds();
    assert_eq!(ran.text(), "own ConnectionRefusedError\nnamed gaierror\n");
    let ran = python(&world, &[format!("public:{port}")], &body).succeeds();
    assert_eq!(
        ran.text(),
        "own ConnectionRefusedError\nnamed ConnectionResetError\n",
        "it is not on the public internet"
    );
    assert_eq!(server.connections(), 0);
}

#[test]
fn large_bodies_go_both_ways_unharmed_and_an_end_is_an_end() {
    let names = names(&[("echo.example", &["127.0.0.1"])]);
    let server = Server::echo();
    let world = world(&names);
    let port = server.port;
    let body = format!(
        r#"
import hashlib, threading
said = hashlib.shake_256(b"holm").digest(32 << 20)
def one():
    print(ask("echo.example", {port}, said) == said, flush=True)
threads = [threading.Thread(target=one) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"#
    );
    let ran = python(&world, &[format!("echo.example:{port}"), "unused.example".to_owned()], &body).succeeds();
    assert_eq!(ran.text(), "True\n".repeat(4));
}

#[test]
fn an_answer_that_breaks_off_is_no_whole_answer() {
    let names = names(&[("half.example", &["127.0.0.1"])]);
    let server = Server::start(|mut connection| {
        connection.write_all(b"half of it")?;
        connection.read_exact(&mut [0; 5])?;
        // With something unread, closing resets.
        connection.write_all(b" and")
    });
    let world = world(&names);
    let port = server.port;
    let body = format!(
        r#"
connection = socket.create_connection(("half.example", {port}), timeout=30)
connection.sendall(b"hello, and more than is read")
try:
    while connection.recv(100):
        pass
    print("whole")
except ConnectionResetError:
    print("broken off")
"#
    );
    assert_eq!(python(&world, &[format!("half.example:{port}")], &body).succeeds().text(), "broken off\n");
}

#[test]
fn a_client_of_tls_says_the_name_that_it_was_connected_by() {
    let names = names(&[("allowed.example", &["127.0.0.1"])]);
    let server = Server::start(|mut connection| {
        let mut greeting = [0; 1];
        // A byte of a greeting, if one comes; then anything that is no TLS.
        if connection.read(&mut greeting)? > 0 {
            connection.write_all(b"greeted")?;
        }
        Ok(())
    });
    let world = world(&names);
    let port = server.port;
    let body = format!(
        r#"
import ssl, time
def greet(name, pieces):
    hello, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    tls = context.wrap_bio(incoming, hello, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    said = hello.read()
    connection = socket.create_connection(("allowed.example", {port}), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for at in range(0, len(said), pieces):
            connection.sendall(said[at:at + pieces])
        return connection.recv(100)
    except OSError as error:
        return type(error).__name__
for name in ["allowed.example", "ALLOWED.example", "evil.example", None]:
    for pieces in [1, 5, 100000]:
        print(name, pieces, greet(name, pieces), flush=True)
"#
    );
    let ran = python(&world, &[format!("allowed.example:{port}")], &body).succeeds();
    for line in ran.text().lines() {
        let is_allowed = line.to_lowercase().starts_with("allowed.example");
        assert_eq!(line.ends_with("b'greeted'"), is_allowed, "{line}");
        assert_eq!(line.ends_with("ConnectionResetError"), !is_allowed, "{line}");
    }
    assert_eq!(ran.text().lines().count(), 12, "{ran}");
    assert_eq!(refused(&world), [format!("allowed.example:{port}")]);
}

#[test]
fn the_way_out_is_no_way_to_anything_else() {
    let names = names(&[("allowed.example", &["127.0.0.1"])]);
    let server = Server::echo();
    let world = world(&names);
    let port = server.port;
    let body = r#"
def udp(to):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(10)
    s.connect(to)
    s.send(b"x")
    s.recv(1)
attempt("quic", lambda: udp(("192.0.2.7", 443)))
attempt("dns", lambda: udp(("192.0.2.7", 53)))
def listeners():
    rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A"]
def direct(port):
    s = socket.create_connection(("127.0.0.1", port), timeout=10)
    s.send(b"x")
    if s.recv(1) == b"":
        raise ConnectionResetError(errno.ECONNRESET, "ended")
for port in listeners():
    attempt("direct", lambda: direct(port))
def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
attempt("raw", raw)
def netfilter():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    s.bind((0, 0))
    import struct
    def message(kind, flags, resource, body=b""):
        whole = struct.pack("=BBH", 2, 0, socket.htons(resource)) + body
        return struct.pack("=LHHLL", 16 + len(whole), kind, flags | 1, 0, 0) + whole
    name = struct.pack("=HH", 9, 1) + b"holm\0\0\0\0"
    s.send(message(16, 0, 10) + message(10 << 8 | 2, 4, 0, name) + message(17, 0, 10))
    answer = s.recv(1000)
    code = struct.unpack("=l", answer[16:20])[0]
    if code:
        raise OSError(-code, "refused")
attempt("netfilter", netfilter)
"#;
    let ran = world.run([
        "--allow",
        &format!("allowed.example:{port}"),
        "--",
        "/usr/bin/python3",
        "-c",
        &probe::program(body),
    ]);
    let mut attempts = probe::Attempts::of(ran);
    attempts.refused("quic", &["ECONNREFUSED"]);
    attempts.refused("dns", &["ECONNREFUSED"]);
    attempts.refused("direct", &["ECONNRESET"]);
    attempts.refused("raw", &["EPERM", "EACCES"]);
    attempts.refused("netfilter", &["EPERM", "EACCES"]);
    attempts.no_more();
    assert_eq!(server.connections(), 0);
}

#[test]
fn a_database_is_reached_by_its_name() {
    let names = names(&[("db.example", &["127.0.0.1"])]);
    let postgres = Postgres::start();
    let world = world(&names);
    let url = postgres.url(postgres.port()).replace("127.0.0.1", "db.example");
    let allow = format!("db.example:{}", postgres.port());
    let asked = ["--", "psql", &url, "--no-psqlrc", "--tuples-only", "--no-align", "-c", "select inet_server_addr()"];
    let ran = world.run(["--allow", &allow].iter().copied().chain(asked)).succeeds();
    assert_eq!(ran.word(), "127.0.0.1");
    world.run(asked).exits(2).complains_of(&["could not translate host name", "db.example"]);
}

#[test]
fn what_a_command_has_sent_arrives_also_after_its_end() {
    let answers = [("slow.example", vec![vec!["127.0.0.1".parse().unwrap()]])].into();
    let names = NameServer::slow(answers, Duration::from_millis(300));
    let (heard, said) = std::sync::mpsc::channel();
    let server = Server::start(move |mut connection| {
        let mut told = String::new();
        connection.read_to_string(&mut told)?;
        heard.send(told).map_err(std::io::Error::other)
    });
    let world = world(&names);
    let place = format!("slow.example:{}", server.port);
    let say = format!("echo important > /dev/tcp/slow.example/{}", server.port);
    world.run(["--allow", &place, "--", "bash", "-c", &say]).succeeds();
    assert_eq!(said.recv_timeout(Duration::from_secs(20)).expect("it arrives"), "important\n");
}

#[test]
fn an_answer_that_comes_early_arrives() {
    let names = names(&[("early.example", &["127.0.0.1"])]);
    let server = Server::start(|mut connection| {
        connection.read_exact(&mut [0; 1_000])?;
        connection.write_all(b"too large")
    });
    let world = world(&names);
    let port = server.port;
    let body = format!(
        r#"
for n in range(20):
    connection = socket.create_connection(("early.example", {port}), timeout=30)
    try:
        connection.sendall(b"x" * 4_000_000)
    except OSError:
        pass
    try:
        print(connection.recv(100), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"#
    );
    let ran = python(&world, &[format!("early.example:{port}")], &body).succeeds();
    let arrived = ran.text().lines().filter(|line| *line == "b'too large'").count();
    // A reset that overtakes it takes it along, also without a proxy.
    assert!(arrived >= 15, "{ran}");
}

#[test]
fn a_warning_before_a_greeting_is_no_way_around_it() {
    let names = names(&[("allowed.example", &["127.0.0.1"])]);
    let server = Server::start(|mut connection| {
        let mut told = [0; 1];
        let length = connection.read(&mut told)?;
        connection.write_all(if length > 0 { b"heard" } else { b"" })
    });
    let world = world(&names);
    let port = server.port;
    let body = format!("attempt('warned', 'allowed.example', {port}, bytes([21, 3, 1, 0, 2, 1, 90, 22, 3, 1]))");
    let ran = python(&world, &[format!("allowed.example:{port}")], &body).succeeds();
    assert_eq!(ran.text(), "warned ConnectionResetError\n");
    assert_eq!(refused(&world), [format!("allowed.example:{port}")]);
}
