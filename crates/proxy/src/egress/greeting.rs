//! The first thing that a client sends on a connection that is passed through.
//!
//! What always holds: a connection that was allowed for a name goes on only where the client, if it begins TLS, asks for that
//! name and no other (RFC 6066, section 3): one address may serve many names, of which the policy allows one. However the
//! client cuts its greeting into pieces, all of it is read first, and what was read is passed on as it was. What does not begin
//! as TLS does is not looked at.

use std::{io, time::Duration};

use holm_domain::egress::name::HostName;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest greeting, in bytes: 64 KiB of one message (RFC 8446, section 4) and the heads of its records.
const GREETING_BYTES_MAX: usize = 80 * 1024;
/// How long it may take, once it was begun.
const GREETING_WITHIN: Duration = Duration::from_secs(10);
const PIECE_BYTES: usize = 4 * 1024;
/// The first byte of a record of the handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

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

/// Reads what a client sends first, and returns it; nothing where it ends without a word.
pub async fn read(client: &mut (impl AsyncRead + Unpin), name: &HostName) -> Result<Vec<u8>, Unfit> {
    let mut greeting = Vec::with_capacity(PIECE_BYTES);
    if client.read_buf(&mut greeting).await? == 0 || greeting.first() != Some(&HANDSHAKE) {
        return Ok(greeting);
    }
    let whole = tokio::time::timeout(GREETING_WITHIN, read_whole(client, greeting, name)).await;
    whole.unwrap_or(Err(Unfit::Malformed))
}

/// All of a greeting of TLS that was begun.
async fn read_whole(
    client: &mut (impl AsyncRead + Unpin),
    mut greeting: Vec<u8>,
    name: &HostName,
) -> Result<Vec<u8>, Unfit> {
    let (mut acceptor, mut read) = (Acceptor::default(), 0);
    loop {
        let mut fresh = greeting.get(read..).unwrap_or_default();
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh)?;
            if let Some(accepted) = acceptor.accept().map_err(|_| Unfit::Malformed)? {
                let asked = accepted.client_hello().server_name().map(|asked| HostName::from_wire(asked.as_bytes()));
                return if asked == Some(Ok(name.clone())) { Ok(greeting) } else { Err(Unfit::OtherName) };
            }
        }
        read = greeting.len();
        if read >= GREETING_BYTES_MAX {
            return Err(Unfit::Malformed);
        }
        greeting.reserve(PIECE_BYTES);
        if client.read_buf(&mut greeting).await? == 0 {
            return Err(Unfit::Malformed);
        }
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
        let read = read(&mut ours, &HostName::from_text("allowed.example").unwrap()).await;
        drop(ours);
        let _broken_where_it_is_refused = sending.await.unwrap();
        read
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
        assert!(matches!(said(vec![HANDSHAKE; 100], 64).await, Err(Unfit::Malformed)));
    }

    #[tokio::test]
    async fn what_is_no_tls_is_not_looked_at() {
        assert_eq!(said(b"SSH-2.0-x\r\n".to_vec(), 64).await.unwrap(), b"SSH-2.0-x\r\n");
        assert_eq!(said(Vec::new(), 64).await.unwrap(), b"");
    }
}
