//! Heads of requests over a connection that is intercepted, as a client sends them, in either version of HTTP.
//!
//! The first byte says which version, and of HTTP/2 the rest is a row of fields, or bytes as they are. What must hold: a head
//! that is passed on names the host of its connection and no other, and nothing about its connection but that it becomes a
//! WebSocket; it is written as one request, which is read as the same and passed on as it is.

use std::{cell::RefCell, convert::Infallible, rc::Rc, time::Duration};

use bytes::Bytes;
use holm_domain::egress::name::HostName;
use holm_proxy::egress::intercept::head;
use http::{HeaderName, Method, Request, Response, Version, header, request};
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    time::timeout,
};

use crate::{
    input::{Input, piece},
    run,
};

const NAME: &str = "allowed.example";
const PORT: u16 = 8443;
const AUTHORITY: &str = "allowed.example:8443";
/// What a client of HTTP/2 says first (RFC 9113, section 3.4), and its settings, of which there are none.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const FRAME_BYTES: usize = 16_384;
const ROOM_BYTES: usize = 1024 * 1024;
/// The most requests of an input that are looked at.
const REQUESTS_MAX: usize = 100;
/// Far more than all deadlines of a connection together; no time passes while anything is to be done.
const END: Duration = Duration::from_secs(3_600);

/// Seeds: requests of both versions, and some that are to be refused.
pub fn seeds() -> Vec<Vec<u8>> {
    let first = format!("GET /v1/a?b=c HTTP/1.1\r\nHost: {AUTHORITY}\r\nAccept: */*\r\n");
    let socket = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let plain = [
        format!("{first}Connection: x-one\r\nX-One: 1\r\nTE: trailers\r\nCookie: a\r\nCookie: b\r\n\r\n"),
        format!("{first}{socket}"),
        format!("GET https://{AUTHORITY}/ HTTP/1.1\r\nHost: {AUTHORITY}\r\n\r\n"),
        "POST //a/../b HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        format!("OPTIONS * HTTP/1.1\r\nHost: {AUTHORITY}\r\n\r\n"),
    ];
    let fields: [&[(&str, &str)]; 3] = [
        &[(":method", "GET"), (":scheme", "https"), (":authority", AUTHORITY), (":path", "/"), ("te", "trailers")],
        &[(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", AUTHORITY), ("cookie", "a")],
        &[(":method", "CONNECT"), (":authority", "evil.example:443")],
    ];
    let rows = fields.map(|fields| {
        let row = fields.iter().flat_map(|(name, value)| [piece(name.as_bytes()), piece(value.as_bytes())]).flatten();
        [1].into_iter().chain(row).collect::<Vec<u8>>()
    });
    plain.iter().map(|text| [&[0], text.as_bytes()].concat()).chain(rows).collect()
}

/// Reads it.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let heads = match input.byte() % 3 {
        0 => run(heads_of_http1(input.rest().to_vec())),
        1 => run(heads_of_http2([PREFACE, &row(input)].concat())),
        _ => run(heads_of_http2([PREFACE, input.rest()].concat())),
    };
    heads.into_iter().for_each(head);
}

/// One request with the fields of a row of names and values, none of them compressed (RFC 7541, section 6.2.2).
fn row(mut input: Input<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    while !input.is_empty() && block.len() < FRAME_BYTES / 2 {
        block.push(0);
        for _ in 0..2 {
            let piece = input.piece();
            let text = &piece[..piece.len().min(126)];
            block.push(text.len() as u8);
            block.extend(text);
        }
    }
    let [_, high, middle, low] = (block.len() as u32).to_be_bytes();
    // Headers, the end of them and of the stream, of the first stream.
    [&[high, middle, low, 1, 0b101, 0, 0, 0, 1], &block[..]].concat()
}

/// What a client that says this and no more is taken to ask for.
async fn heads_of_http1(said: Vec<u8>) -> Vec<request::Parts> {
    let heads = Rc::<RefCell<Vec<_>>>::default();
    let kept = heads.clone();
    let service = service_fn(move |request| answer(request, kept.clone()));
    let (mut client, server) = duplex(ROOM_BYTES);
    let serving = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
    let saying = async {
        let _refused_by_now = client.write_all(&said).await;
        let _gone = client.shutdown().await;
        let _broken = client.read_to_end(&mut Vec::new()).await;
    };
    let (_malformed, ()) = timeout(END, async { tokio::join!(serving, saying) }).await.expect("it ends");
    heads.take()
}

async fn heads_of_http2(said: Vec<u8>) -> Vec<request::Parts> {
    let (sender, mut heads) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let _whole = sender.send(request.into_parts().0);
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let (client, server) = duplex(ROOM_BYTES);
    let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service);
    let (mut reads, mut writes) = split(client);
    let saying = async {
        let _refused_by_now = writes.write_all(&said).await;
        let _gone = writes.shutdown().await;
        let _broken = reads.read_to_end(&mut Vec::new()).await;
    };
    let (_malformed, ()) = timeout(END, async { tokio::join!(serving, saying) }).await.expect("it ends");
    let mut all = Vec::new();
    heads.recv_many(&mut all, REQUESTS_MAX).await;
    all
}

async fn answer(
    request: Request<Incoming>,
    kept: Rc<RefCell<Vec<request::Parts>>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, _) = request.into_parts();
    if kept.borrow().len() < REQUESTS_MAX {
        kept.borrow_mut().push(head);
    }
    Ok(Response::new(Empty::new()))
}

/// What must hold of one.
fn head(asked: request::Parts) {
    let Some(out) = passed_on(asked.clone()) else { return };
    assert_eq!(out.uri.scheme_str(), Some("https"));
    assert_eq!(out.uri.authority().map(|authority| authority.as_str()), Some(AUTHORITY));
    assert!(out.uri.path().starts_with('/') && !matches!(out.method, Method::CONNECT | Method::TRACE), "{out:?}");
    assert_eq!((out.version, &out.method), (Version::HTTP_11, &asked.method));
    assert_eq!((out.uri.path(), out.uri.query()), (asked.uri.path(), asked.uri.query()));
    assert!(out.uri.path_and_query().is_some_and(|target| target.as_str().starts_with('/')), "{out:?}");
    let becomes = out.headers.get(header::UPGRADE).map(|value| value.as_bytes());
    assert!(becomes.is_none_or(|protocol| protocol == b"websocket"), "{out:?}");
    let of_connection =
        out.headers.get_all(header::CONNECTION).iter().map(|value| value.as_bytes()).collect::<Vec<_>>();
    assert_eq!(of_connection, if becomes.is_some() { vec![&b"upgrade"[..]] } else { vec![] });
    for name in [header::HOST, header::TRANSFER_ENCODING, header::PROXY_AUTHORIZATION, header::EXPECT, header::TRAILER]
    {
        assert!(!out.headers.contains_key(name), "{out:?}");
    }
    let listed = asked.headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in listed.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse::<HeaderName>().ok()) {
        let is_ours = matches!(name, header::UPGRADE | header::TE);
        assert!(is_ours || !out.headers.contains_key(&name), "{name} is of the connection: {out:?}");
    }
    let again = run(heads_of_http1(written(&out)));
    let [again] = again.as_slice() else { panic!("it is read as {} requests: {out:?}", again.len()) };
    let again = passed_on(again.clone()).expect("it is passed on");
    assert_eq!((&again.method, &again.uri, fields(&again)), (&out.method, &out.uri, fields(&out)));
}

/// Names and values, those without the blanks around them, which no reader takes for a part of them.
fn fields(head: &request::Parts) -> Vec<(&HeaderName, &[u8])> {
    let mut fields: Vec<_> = head.headers.iter().map(|(name, value)| (name, value.as_bytes().trim_ascii())).collect();
    // One name's keep their order.
    fields.sort_by_key(|(name, _)| name.as_str());
    fields
}

/// What is passed on of a request, if it is.
fn passed_on(mut asked: request::Parts) -> Option<request::Parts> {
    let name = HostName::from_text(NAME).expect("a name");
    head::fields(&asked.headers).ok()?;
    head::check(&asked, &name, PORT).ok()?;
    head::outgoing(&mut asked, &name, PORT).ok()?;
    Some(asked)
}

/// It as it is written to the server.
fn written(out: &request::Parts) -> Vec<u8> {
    let target = out.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut text = format!("{} {target} HTTP/1.1\r\nhost: {AUTHORITY}\r\n", out.method).into_bytes();
    for (name, value) in &out.headers {
        // How long a body is stands in the head of another one, which this has not.
        if *name != header::CONTENT_LENGTH {
            text.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
    }
    text.extend(b"\r\n");
    text
}
