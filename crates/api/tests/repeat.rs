//! What is sent again when a connection is lost before an answer, against a server that closes as often as it is told.
#![allow(clippy::unwrap_used)]

use holm_api::{
    client::{Client, ClientError, Endpoint},
    runs::CancelRun,
};
use holm_domain::RunId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    task::JoinHandle,
};

const ANSWER: &[u8] = b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A client, and how many requests came in the end: the first `closes` are met by the end of their connection.
fn world(closes: usize) -> (tempfile::TempDir, Client, JoinHandle<usize>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let mut came = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            if stream.read(&mut head).await.unwrap() == 0 {
                continue;
            }
            came += 1;
            if came > closes {
                stream.write_all(ANSWER).await.unwrap();
                break;
            }
        }
        came
    });
    let client = Client::new(Endpoint::Unix(path), "holm_secret".into()).unwrap();
    (dir, client, server)
}

fn run() -> RunId {
    "run_01jd0000000000000000000000".parse().unwrap()
}

fn is_answer<T>(result: &Result<T, ClientError>) -> bool {
    matches!(result, Err(ClientError::Status { status: 410, .. }))
}

#[tokio::test]
async fn what_changes_nothing_is_sent_again() {
    let (_dir, client, server) = world(3);
    assert!(is_answer(&client.run_get(run()).await));
    assert_eq!(server.await.unwrap(), 4);
}

#[tokio::test]
async fn it_is_given_up_after_a_few_times() {
    let (_dir, client, server) = world(4);
    assert!(matches!(client.run_get(run()).await, Err(ClientError::Transport { .. })));
    assert!(is_answer(&client.run_get(run()).await), "the next is the fifth that came");
    assert_eq!(server.await.unwrap(), 5);
}

#[tokio::test]
async fn what_may_have_been_done_is_not_sent_again() {
    let (_dir, client, server) = world(1);
    let cancelled = client.run_cancel(run(), &CancelRun { kill: false }).await;
    assert!(matches!(cancelled, Err(ClientError::Transport { .. })));
    assert!(is_answer(&client.run_cancel(run(), &CancelRun { kill: false }).await));
    assert_eq!(server.await.unwrap(), 2);
}
