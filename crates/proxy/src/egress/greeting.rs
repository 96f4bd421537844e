//! How a connection begins that is passed through: what the client says first, and what the server answers to that.
//!
//! What always holds: a connection that was allowed for a name goes on only where the client, if it speaks TLS, asks for that
//! name and no other (RFC 6066, section 3): one address may serve many names, of which the policy allows one. However the
//! client cuts its greeting into pieces, all of it is read first, and what was read is passed on as it was. A client may be asked
//! to greet once more (RFC 8446, section 4.1.4), and may name another host then: so after a greeting nothing of the client's is
//! passed on before the server has answered, and where it asks for that, not before the second greeting was looked at. What does
//! not begin as TLS does is not looked at.

use std::{io, time::Duration};

use holm_domain::egress::name::HostName;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::checks::is_off;

/// The longest greeting with the heads of its records, in bytes. Those of clients have 300 to 4,000.
const GREETING_BYTES_MAX: usize = 20 * 1024;
/// The most that a client sends up to the end of a second greeting: before it stands early data that is refused (RFC 8446,
/// section 4.2.10).
const SECOND_BYTES_MAX: usize = 64 * 1024;
/// How long a greeting may take, once it was begun.
const GREETING_WITHIN: Duration = Duration::from_secs(10);
const PIECE_BYTES: usize = 4 * 1024;
/// The kinds of records, the first three of which some server takes first (RFC 8446, section 5.1; RFC 6520).
const CHANGE: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const LAST_KIND: u8 = 24;
/// The first byte of every version that there is.
const VERSION: u8 = 3;
/// How many bytes tell whether they are the first of TLS.
const TOLD_BY: usize = 6;
/// The head of a record: its kind, its version, its length.
const RECORD_HEAD: usize = 5;
/// The head of a message of the handshake: its kind, and its length in three bytes.
const MESSAGE_HEAD: usize = 4;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// The random bytes of a ServerHello that asks for another greeting (RFC 8446, section 4.1.3), and where in it they stand.
pub(super) const GREET_AGAIN: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
const RANDOM_AT: usize = 6;

/// Why a client is not passed through.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It asks for another name, or for none.
    #[error("it asks for another name")]
    OtherName,
    /// It begins TLS, and goes on as that never does.
    #[error("it does not greet as a client of TLS does")]
    Malformed,
    /// It ended, or its connection broke.
    #[error("reading its greeting: {0}")]
    Io(#[from] io::Error),
}

/// What a client said first.
#[derive(Debug, PartialEq, Eq)]
pub struct Greeting {
    /// All of it; nothing where the client ends without a word.
    pub bytes: Vec<u8>,
    /// Whether it greets as a client of TLS does, and asks for the name.
    pub is_tls: bool,
    /// What came with it and follows it.
    pub rest: Vec<u8>,
}

impl Greeting {
    fn plain(bytes: Vec<u8>) -> Self {
        Self { bytes, is_tls: false, rest: Vec::new() }
    }
}

/// Reads what a client sends first.
pub async fn first(client: &mut (impl AsyncRead + Unpin), name: &HostName) -> Result<Greeting, Unfit> {
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    if client.read_buf(&mut bytes).await? == 0 || !matches!(bytes[..], [CHANGE..=LAST_KIND | 128..=255, ..]) {
        return Ok(Greeting::plain(bytes));
    }
    let begun = tokio::time::timeout(GREETING_WITHIN, go_on(client, bytes, name)).await;
    begun.unwrap_or(Err(Unfit::Malformed))
}

/// The rest of a greeting that may be one of TLS.
async fn go_on(client: &mut (impl AsyncRead + Unpin), mut bytes: Vec<u8>, name: &HostName) -> Result<Greeting, Unfit> {
    while bytes.len() < TOLD_BY {
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(Greeting::plain(bytes));
        }
    }
    match bytes[..TOLD_BY] {
        // Some servers take any version below 16 here, and pass over what is empty; packets of databases, which begin with their
        // length, go on otherwise.
        [HANDSHAKE, VERSION, ..] | [HANDSHAKE, 0..16, _, _, _, CLIENT_HELLO] | [HANDSHAKE, 0..16, _, 0, 0, _] => {
            whole(client, bytes, name, GREETING_BYTES_MAX, false).await
        }
        // Some pass over what stands before a greeting: a warning, a change of ciphers.
        [CHANGE..=LAST_KIND, VERSION, ..] | [ALERT, 0..16, _, 0, 2, _] | [CHANGE, 0..16, _, 0, 1, 1] => {
            Err(Unfit::Malformed)
        }
        // A greeting in the form of SSL 2.0, which has no name and which some take still (RFC 5246, appendix E.2).
        [128..=255, _, CLIENT_HELLO, VERSION, ..] => Err(Unfit::Malformed),
        _ => Ok(Greeting::plain(bytes)),
    }
}

/// Reads what a client sends that was asked to greet once more, of which `read` was read.
pub async fn second(client: &mut (impl AsyncRead + Unpin), read: Vec<u8>, name: &HostName) -> Result<Greeting, Unfit> {
    let greeting = whole(client, read, name, SECOND_BYTES_MAX, true);
    tokio::time::timeout(GREETING_WITHIN, greeting).await.unwrap_or(Err(Unfit::Malformed))
}

/// Records up to the end of a greeting, at most `most` bytes, some of which were read; what is no handshake may stand among them
/// where `others` may. A greeting ends with its record: what stood behind it there might be another.
async fn whole(
    client: &mut (impl AsyncRead + Unpin),
    mut bytes: Vec<u8>,
    name: &HostName,
    most: usize,
    others: bool,
) -> Result<Greeting, Unfit> {
    let (mut hello, mut at) = (Hello::default(), 0);
    loop {
        while let Some(record) = record(&bytes[at..]) {
            at += record.len();
            if at > most {
                return Err(Unfit::Malformed);
            }
            if record[0] != HANDSHAKE && others {
                continue;
            }
            if let Some(asked) = hello.add(record)? {
                let rest = bytes.split_off(at);
                let is_fit = asked.as_ref() == Some(name) || is_off("greeting");
                return if is_fit { Ok(Greeting { bytes, is_tls: true, rest }) } else { Err(Unfit::OtherName) };
            }
        }
        if bytes.len() >= most {
            return Err(Unfit::Malformed);
        }
        bytes.reserve(PIECE_BYTES);
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(Unfit::Malformed);
        }
    }
}

/// A greeting as its records come.
#[derive(Default)]
struct Hello {
    acceptor: Acceptor,
    /// How many bytes of the message there are, and its first ones, which say how long it is.
    length: usize,
    head: Vec<u8>,
}

impl Hello {
    /// Adds a record; once it is the last one, the name that is asked for, if any is.
    fn add(&mut self, mut record: &[u8]) -> Result<Option<Option<HostName>>, Unfit> {
        let body = &record[RECORD_HEAD..];
        self.length += body.len();
        self.head.extend(body.iter().take(MESSAGE_HEAD - self.head.len()));
        let is_whole = match self.head[..] {
            [_, a, b, c] => {
                let whole = MESSAGE_HEAD + u32::from_be_bytes([0, a, b, c]) as usize;
                if self.length > whole {
                    return Err(Unfit::Malformed);
                }
                self.length == whole
            }
            _ => false,
        };
        let mut accepted = None;
        while !record.is_empty() && accepted.is_none() {
            self.acceptor.read_tls(&mut record)?;
            accepted = self.acceptor.accept().map_err(|_| Unfit::Malformed)?;
        }
        match accepted {
            None if is_whole => Err(Unfit::Malformed),
            None => Ok(None),
            Some(accepted) => {
                let asked = accepted.client_hello().server_name().map(|asked| HostName::from_wire(asked.as_bytes()));
                asked.transpose().map(Some).map_err(|_| Unfit::OtherName)
            }
        }
    }
}

/// The record with which `bytes` begin, if it is whole.
fn record(bytes: &[u8]) -> Option<&[u8]> {
    let head = bytes.get(..RECORD_HEAD)?;
    bytes.get(..RECORD_HEAD + usize::from(u16::from_be_bytes([head[3], head[4]])))
}

/// What a server said first.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was read; nothing where the server ends without a word.
    pub bytes: Vec<u8>,
    /// Whether it asks the client to greet once more.
    pub greet_again: bool,
}

/// Reads what a server sends first, as far as that says whether the client is to greet once more.
pub async fn answer(server: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    let mut bytes = Vec::with_capacity(PIECE_BYTES);
    loop {
        let has_ended = server.read_buf(&mut bytes).await? == 0;
        let enough = has_ended || bytes.len() >= GREETING_BYTES_MAX;
        if let Some(greet_again) = asks_again(&bytes).or(enough.then_some(false)) {
            return Ok(Answer { bytes, greet_again });
        }
        bytes.reserve(PIECE_BYTES);
    }
}

/// Whether a server asks for another greeting; nothing while that cannot be said.
fn asks_again(mut bytes: &[u8]) -> Option<bool> {
    let mut message: Vec<u8> = Vec::new();
    loop {
        let is_handshake = bytes.first().is_none_or(|kind| *kind == HANDSHAKE);
        if !is_handshake || message.first().is_some_and(|kind| *kind != SERVER_HELLO) {
            return Some(false);
        }
        // What of a record is there says as much as all of it.
        let body = bytes.get(RECORD_HEAD..)?;
        let length = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
        message.extend(body.iter().take(length));
        if let Some(random) = message.get(RANDOM_AT..RANDOM_AT + GREET_AGAIN.len()) {
            return Some(message[0] == SERVER_HELLO && random == GREET_AGAIN);
        }
        bytes = body.get(length..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::Arc};

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }

    /// The same message in records of `length` bytes each.
    fn in_records(hello: &[u8], length: usize) -> Vec<u8> {
        let mut records = Vec::new();
        for piece in hello[5..].chunks(length) {
            records.write_all(&hello[..3]).unwrap();
            records.write_all(&u16::try_from(piece.len()).unwrap().to_be_bytes()).unwrap();
            records.write_all(piece).unwrap();
        }
        records
    }

    /// What is read of a client that sends in pieces of `length` bytes.
    async fn said(sent: Vec<u8>, length: usize) -> Result<Vec<u8>, Unfit> {
        let (mut client, mut ours) = tokio::io::duplex(length);
        let sending = tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut client, &sent).await });
        let read = first(&mut ours, &HostName::from_text("allowed.example").unwrap()).await;
        drop(ours);
        let _broken_where_it_is_refused = sending.await.unwrap();
        read.map(|greeting| greeting.bytes)
    }

    #[tokio::test]
    async fn a_client_goes_on_only_with_the_name_that_is_allowed() {
        let good = hello("allowed.example");
        for length in [1, 2, 7, 4_096] {
            assert_eq!(said(good.clone(), length).await.unwrap(), good, "in pieces of {length}");
            assert!(matches!(said(hello("evil.example"), length).await, Err(Unfit::OtherName)));
        }
        assert!(matches!(said(hello("127.0.0.1"), 100).await, Err(Unfit::OtherName)), "a client that names nobody");
        for length in [1, 3, 100] {
            let records = in_records(&good, length);
            assert_eq!(said(records.clone(), 64).await.unwrap(), records, "in records of {length}");
            let evil = in_records(&hello("evil.example"), length);
            assert!(matches!(said(evil, 64).await, Err(Unfit::OtherName)), "in records of {length}");
        }
    }

    #[tokio::test]
    async fn what_begins_as_tls_and_is_none_goes_nowhere() {
        let good = hello("allowed.example");
        assert!(matches!(said(good[..good.len() - 1].to_vec(), 64).await, Err(Unfit::Malformed)), "cut off");
        let mut endless = in_records(&[&good[..5], &[1, 0xff, 0xff, 0xff], &[0; 200_000][..]].concat(), 1_000);
        endless.truncate(150_000);
        assert!(matches!(said(endless, 4_096).await, Err(Unfit::Malformed)), "without an end");
        assert!(matches!(said([&good[..6], &[9; 100]].concat(), 64).await, Err(Unfit::Malformed)));
    }

    #[tokio::test]
    async fn what_is_no_tls_is_not_looked_at() {
        assert_eq!(said(b"SSH-2.0-x\r\n".to_vec(), 64).await.unwrap(), b"SSH-2.0-x\r\n");
        assert_eq!(said(Vec::new(), 64).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn nothing_stands_before_a_greeting() {
        let befores: [&[u8]; 9] = [
            &[0x80, 46, 1, 3, 1, 0, 21, 0, 0, 0, 16],
            &[21, 3, 1, 0, 2, 1, 90],
            &[21, 2, 0, 0, 2, 1, 0],
            &[21, 3, 3, 0, 4, 1, 90, 1, 90],
            &[20, 3, 3, 0, 1, 1],
            &[23, 3, 3, 0, 1, 1],
            &[24, 3, 3, 0, 3, 1, 0, 0],
            &[22, 3, 1, 0, 0],
            &[22, 2, 0, 0, 0],
        ];
        for before in befores {
            let sent = [before, &hello("evil.example")].concat();
            for length in [1, 3, 4_096] {
                assert!(matches!(said(sent.clone(), length).await, Err(Unfit::Malformed)), "{before:?}");
            }
        }
        let mut other_version = hello("evil.example");
        other_version[1] = 2;
        assert!(said(other_version, 64).await.is_err());
        // Packets of databases begin with their length.
        for packet in [&b"\x15\x01\x00\x01abc"[..], b"\x16", b"\x16\x01\x00\x01\x85\xa6\xff"] {
            assert_eq!(said(packet.to_vec(), 64).await.unwrap(), packet);
        }
    }

    #[test]
    fn a_server_asks_for_another_greeting_by_what_is_random_otherwise() {
        let hello = |random: [u8; 32]| [&[SERVER_HELLO, 0, 0, 70, 3, 3], &random[..], &[0; 38]].concat();
        let cut = |message: &[u8], length: usize| {
            let record = |piece: &[u8]| [&[HANDSHAKE, 3, 3, 0, piece.len() as u8], piece].concat();
            message.chunks(length).flat_map(record).collect::<Vec<u8>>()
        };
        for length in [1, 5, 37, 200] {
            let (again, usual) = (cut(&hello(GREET_AGAIN), length), cut(&hello([7; 32]), length));
            assert_eq!((asks_again(&again), asks_again(&usual)), (Some(true), Some(false)), "records of {length}");
            for part in 0..again.len() {
                assert_ne!(asks_again(&again[..part]), Some(false), "{part} of {}", again.len());
            }
        }
        assert_eq!(asks_again(b"220 mail.example"), Some(false));
        assert_eq!(asks_again(&[21, 3, 3, 0, 2, 2, 40]), Some(false), "an alert");
        assert_eq!(asks_again(&cut(&[11, 0, 0, 70, 3, 3, 0, 0], 8)), Some(false), "another message");
        assert_eq!(asks_again(&[]), None);
    }

    #[tokio::test]
    async fn a_second_greeting_is_looked_at_as_the_first_was() {
        let name = HostName::from_text("allowed.example").unwrap();
        let early = [&[20, 3, 3, 0, 1, 1][..], &[23, 3, 3, 0, 3, 1, 2, 3]].concat();
        for (asked, is_fit) in [("allowed.example", true), ("evil.example", false)] {
            let sent = [&early, &hello(asked)[..]].concat();
            let (begun, more) = sent.split_at(30);
            let read = second(&mut [more, b"more"].concat().as_slice(), begun.to_vec(), &name).await;
            let read = read.ok().map(|greeting| (greeting.bytes, greeting.rest));
            assert_eq!(read, is_fit.then_some((sent, b"more".to_vec())), "{asked}");
        }
        let endless = [23, 3, 3, 0, 3, 1, 2, 3].repeat(10_000);
        assert!(matches!(second(&mut endless.as_slice(), Vec::new(), &name).await, Err(Unfit::Malformed)));
    }

    #[tokio::test]
    async fn a_greeting_ends_with_its_record() {
        let name = HostName::from_text("allowed.example").unwrap();
        let (good, evil) = (hello("allowed.example"), hello("evil.example"));
        let read = first(&mut [&good[..], &evil].concat().as_slice(), &name).await.unwrap();
        assert!(read == Greeting { bytes: good.clone(), is_tls: true, rest: evil.clone() });
        let both = [&good[5..], &evil[5..]].concat();
        let length = u16::try_from(both.len()).unwrap().to_be_bytes();
        let in_one_record = [&[HANDSHAKE, 3, 1], &length[..], &both].concat();
        assert!(matches!(first(&mut in_one_record.as_slice(), &name).await, Err(Unfit::Malformed)));
        for length in [1, 100, 300] {
            let records = in_records(&[&good[..], &evil[5..]].concat(), length);
            let is_cut_there = (good.len() - 5) % length == 0;
            assert_eq!(first(&mut records.as_slice(), &name).await.is_ok(), is_cut_there, "records of {length}");
        }
    }
}
