//! The server's end of a lane.

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::{Response, StatusCode, request::Parts};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    CONNECTION_WINDOW_BYTES, Error, FRAME_BYTES, HEADERS_BYTES_MAX, Incoming, Outgoing, SEND_BUFFER_BYTES, Settings,
    Tunnel, read_whole,
};
use crate::guest_api::{Failure, JSON_BYTES_MAX};

/// A connection of which requests are taken.
pub struct Server<Io> {
    connection: Connection<Io, Bytes>,
}

/// One request, and the right to answer it once.
pub struct Exchange {
    /// Method, path and headers.
    pub head: Parts,
    /// What comes with it.
    pub body: RecvStream,
    /// The right to answer.
    pub answer: Answer,
}

/// The right to answer one request. Dropped without use, the stream is reset.
pub struct Answer {
    respond: SendResponse<Bytes>,
}

/// Begins HTTP/2 as the server, after the handshake of [`crate::hello`].
pub async fn accept<Io>(io: Io, settings: &Settings) -> Result<Server<Io>, Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let connection = h2::server::Builder::new()
        .initial_window_size(settings.stream_window_bytes)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_concurrent_streams(settings.streams_max)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(settings.overhead_bytes_max)
        .handshake(io)
        .await?;
    Ok(Server { connection })
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Server<Io> {
    /// The next request, or nothing when the connection has ended in order. It has to be awaited all the time: it moves all
    /// streams. It may be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Exchange>, Error> {
        match self.connection.accept().await {
            None => Ok(None),
            Some(Err(error)) => Err(error.into()),
            Some(Ok((request, respond))) => {
                let (head, body) = request.into_parts();
                Ok(Some(Exchange { head, body, answer: Answer { respond } }))
            }
        }
    }
}

impl Exchange {
    /// The value of a parameter in the query, as it is written there.
    pub fn query(&self, name: &str) -> Option<&str> {
        let query = self.head.uri.query()?;
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// Reads a request's body as JSON.
pub async fn read_json<Body: DeserializeOwned>(body: RecvStream) -> Result<Body, Error> {
    Ok(serde_json::from_slice(&read_whole(body, JSON_BYTES_MAX).await?)?)
}

impl Answer {
    /// Answers without a body.
    pub fn empty(mut self, status: StatusCode) -> Result<(), Error> {
        self.respond.send_response(head(status)?, true)?;
        Ok(())
    }

    /// Answers with JSON.
    pub async fn json(self, status: StatusCode, body: &impl Serialize) -> Result<(), Error> {
        self.bytes(status, serde_json::to_vec(body)?.into()).await
    }

    /// Answers with a sentence that says what went wrong.
    pub async fn failure(self, status: StatusCode, message: impl Into<String>) -> Result<(), Error> {
        self.json(status, &Failure { message: message.into() }).await
    }

    /// Answers with a body that is at hand.
    pub async fn bytes(self, status: StatusCode, body: Bytes) -> Result<(), Error> {
        let mut outgoing = self.stream(status)?;
        outgoing.send(body).await?;
        outgoing.finish()
    }

    /// Answers with a body that is made piece by piece.
    pub fn stream(mut self, status: StatusCode) -> Result<Outgoing, Error> {
        Ok(Outgoing::new(self.respond.send_response(head(status)?, false)?))
    }

    /// Answers a CONNECT: from now on the stream is a tunnel. `body` is that of the request.
    pub fn tunnel(self, body: RecvStream) -> Result<Tunnel, Error> {
        Ok(Tunnel { incoming: Incoming::new(body), outgoing: self.stream(StatusCode::OK)? })
    }
}

fn head(status: StatusCode) -> Result<Response<()>, Error> {
    Ok(Response::builder().status(status).body(())?)
}
