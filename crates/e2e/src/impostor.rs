//! A server that answers what a test has made up: plain HTTP/1.1 on the loopback address, one request a connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::Value;

use crate::DEADLINE;

/// The longest head and the longest body of a request that it reads.
const REQUEST_BYTES_MAX: u64 = 1024 * 1024;

/// A server that lies. It is gone when this is dropped.
pub struct Impostor {
    port: u16,
    is_over: Arc<AtomicBool>,
}

impl Impostor {
    /// Answers each request with what `answer` makes of its target: a status and a body, which is a problem document if the
    /// status is that of an error.
    #[track_caller]
    pub fn answering(answer: impl Fn(&str) -> (u16, Value) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away has seen enough.
                let _gone = serve(client, &answer);
            }
        });
        Self { port, is_over }
    }

    /// Where it is found.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // The thread that accepts looks once more.
        let _woken = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
    }
}

fn serve(mut client: TcpStream, answer: &impl Fn(&str) -> (u16, Value)) -> std::io::Result<()> {
    client.set_read_timeout(Some(DEADLINE))?;
    client.set_write_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(client.try_clone()?.take(REQUEST_BYTES_MAX));
    let (mut request, mut line, mut body_bytes) = (String::new(), String::new(), 0);
    reader.read_line(&mut request)?;
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            body_bytes = length.trim().parse().map_err(std::io::Error::other)?;
        }
        line.clear();
    }
    // An answer before the end of the request would be lost with the connection.
    std::io::copy(&mut reader.take(body_bytes), &mut std::io::sink())?;
    let (status, body) = answer(request.split(' ').nth(1).unwrap_or_default());
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status} Made-Up\r\ncontent-type: {kind}\r\ncontent-length: {}", body.len());
    client.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}").as_bytes())
}
