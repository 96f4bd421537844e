//! What stands before the servers of a fleet: one port, and each new connection goes to the next server that accepts it.
//!
//! That is the whole of it. It looks at no byte, keeps nobody at the server that he had before, and ends a connection on one
//! side as soon as it ends on the other.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;

/// A thread that carries bytes needs little.
const STACK_BYTES: usize = 128 * 1024;
const PIECE_BYTES: usize = 32 * 1024;

/// A port that leads to several servers. Dropping it accepts no more; what is connected goes on until either end closes.
pub struct Balancer {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Balancer {
    /// Stands before the servers on those ports of the loopback address.
    pub fn before(ports: impl IntoIterator<Item = u16>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (address, is_over) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let (mut ports, over): (VecDeque<u16>, _) = (ports.into_iter().collect(), Arc::clone(&is_over));
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // Where no server accepts, the client is closed: as if one had refused.
                if let Some(server) = next(&mut ports) {
                    let _closed_when_there_is_no_room = join(client, server);
                }
            }
        })?;
        Ok(Self { address, is_over })
    }

    /// Where it is found.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // The thread that accepts looks once more.
        let _woken = TcpStream::connect(self.address);
    }
}

/// A connection to the next server that accepts one.
fn next(ports: &mut VecDeque<u16>) -> Option<TcpStream> {
    (0..ports.len()).find_map(|_| {
        ports.rotate_left(1);
        TcpStream::connect((Ipv4Addr::LOCALHOST, *ports.back()?)).ok()
    })
}

fn join(client: TcpStream, server: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || carry(from, to))?;
    }
    Ok(())
}

/// Carries bytes one way until either end is closed, and then closes both.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = vec![0; PIECE_BYTES];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        let _closed_before = end.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead as _;

    use super::*;

    /// A server that tells each connection its name and keeps it open.
    fn server(name: &'static str) -> (u16, Arc<AtomicBool>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let (port, is_dead) = (listener.local_addr().expect("an address").port(), Arc::new(AtomicBool::new(false)));
        let dead = Arc::clone(&is_dead);
        thread::spawn(move || {
            let mut open = Vec::new();
            for mut client in listener.incoming().flatten() {
                if dead.load(Ordering::SeqCst) {
                    return;
                }
                client.write_all(name.as_bytes()).expect("a line");
                open.push(client);
            }
        });
        (port, is_dead)
    }

    #[test]
    fn connections_go_round_and_none_to_who_is_dead() {
        let ((first, is_dead), (second, _)) = (server("first\n"), server("second\n"));
        let balancer = Balancer::before([first, second]).expect("a balancer");
        let connect = || std::io::BufReader::new(TcpStream::connect(balancer.address).expect("a connection"));
        let line = |stream: &mut std::io::BufReader<TcpStream>| {
            let mut line = String::new();
            stream.read_line(&mut line).expect("a line or the end");
            line
        };
        let mut streams = [connect(), connect(), connect()];
        let names = streams.each_mut().map(line);
        assert!(names.iter().any(|name| name == "first\n") && names.iter().any(|name| name == "second\n"), "{names:?}");
        is_dead.store(true, Ordering::SeqCst);
        // It looks once more, and all that it had open is closed.
        let _woken = TcpStream::connect((Ipv4Addr::LOCALHOST, first));
        for (stream, _) in streams.iter_mut().zip(&names).filter(|(_, name)| *name == "first\n") {
            assert_eq!(line(stream), "");
        }
        let mut later = [connect(), connect(), connect()];
        assert_eq!(later.each_mut().map(line), ["second\n"; 3]);
    }
}
