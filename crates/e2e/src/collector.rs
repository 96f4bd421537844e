//! A collector of traces: takes what is sent to it, or does not, and remembers the bytes.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// What a collector does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It takes them.
    Takes,
    /// It reads them and never answers.
    Hangs,
}

/// A collector at an address of its own. It lives as long as the test.
#[derive(Debug, Clone)]
pub struct Collector {
    /// Where it is.
    pub url: String,
    heard: Arc<Mutex<Heard>>,
}

/// What came so far.
#[derive(Debug)]
struct Heard {
    bodies: Vec<Vec<u8>>,
    /// When the last of them came, or the collector was started.
    last: Instant,
}

impl Collector {
    /// Starts one.
    #[track_caller]
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let heard = Arc::new(Mutex::new(Heard { bodies: Vec::new(), last: Instant::now() }));
        let kept = Arc::clone(&heard);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = Arc::clone(&kept);
                // A connection that breaks is one that a client has closed.
                thread::spawn(move || drop(serve(stream, manner, &kept)));
            }
        });
        Self { url, heard }
    }

    /// A URL at which nobody listens.
    #[track_caller]
    pub fn nobody() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        format!("http://{}", listener.local_addr().expect("an address"))
    }

    /// The bodies of all requests so far.
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).bodies.clone()
    }

    /// For how long nothing came.
    pub fn quiet_for(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).last.elapsed()
    }
}

fn serve(mut stream: TcpStream, manner: Manner, kept: &Mutex<Heard>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break bytes.drain(..end + 4).collect::<Vec<u8>>();
            }
            more(&mut stream, &mut bytes)?;
        };
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let length: usize = length.ok_or(std::io::ErrorKind::InvalidData)?;
        while bytes.len() < length {
            more(&mut stream, &mut bytes)?;
        }
        let body = bytes.drain(..length).collect();
        {
            let mut heard = kept.lock().unwrap_or_else(PoisonError::into_inner);
            heard.bodies.push(body);
            heard.last = Instant::now();
        }
        if manner == Manner::Takes {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")?;
        }
    }
}

fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    match stream.read(&mut buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        count => {
            bytes.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    }
}
