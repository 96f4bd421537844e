//! The proxy between sockets of this machine; what a connection was made to is said by the test, not by the kernel.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use std::net::IpAddr;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A proxy at work, and a server that is all it leads to.
struct Work {
    egress: Arc<Egress>,
    server: TcpListener,
    door: SocketAddr,
    told: mpsc::Receiver<Told>,
    stop: oneshot::Sender<Duration>,
    serving: tokio::task::JoinHandle<()>,
}

fn rule(port: u16) -> Rule {
    format!("{HERE}:{port}").parse().unwrap()
}

/// One whose connections were all made to the server.
async fn work(most: usize, room: usize) -> Work {
    let server = TcpListener::bind((HERE, 0)).await.unwrap();
    let SocketAddr::V4(asked) = server.local_addr().unwrap() else { panic!("an address of IPv4") };
    let ways_out =
        WaysOut { reach: vec![IpAddr::from(HERE).into()], name_servers: vec![(HERE, 53).into()], trust: None };
    let egress = Egress::new(vec![rule(asked.port())], Vec::new(), ways_out, PATIENCE).unwrap();
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let door = listener.local_addr().unwrap();
    let (sender, told) = mpsc::channel(room);
    let (stop, stopped) = oneshot::channel();
    let serving = egress.clone().serve_at_once(most, move |_| Ok(asked), listener, sender, stopped);
    Work { egress, server, door, told, stop, serving: tokio::spawn(serving) }
}

impl Work {
    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.door).await.unwrap()
    }

    /// Both ends of a connection through the proxy, over which a byte has come.
    async fn connection(&self) -> (TcpStream, TcpStream) {
        let mut client = self.client().await;
        client.write_all(b"x").await.unwrap();
        (client, self.accepted().await)
    }

    /// The next connection that comes to the server, with its first byte read.
    async fn accepted(&self) -> TcpStream {
        let mut accepted = within(self.server.accept()).await.unwrap().0;
        assert_eq!(within(accepted.read_u8()).await.unwrap(), b'x');
        accepted
    }

    /// Whether the server has a connection soon.
    async fn comes_soon(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.server.accept()).await.is_ok()
    }

    async fn told(&mut self) -> ToldConnection {
        connection(within(self.told.recv()).await.unwrap())
    }
}

fn connection(told: Told) -> ToldConnection {
    match told {
        Told::Connection(told) => told,
        Told::Request(told) => panic!("{told:?}"),
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it comes")
}

/// How a connection ends for who reads from it.
async fn end_of(connection: &mut TcpStream) -> Result<usize, io::ErrorKind> {
    within(connection.read(&mut [0; 100])).await.map_err(|error| error.kind())
}

#[tokio::test]
async fn a_connection_is_told_of_with_what_went_over_it() {
    let mut work = work(10, 10).await;
    let (mut client, mut server) = work.connection().await;
    server.write_all(b"hello").await.unwrap();
    server.shutdown().await.unwrap();
    let mut heard = String::new();
    within(client.read_to_string(&mut heard)).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!((heard.as_str(), end_of(&mut server).await), ("hello", Ok(0)));
    let told = work.told().await;
    assert_eq!((told.refused, told.sent, told.received), (None, 1, 5));
    let address = work.server.local_addr().unwrap();
    assert_eq!((told.host.as_str(), told.port, told.address), ("127.0.0.1", address.port(), Some(address)));
}

#[tokio::test]
async fn what_no_rule_allows_is_reset_and_nobody_is_connected_to() {
    let mut work = work(10, 10).await;
    work.egress.set_rules(vec!["example.org".parse().unwrap(), rule(1)]);
    let mut client = work.client().await;
    assert_eq!(end_of(&mut client).await, Err(io::ErrorKind::ConnectionReset));
    let told = work.told().await;
    assert_eq!((told.refused, told.address), (Some(Refusal::NotAllowed), None));
    assert!(!work.comes_soon().await);
}

#[tokio::test]
async fn a_rule_that_is_withdrawn_ends_what_it_allowed_within_a_second() {
    let mut work = work(10, 10).await;
    let (mut client, mut server) = work.connection().await;
    let kept = work.egress.outside.rules().to_vec();
    work.egress.set_rules([&kept[..], &["example.org".parse().unwrap()]].concat());
    let withdrawn = Instant::now();
    work.egress.set_rules(Vec::new());
    assert_eq!(end_of(&mut client).await, Err(io::ErrorKind::ConnectionReset));
    assert_eq!(end_of(&mut server).await, Err(io::ErrorKind::ConnectionReset), "a question broken off is no whole one");
    assert!(withdrawn.elapsed() < Duration::from_secs(1));
    assert_eq!(work.told().await.refused, Some(Refusal::Withdrawn));
}

#[tokio::test]
async fn a_change_of_other_rules_ends_nothing() {
    let mut work = work(10, 10).await;
    let (mut client, mut server) = work.connection().await;
    let rules = work.egress.outside.rules().to_vec();
    work.egress.set_rules([&["example.org".parse().unwrap()], &rules[..]].concat());
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.write_all(b"y").await.unwrap();
    assert_eq!(within(client.read_u8()).await.unwrap(), b'y');
    assert!(work.told.try_recv().is_err());
}

#[tokio::test]
async fn what_is_open_at_the_end_is_broken_off_and_told_of() {
    let mut work = work(10, 10).await;
    let (mut connections, most) = (Vec::new(), 3);
    for _ in 0..most {
        connections.push(work.connection().await);
    }
    drop(work.stop);
    within(work.serving).await.unwrap();
    for (client, server) in &mut connections {
        assert_eq!(end_of(client).await, Err(io::ErrorKind::ConnectionReset));
        assert_eq!(end_of(server).await, Err(io::ErrorKind::ConnectionReset));
    }
    let told = std::iter::from_fn(|| work.told.try_recv().ok()).map(connection).collect::<Vec<_>>();
    assert_eq!(told.len(), most);
    assert!(told.iter().all(|told| told.refused == Some(Refusal::SandboxEnded) && told.sent == 1), "{told:?}");
}

#[tokio::test]
async fn more_connections_than_there_may_be_wait_and_are_not_refused() {
    let most = 2;
    let work = work(most, 10).await;
    let (first, _second) = (work.connection().await, work.connection().await);
    let mut third = work.client().await;
    third.write_all(b"x").await.unwrap();
    assert!(!work.comes_soon().await, "it waits");
    drop(first);
    let mut server = work.accepted().await;
    server.write_all(b"y").await.unwrap();
    assert_eq!(within(third.read_u8()).await.unwrap(), b'y');
}

#[tokio::test]
async fn where_nothing_can_be_told_nothing_is_accepted_and_nothing_is_lost() {
    let room = 2;
    let mut work = work(10, room).await;
    for _ in 0..room {
        drop(work.connection().await);
    }
    let mut waiting = Vec::new();
    for _ in 0..room + 1 {
        let mut client = work.client().await;
        client.write_all(b"x").await.unwrap();
        waiting.push(client);
    }
    assert!(!work.comes_soon().await, "nobody was told of the first yet");
    let mut told = Vec::new();
    for client in waiting {
        told.push(work.told().await);
        drop((client, work.accepted().await));
    }
    for _ in 0..room {
        told.push(work.told().await);
    }
    assert!(told.iter().all(|told| told.sent == 1), "{told:?}");
    assert_eq!(told.len(), 2 * room + 1);
}
