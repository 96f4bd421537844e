//! A wire to a TCP server that can be slow, silent or dead; or to several, each connection to the next of them that accepts.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It arrives, so much later.
    Passes(Duration),
    /// It stays where it is until that changes.
    Stalls,
}

/// How one connection, or every new one, is treated.
struct Line {
    way: Mutex<Way>,
    changed: Condvar,
    is_over: AtomicBool,
}

impl Line {
    fn new(way: Way) -> Arc<Self> {
        Arc::new(Self { way: Mutex::new(way), changed: Condvar::new(), is_over: AtomicBool::new(false) })
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, way: Way) {
        *self.way() = way;
        self.changed.notify_all();
    }

    /// Waits until what was read may be sent; whether it still may.
    fn pass(&self) -> bool {
        let is_held = |way: &mut Way| *way == Way::Stalls && !self.is_over.load(Ordering::SeqCst);
        let way = self.changed.wait_while(self.way(), is_held).unwrap_or_else(PoisonError::into_inner);
        if let Way::Passes(later) = *way {
            drop(way);
            thread::sleep(later);
        }
        !self.is_over.load(Ordering::SeqCst)
    }
}

/// A port behind which a server is, or several are. Connections are ended with this.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    /// The servers, the next one first.
    ports: VecDeque<u16>,
    way: Way,
    lines: Vec<(Arc<Line>, [TcpStream; 2])>,
    is_over: bool,
}

impl Proxy {
    /// Stands before the server on that port of the loopback address.
    #[track_caller]
    pub fn before(port: u16) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, [port])
    }

    /// Stands at an address before the servers on those ports of the loopback address.
    #[track_caller]
    pub fn at(address: Ipv4Addr, ports: impl IntoIterator<Item = u16>) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let ports = ports.into_iter().collect();
        let state = State { ports, way: Way::Passes(Duration::ZERO), lines: Vec::new(), is_over: false };
        let state = Arc::new(Mutex::new(state));
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = accepting.lock().unwrap_or_else(PoisonError::into_inner);
                if state.is_over {
                    return;
                }
                // Where no server is, it is as if one refused.
                if let Some(server) = state.next_server() {
                    state.join(client, server);
                }
            }
        });
        Self { address, state }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where it is found.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything arrives later by this, each way.
    pub fn delays(&self, by: Duration) {
        self.set(Way::Passes(by));
    }

    /// Nothing arrives any more until [`Proxy::delays`] is called, and nobody is told.
    pub fn stalls(&self) {
        self.set(Way::Stalls);
    }

    /// What is connected now stays connected and never hears anything again, as when the host behind a name is lost and
    /// another takes its place; new connections pass.
    pub fn abandons(&self) {
        // The threads of a line keep it, and its sockets, for as long as they wait.
        self.state().lines.drain(..).for_each(|(line, _)| line.set(Way::Stalls));
    }

    /// New connections lead to another server; those that there are go on.
    pub fn leads_to(&self, port: u16) {
        self.state().ports = [port].into();
    }

    fn set(&self, way: Way) {
        let mut state = self.state();
        state.way = way;
        state.lines.iter().for_each(|(line, _)| line.set(way));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A connection to the next server that accepts one.
    fn next_server(&mut self) -> Option<TcpStream> {
        (0..self.ports.len()).find_map(|_| {
            self.ports.rotate_left(1);
            TcpStream::connect((Ipv4Addr::LOCALHOST, *self.ports.back()?)).ok()
        })
    }

    fn join(&mut self, client: TcpStream, server: TcpStream) {
        let line = Line::new(self.way);
        let copy = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("an option");
        }
        for (from, to) in [(copy(&client), copy(&server)), (copy(&server), copy(&client))] {
            let line = Arc::clone(&line);
            thread::spawn(move || carry(&line, from, to));
        }
        self.lines.retain(|(line, _)| !line.is_over.load(Ordering::SeqCst));
        self.lines.push((line, [client, server]));
    }
}

/// Carries bytes one way until either end is closed.
fn carry(line: &Line, mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if !line.pass() || to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    // That the other end closed is news as well, and a dead wire brings none.
    if line.pass() {
        let _closed_before = to.shutdown(Shutdown::Both);
        let _closed_before = from.shutdown(Shutdown::Both);
        line.is_over.store(true, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.state();
        state.is_over = true;
        for (line, streams) in &state.lines {
            line.is_over.store(true, Ordering::SeqCst);
            line.changed.notify_all();
            streams.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
        // The thread that accepts looks once more.
        let _woken = TcpStream::connect(self.address);
    }
}
