//! The client's end of a lane.

use std::{pin::Pin, task::Poll};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::{Method, Request, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    CONNECTION_WINDOW_BYTES, Error, FRAME_BYTES, HEADERS_BYTES_MAX, Incoming, OneHead, Outgoing, SEND_BUFFER_BYTES,
    Settings, read_whole,
};
use crate::guest_api::JSON_BYTES_MAX;

/// Asks the server at the other end. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Bytes>,
}

/// The connection itself: to be awaited in a task for as long as the client is used; it completes when the connection ends.
pub type Driver<Io> = Connection<OneHead<Io>, Bytes>;

/// A tunnel that CONNECT made: raw bytes in both directions.
pub struct Tunnel {
    /// From the other side.
    pub incoming: Incoming,
    /// To the other side.
    pub outgoing: Outgoing,
}

/// Begins HTTP/2 as the client, after the handshake of [`crate::hello`].
pub async fn connect<Io>(io: Io, settings: &Settings) -> Result<(Client, Driver<Io>), Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(settings.stream_window_bytes)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_concurrent_streams(0)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(settings.overhead_bytes_max)
        .enable_push(false)
        .handshake(OneHead::new(io))
        .await?;
    Ok((Client { requests }, connection))
}

impl Client {
    /// Sends JSON and reads JSON; any status but 2xx is an error.
    pub async fn json<Answer: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Answer, Error> {
        Ok(serde_json::from_slice(&self.bytes(method, path, body).await?.1)?)
    }

    /// Sends JSON and expects nothing but success.
    pub async fn empty(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<(), Error> {
        self.bytes(method, path, body).await.map(|_| ())
    }

    /// Sends JSON and reads whatever small body comes back, with its 2xx status.
    pub async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let request = Request::builder().method(method).uri(uri(path));
        let response = match body {
            None => answered(self.send(request.body(())?, true).await?.0).await?,
            Some(body) => {
                let data = serde_json::to_vec(body)?;
                let request = request.header(http::header::CONTENT_TYPE, "application/json").body(())?;
                let (response, mut outgoing) = self.send(request, false).await?;
                // A server that takes no more of the body has usually said why: its answer counts.
                let sent = async {
                    let _refused = match outgoing.send(data.into()).await {
                        Ok(()) => outgoing.finish(),
                        refused => refused,
                    };
                    Ok(())
                };
                tokio::try_join!(answered(response), sent)?.0
            }
        };
        let response = success(response).await?;
        Ok((response.status(), read_whole(response.into_body(), JSON_BYTES_MAX).await?))
    }

    /// Asks for a body of any size.
    pub async fn download(&self, path: &str) -> Result<Incoming, Error> {
        let request = Request::builder().method(Method::GET).uri(uri(path)).body(())?;
        let (response, _) = self.send(request, true).await?;
        Ok(Incoming::new(success(answered(response).await?).await?.into_body()))
    }

    /// Begins a body of any size; the answer comes once it was finished, or before if it is refused.
    pub async fn upload(
        &self,
        path: &str,
    ) -> Result<(Outgoing, impl Future<Output = Result<(), Error>> + Send + 'static), Error> {
        let request = Request::builder().method(Method::POST).uri(uri(path)).body(())?;
        let (response, outgoing) = self.send(request, false).await?;
        Ok((outgoing, async move { success(answered(response).await?).await.map(|_| ()) }))
    }

    /// Asks for a tunnel to `authority` (`host:port`).
    pub async fn tunnel(&self, authority: &str) -> Result<Tunnel, Error> {
        let request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
        let (response, outgoing) = self.send(request, false).await?;
        let response = success(answered(response).await?).await?;
        Ok(Tunnel { incoming: Incoming::new(response.into_body()), outgoing })
    }

    /// Opens a stream, waiting while the other side allows no further one.
    async fn send(&self, request: Request<()>, ends: bool) -> Result<(ResponseFuture, Outgoing), Error> {
        let mut ready = self.requests.clone().ready().await?;
        let (response, stream) = ready.send_request(request, ends)?;
        Ok((response, if ends { Outgoing::ended(stream) } else { Outgoing::new(stream) }))
    }
}

/// HTTP/2 wants an absolute form; nothing on a lane looks at scheme and authority.
fn uri(path: &str) -> String {
    format!("http://holm{path}")
}

/// Waits for the answer. No other may come before it: a server on a lane has nothing to announce.
async fn answered(mut response: ResponseFuture) -> Result<Response<h2::RecvStream>, Error> {
    std::future::poll_fn(|context| match response.poll_informational(context) {
        Poll::Ready(Some(announced)) => Poll::Ready(Err(match announced {
            Ok(announced) => Error::Informational(announced.status()),
            Err(error) => error.into(),
        })),
        Poll::Ready(None) | Poll::Pending => Pin::new(&mut response).poll(context).map_err(Error::from),
    })
    .await
}

async fn success(response: Response<h2::RecvStream>) -> Result<Response<h2::RecvStream>, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(Error::Status { status, body: read_whole(response.into_body(), JSON_BYTES_MAX).await? })
}
