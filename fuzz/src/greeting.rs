//! What a client sends first on a connection that is passed through.
//!
//! The first byte says in pieces of which length it comes. What must hold: what is passed on is what came, from its beginning; the
//! length of the pieces makes no difference to whether it is passed on, nor to what is taken for a greeting of TLS; one of those is
//! passed on only with the name.

use holm_domain::egress::name::HostName;
use holm_proxy::egress::greeting::{self, Greeting};
use tokio::io::{AsyncWriteExt as _, duplex};

use crate::{input::Input, run};

const NAME: &str = "allowed.example";
const HANDSHAKE: u8 = 22;

/// A greeting with one extension, that of the name (RFC 6066, section 3), in records of `length` bytes.
fn hello(name: &str, length: usize) -> Vec<u8> {
    let long = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let names = long(&[&[0], &long(name.as_bytes())[..]].concat());
    let extensions = long(&[&[0, 0], &long(&names)[..]].concat());
    let body = [&[3, 3][..], &[7; 32], &[0], &long(&[0x13, 0x01]), &[1, 0], &extensions].concat();
    let [_, high, middle, low] = (body.len() as u32).to_be_bytes();
    let message = [&[1, high, middle, low], &body[..]].concat();
    message.chunks(length).flat_map(|piece| [&[HANDSHAKE, 3, 1], &long(piece)[..]].concat()).collect()
}

/// Seeds: greetings in one record and in many, and what is none.
pub fn seeds() -> Vec<Vec<u8>> {
    let sent =
        [hello(NAME, 1_000), hello(NAME, 9), hello("evil.example", 1_000), b"SSH-2.0-x\r\n".to_vec(), Vec::new()];
    sent.into_iter().map(|sent| [&[16], &sent[..]].concat()).collect()
}

/// Reads it.
pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let length = usize::from(input.byte()).max(1);
    let sent = input.rest();
    let (in_pieces, at_once) = (run(said(sent, length)), run(said(sent, sent.len().max(1))));
    let greeting =
        |read: &Option<Greeting>| read.as_ref().map(|read| (read.is_tls, read.is_tls.then(|| read.bytes.clone())));
    assert_eq!(greeting(&in_pieces), greeting(&at_once), "pieces make a difference");
    for Greeting { bytes, is_tls, rest } in [in_pieces, at_once].into_iter().flatten() {
        assert!(sent.starts_with(&[&bytes[..], &rest].concat()), "what is passed on is what came");
        assert!(is_tls || rest.is_empty());
        assert!(!is_tls || has_name(&bytes), "it is passed on with the name alone");
    }
}

/// Whether the name stands in what records hold.
fn has_name(mut records: &[u8]) -> bool {
    let mut message = Vec::new();
    while let Some((head, rest)) = records.split_first_chunk::<5>() {
        let (body, rest) = rest.split_at(usize::from(u16::from_be_bytes([head[3], head[4]])));
        message.extend(body.to_ascii_lowercase());
        records = rest;
    }
    message.windows(NAME.len()).any(|part| part == NAME.as_bytes())
}

async fn said(sent: &[u8], length: usize) -> Option<Greeting> {
    let (mut client, mut ours) = duplex(length);
    let sent = sent.to_owned();
    let sending = tokio::spawn(async move { client.write_all(&sent).await });
    let read = greeting::first(&mut ours, &HostName::from_text(NAME).expect("a name")).await;
    drop(ours);
    let _broken_where_it_is_refused = sending.await.expect("it does not panic");
    read.ok()
}
