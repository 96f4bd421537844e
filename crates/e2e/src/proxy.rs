//! A wire to a TCP server that can be slow, silent or dead.

use std::{
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

/// A port behind which a server is. Connections are ended with this.
pub struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    port: u16,
    way: Way,
    lines: Vec<(Arc<Line>, [TcpStream; 2])>,
    is_over: bool,
}

impl Proxy {
    /// Stands before the server on that port of the loopback address.
    #[track_caller]
    pub fn before(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let state = State { port, way: Way::Passes(Duration::ZERO), lines: Vec::new(), is_over: false };
        let state = Arc::new(Mutex::new(state));
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = accepting.lock().unwrap_or_else(PoisonError::into_inner);
                if state.is_over {
                    return;
                }
                // A server that is not there is one that refuses.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, state.port)) {
                    state.join(client, server);
                }
            }
        });
        Self { port: own, state }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
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
        self.state().port = port;
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
        let _woken = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
    }
}
