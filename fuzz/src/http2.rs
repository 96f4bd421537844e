//! HTTP/2 on a lane, byte by byte: the guest as client of what the shim serves, and as server of what it asks.
//!
//! The first byte says which, and whether the rest is a row of frames (type, flags, stream, payload) whose lengths are
//! right, or bytes as they are. What must hold: whatever comes, both ends come to their end, nothing that is told exceeds
//! its limit, and a refusal is told for nothing but a request.

use std::time::Duration;

use holm_shim::lane_out;
use holm_wire::{
    host_api::{Refused, Resolve},
    http2::{self, Client, Settings},
};
use http::Method;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc,
    time::timeout,
};

use crate::{
    input::{Input, piece},
    run,
};

/// What a client says before its first frame (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const REFUSALS_MAX: usize = 64;
/// The longest body that the shim takes of a guest, in bytes.
const BODY_BYTES_MAX: usize = 4 * 1024;
const ROOM_BYTES: usize = 1024 * 1024;
/// Far more than all deadlines of a lane together; no time passes while anything is to be done.
const END: Duration = Duration::from_secs(3_600);

/// Seeds: what real clients and servers write.
pub fn seeds() -> Vec<Vec<u8>> {
    let (client, server) = run(recorded());
    let mut seeds = Vec::new();
    for (side, bytes) in [(0, &client), (1, &server)] {
        seeds.push([&[side], &bytes[..]].concat());
        seeds.push([&[side | 2], &framed(bytes)[..]].concat());
    }
    let row = framed(&server);
    seeds.extend([1, 2].map(|times| [&[3], &announced(&row, times)[..]].concat()));
    seeds
}

/// What a client and a server write when the one asks the other for all that the shim serves.
async fn recorded() -> (Vec<u8>, Vec<u8>) {
    let (near, between) = duplex(ROOM_BYTES);
    let (beyond, far) = duplex(ROOM_BYTES);
    let ((from_client, to_client), (from_server, to_server)) = (split(between), split(beyond));
    let said = tokio::spawn(carry(from_client, to_server));
    let answered = tokio::spawn(carry(from_server, to_client));
    let (sender, _refusals) = mpsc::channel(REFUSALS_MAX);
    let serving = tokio::spawn(async move {
        let server = http2::accept(far, &Settings::HOST_OUT).await.expect("a server");
        lane_out::serve(server, None, sender).await
    });
    let (client, driver) = http2::connect(near, &Settings::GUEST).await.expect("a client");
    let driver = tokio::spawn(driver);
    let name = Resolve { name: "example.com".to_owned() };
    let refused = Refused { host: "1.2.3.4".to_owned(), port: 443, protocol: "tcp".to_owned(), count: 2 };
    assert!(client.empty(Method::POST, "/resolve", Some(&name)).await.is_err(), "names are refused");
    client.empty(Method::POST, "/refused", Some(&refused)).await.expect("it may tell");
    assert!(client.tunnel("example.com:443").await.is_err(), "tunnels are refused");
    drop(client);
    driver.await.expect("no panic").expect("an end in order");
    serving.await.expect("no panic");
    (said.await.expect("no panic"), answered.await.expect("no panic"))
}

async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) -> Vec<u8> {
    let mut carried = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        carried.extend_from_slice(&buffer[..length]);
        // The other side may have gone first.
        let _gone = to.write_all(&buffer[..length]).await;
    }
    let _gone = to.shutdown().await;
    carried
}

/// Bytes of HTTP/2 as a row of frames; the preface is left out.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut row = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<FRAME_HEAD_BYTES>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        row.extend([head[3], head[4], head[8]]);
        row.extend(piece(&after[..length]));
        rest = &after[length..];
    }
    row
}

/// A row of a server's frames in which the first answer is announced (103) as often.
fn announced(row: &[u8], times: usize) -> Vec<u8> {
    let settings_bytes = 5 + usize::from(u16::from_le_bytes([row[3], row[4]]));
    let (settings, answers) = row.split_at(settings_bytes);
    let announcement = [&[HEADERS, END_HEADERS, 1][..], &piece(b"\x08\x03103")].concat();
    [settings, &announcement.repeat(times), answers].concat()
}

/// The bytes of a row of frames.
fn unframed(mut input: Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !input.is_empty() {
        let (kind, flags, stream, payload) = (input.byte(), input.byte(), input.byte(), input.piece());
        let [_, a, b, c] = u32::try_from(payload.len()).expect("a piece is short").to_be_bytes();
        bytes.extend([a, b, c, kind, flags, 0, 0, 0, stream]);
        bytes.extend(payload);
    }
    bytes
}

/// Gives the bytes to one end of a lane.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let what = input.byte();
    let bytes = if what & 2 == 0 { input.rest().to_vec() } else { unframed(input) };
    if what & 1 == 0 {
        let preface = if what & 2 == 0 { &[][..] } else { PREFACE };
        run(serve([preface, &bytes].concat()));
    } else {
        run(ask(bytes));
    }
}

/// An end of a lane whose peer says `bytes`, reads whatever comes, and then is gone.
fn lane(bytes: Vec<u8>) -> DuplexStream {
    let (near, far) = duplex(bytes.len().max(ROOM_BYTES));
    tokio::spawn(async move {
        let (mut from, mut to) = split(far);
        let said = tokio::spawn(async move {
            let _gone = to.write_all(&bytes).await;
            let _gone = to.shutdown().await;
        });
        let mut ignored = [0; 4096];
        while from.read(&mut ignored).await.is_ok_and(|length| length > 0) {}
        let _aborted = said.await;
    });
    near
}

async fn serve(bytes: Vec<u8>) {
    let length = bytes.len();
    let (sender, mut refusals) = mpsc::channel(REFUSALS_MAX);
    let served = async {
        if let Ok(server) = http2::accept(lane(bytes), &Settings::HOST_OUT).await {
            lane_out::serve(server, None, sender).await;
        }
    };
    timeout(END, served).await.expect("a lane whose peer is gone ends");
    let mut told = 0;
    while let Ok(refused) = refusals.try_recv() {
        told += 1;
        assert!(refused.host.len() + refused.protocol.len() <= length.max(BODY_BYTES_MAX) * 2, "{refused:?}");
    }
    assert!(told * FRAME_HEAD_BYTES <= length, "{told} refusals of {length} bytes");
}

async fn ask(bytes: Vec<u8>) {
    let asked = async {
        let Ok((client, driver)) = http2::connect(lane(bytes), &Settings::HOST).await else { return };
        let driver = tokio::spawn(driver);
        questions(&client).await;
        drop(client);
        let _broken = driver.await.expect("no panic");
    };
    timeout(END, asked).await.expect("a lane whose peer is gone ends");
}

async fn questions(client: &Client) {
    let _answer = client.json::<serde_json::Value>(Method::GET, "/processes/1", None::<&()>).await;
    let _answer = client.bytes(Method::POST, "/processes/1/signal", Some(&[1])).await;
    if let Ok(mut incoming) = client.download("/changes").await {
        while let Ok(Some(piece)) = incoming.next().await {
            assert!(piece.len() <= http2::FRAME_BYTES as usize);
        }
    }
}
