//! Client and server of a lane against each other.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use holm_wire::{
    guest_api::JSON_BYTES_MAX,
    http2::{self, Client, Error, Exchange, Incoming, Settings},
};
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncWriteExt, duplex},
    task::JoinHandle,
};

const BULK_BYTES: usize = 8 * 1024 * 1024;

async fn answer(exchange: Exchange) -> Result<(), Error> {
    let piece_bytes = exchange.query("piece").map(|bytes| bytes.parse::<u32>().unwrap());
    let Exchange { head, body, answer } = exchange;
    match (head.method.as_str(), head.uri.path()) {
        ("POST", "/echo") => match http2::read_json::<serde_json::Value>(body).await {
            Ok(value) => answer.json(StatusCode::OK, &value).await,
            Err(Error::TooLarge(_)) => answer.failure(StatusCode::PAYLOAD_TOO_LARGE, "too large").await,
            Err(error) => answer.failure(StatusCode::BAD_REQUEST, error.to_string()).await,
        },
        ("GET", "/bulk") => {
            let mut out = answer.stream(StatusCode::OK)?;
            for _ in 0..BULK_BYTES / 65_536 {
                out.send(Bytes::from_static(&[7; 65_536])).await?;
            }
            out.finish()
        }
        ("GET", "/window") => {
            let mut out = answer.stream(StatusCode::OK)?;
            for _ in 0..Settings::HOST.stream_window_bytes / piece_bytes.unwrap() {
                out.send(vec![7; piece_bytes.unwrap() as usize].into()).await?;
            }
            out.finish()
        }
        ("GET", "/broken") => {
            let mut out = answer.stream(StatusCode::OK)?;
            out.send(Bytes::from_static(b"half")).await
        }
        ("POST", "/sink") => {
            let mut incoming = Incoming::new(body);
            while incoming.next().await?.is_some() {}
            answer.empty(StatusCode::NO_CONTENT)
        }
        ("GET", "/huge") => answer.bytes(StatusCode::OK, vec![b' '; JSON_BYTES_MAX + 1].into()).await,
        ("CONNECT", _) if head.uri.authority().is_some_and(|to| to.as_str() == "inside:80") => {
            let mut tunnel = answer.tunnel(body)?;
            while let Some(piece) = tunnel.incoming.next().await? {
                tunnel.outgoing.send(piece).await?;
            }
            tunnel.outgoing.finish()
        }
        _ => answer.failure(StatusCode::FORBIDDEN, "no").await,
    }
}

async fn pair() -> Client {
    pair_and_driver().await.0
}

async fn pair_and_driver() -> (Client, JoinHandle<Result<(), h2::Error>>) {
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(async move {
        let mut server = http2::accept(far, &Settings::GUEST).await.unwrap();
        while let Ok(Some(exchange)) = server.next().await {
            tokio::spawn(answer(exchange));
        }
    });
    let (client, driver) = http2::connect(near, &Settings::HOST).await.unwrap();
    (client, tokio::spawn(driver))
}

async fn drain(mut incoming: Incoming) -> Result<usize, Error> {
    let mut count = 0;
    while let Some(piece) = incoming.next().await? {
        count += piece.len();
    }
    Ok(count)
}

#[tokio::test]
async fn json_goes_there_and_back_within_its_limits() {
    let client = pair().await;
    let value = serde_json::json!({"a": [1, 2, 3]});
    assert_eq!(client.json::<serde_json::Value>(Method::POST, "/echo", Some(&value)).await.unwrap(), value);
    let large = "x".repeat(JSON_BYTES_MAX);
    let refused = client.empty(Method::POST, "/echo", Some(&large)).await;
    assert!(matches!(refused, Err(Error::Status { status: StatusCode::PAYLOAD_TOO_LARGE, .. })), "{refused:?}");
    let huge = client.bytes(Method::GET, "/huge", None::<&()>).await;
    assert!(matches!(huge, Err(Error::TooLarge(JSON_BYTES_MAX))), "{huge:?}");
}

#[tokio::test]
async fn a_stalled_stream_stops_no_other() {
    let client = pair().await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(client.download("/bulk").await.unwrap());
    }
    assert_eq!(drain(client.download("/bulk").await.unwrap()).await.unwrap(), BULK_BYTES);
    for stream in stalled {
        assert_eq!(drain(stream).await.unwrap(), BULK_BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_of_the_smallest_frames_of_output_waits_and_one_of_single_bytes_breaks_the_connection() {
    let (client, driver) = pair_and_driver().await;
    let waits = client.download("/window?piece=6").await.unwrap();
    // The clock is paused: no time passes before neither end has anything left to do.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!driver.is_finished());
    driver.abort();
    assert!(driver.await.unwrap_err().is_cancelled());
    // Without its connection, nothing is left but what had come.
    assert_eq!(drain(waits).await.unwrap(), 262_140);
    let (client, driver) = pair_and_driver().await;
    let _unread = client.download("/window?piece=1").await.unwrap();
    let broken = driver.await.unwrap().unwrap_err();
    assert_eq!(broken.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "{broken}");
}

#[tokio::test(start_paused = true)]
async fn the_lane_out_takes_no_more_of_a_body_than_its_window_unread() {
    let (near, far) = duplex(64 * 1024);
    let (client, driver) = http2::connect(near, &Settings::GUEST).await.unwrap();
    let _driver = tokio::spawn(driver);
    let _unread = tokio::spawn(async move {
        let mut server = http2::accept(far, &Settings::HOST_OUT).await.unwrap();
        let mut unread = Vec::new();
        while let Ok(Some(exchange)) = server.next().await {
            unread.push(exchange);
        }
    });
    let (mut body, _answer) = client.upload("/").await.unwrap();
    // The clock is paused: no time passes before the window is known.
    tokio::time::sleep(Duration::from_secs(1)).await;
    body.send(vec![7; 8 * 1024].into()).await.unwrap();
    let more = tokio::time::timeout(Duration::from_secs(1), body.send(Bytes::from_static(b"x"))).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn large_bodies_go_up_and_broken_ones_are_no_whole_ones() {
    let client = pair().await;
    let (mut body, done) = client.upload("/sink").await.unwrap();
    for _ in 0..BULK_BYTES / 65_536 {
        body.send(Bytes::from_static(&[7; 65_536])).await.unwrap();
    }
    body.finish().unwrap();
    done.await.unwrap();
    // The reset may overtake the answer's head.
    let broken = match client.download("/broken").await {
        Ok(incoming) => drain(incoming).await,
        Err(error) => Err(error),
    };
    assert!(matches!(broken, Err(Error::Protocol(_))), "{broken:?}");
}

#[tokio::test]
async fn tunnels_carry_bytes_and_are_refused_by_name() {
    let client = pair().await;
    let mut tunnel = client.tunnel("inside:80").await.unwrap();
    tunnel.outgoing.send(Bytes::from_static(b"ping")).await.unwrap();
    assert_eq!(tunnel.incoming.next().await.unwrap().unwrap(), "ping");
    tunnel.outgoing.finish().unwrap();
    assert!(tunnel.incoming.next().await.unwrap().is_none());
    let refused = client.tunnel("elsewhere:80").await.err();
    assert!(matches!(refused, Some(Error::Status { status: StatusCode::FORBIDDEN, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_is_an_error() {
    let (near, mut far) = duplex(64 * 1024);
    far.write_all(&[0xff; 1000]).await.unwrap();
    assert!(http2::accept(near, &Settings::HOST).await.is_err());
}

/// A server that announces each answer as often as it is told to before it gives it, and takes no body.
async fn announcing(times: usize) -> (Client, JoinHandle<Result<(), h2::Error>>) {
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(async move {
        let mut server = h2::server::Builder::new().initial_window_size(0).handshake::<_, Bytes>(far).await.unwrap();
        let mut unanswered = Vec::new();
        while let Some(Ok((_, mut respond))) = server.accept().await {
            for _ in 0..times {
                let early = http::Response::builder().status(StatusCode::EARLY_HINTS).body(()).unwrap();
                respond.send_informational(early).unwrap();
            }
            unanswered.push(respond);
        }
    });
    let (client, driver) = http2::connect(near, &Settings::HOST).await.unwrap();
    (client, tokio::spawn(driver))
}

#[tokio::test]
async fn an_answer_that_is_announced_is_an_error_while_the_body_is_not_taken() {
    let body = Some("a body");
    let (client, _driver) = announcing(1).await;
    let early = client.empty(Method::POST, "/", body).await;
    assert!(matches!(early, Err(Error::Informational(StatusCode::EARLY_HINTS))), "{early:?}");
    assert!(matches!(client.download("/").await.err(), Some(Error::Informational(StatusCode::EARLY_HINTS))));
}

#[tokio::test]
async fn announcements_that_nobody_asks_for_break_the_connection() {
    let (client, driver) = announcing(2).await;
    let (_body, _unasked) = client.upload("/").await.unwrap();
    let broken = driver.await.unwrap().unwrap_err();
    assert!(broken.to_string().contains("stream 1 was answered more than once"), "{broken}");
}
