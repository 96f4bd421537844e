//! The side of a connection that is in the sandbox, after TLS.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, join, split},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::At;

/// A client. That it says no more is noted, and is no error where it does so without the words that TLS has for that: what a
/// request is has its end in itself, so half of one is not taken for a whole one.
pub fn client(stream: TlsStream<TcpStream>, at: Arc<At>) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static {
    let (stream, sink) = split(stream);
    join(Says { stream, at }, sink)
}

struct Says {
    stream: ReadHalf<TlsStream<TcpStream>>,
    at: Arc<At>,
}

impl AsyncRead for Says {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match ready!(Pin::new(&mut self.stream).poll_read(cx, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            read => read,
        };
        if read.is_ok() && buffer.filled().len() == before && buffer.remaining() > 0 {
            self.at.says_no_more();
        }
        Poll::Ready(read)
    }
}
