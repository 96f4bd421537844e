//! What the shim serves its guest: names of what the run may reach, refusals, and an ear for what was refused inside.
//!
//! What always holds: nothing is asked of anybody else, a name is answered with what stands for it inside; bodies are limited and
//! have a deadline, and no more than [`REQUESTS_A_SECOND_MAX`] are looked at, so that a guest can neither fill the shim's memory
//! nor keep it busy.

use std::{sync::Arc, time::Duration};

use holm_proxy::{
    egress::{Egress, TTL_S},
    pace::Pace,
};
use holm_wire::{
    host_api::{Refused, Resolve, Resolved},
    http2::{self, Exchange, Server},
};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

/// How many requests of a guest are looked at in one second; the others wait.
pub const REQUESTS_A_SECOND_MAX: u32 = 500;
/// The largest body, in bytes.
const BODY_BYTES_MAX: usize = 4 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers the guest until it closes the lane; returns why it ended. What was refused is told to `refusals`; where that is
/// full, it is dropped with a warning rather than waited for.
pub async fn serve<Io>(mut server: Server<Io>, egress: Option<Arc<Egress>>, refusals: mpsc::Sender<Refused>) -> String
where
    Io: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut pace = Pace::new(REQUESTS_A_SECOND_MAX);
    loop {
        let exchange = match server.next().await {
            Ok(Some(exchange)) => exchange,
            Ok(None) => return "the guest closed it".to_owned(),
            Err(error) => return error.to_string(),
        };
        // The connection moves only while it is asked for the next request: an exchange is a task beside it.
        let (egress, refusals) = (egress.clone(), refusals.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(exchange, egress.as_deref(), &refusals).await {
                tracing::debug!(%error, "a request of the guest failed");
            }
        });
        pace.wait().await;
    }
}

async fn answer(
    exchange: Exchange,
    egress: Option<&Egress>,
    refusals: &mpsc::Sender<Refused>,
) -> Result<(), http2::Error> {
    let Exchange { head, body, answer } = exchange;
    let resolved = |name: &str| egress.and_then(|egress| egress.resolve(name.as_bytes()));
    let (status, refused) = match (&head.method, head.uri.path()) {
        (&Method::CONNECT, _) => (StatusCode::FORBIDDEN, head.uri.authority().map(connect_refused)),
        (&Method::POST, "/resolve") => match small_json::<Resolve>(body).await {
            Some(Resolve { name }) => match resolved(&name) {
                Some(address) => return answer.json(StatusCode::OK, &Resolved { address, ttl_s: TTL_S }).await,
                None => (StatusCode::FORBIDDEN, Some(refused(name, 0, "dns"))),
            },
            None => (StatusCode::BAD_REQUEST, None),
        },
        (&Method::POST, "/refused") => match small_json::<Refused>(body).await {
            Some(refused) => (StatusCode::NO_CONTENT, Some(refused)),
            None => (StatusCode::BAD_REQUEST, None),
        },
        _ => (StatusCode::NOT_FOUND, None),
    };
    if let Some(refused) = refused
        && refusals.try_send(refused).is_err()
    {
        tracing::warn!("the guest tells of more refused connections than can be counted");
    }
    answer.empty(status)
}

async fn small_json<Body: DeserializeOwned>(body: h2::RecvStream) -> Option<Body> {
    let bytes = tokio::time::timeout(BODY_TIMEOUT, http2::read_whole(body, BODY_BYTES_MAX)).await.ok()?.ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn refused(host: String, port: u16, protocol: &str) -> Refused {
    Refused { host, port, protocol: protocol.to_owned(), count: 1 }
}

fn connect_refused(authority: &http::uri::Authority) -> Refused {
    refused(authority.host().to_owned(), authority.port_u16().unwrap_or(0), "tcp")
}
