//! Objects: whole or not at all, streamed in bounded memory.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use holm_domain::{OrgId, RunId};
use holm_store::{BLOB_READ_BYTES_MAX, BlobKey, Blobs, Error, PutStreamError};

use crate::{buckets::blobs_of, s3::S3Server, support::uuid};

/// Stores of objects of each kind; the folder and the server of S3 live as long as the test.
fn all() -> ((tempfile::TempDir, S3Server), [Blobs; 3]) {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), S3Server::start());
    let local = Blobs::local(&folder.path().join("a/b")).expect("a folder of blobs");
    let bucket = blobs_of(&server);
    ((folder, server), [local, Blobs::memory(), bucket])
}

pub fn run() -> (OrgId, RunId) {
    (OrgId::from_uuid(uuid()), RunId::from_uuid(uuid()))
}

pub async fn keys(blobs: &Blobs, org: OrgId, run: RunId) -> Vec<(BlobKey, u64)> {
    blobs.list_of_run(org, run).try_collect().await.expect("listed")
}

#[tokio::test]
async fn put_get_and_delete() {
    let (_kept, all) = all();
    for blobs in all {
        let (org, run) = run();
        let key = BlobKey::run_changes(org, run, 3);
        assert_eq!(blobs.get(&key).await.expect("read"), None);
        assert!(blobs.get_stream(&key).await.expect("read").is_none());
        blobs.put(&key, Bytes::from_static(b"old")).await.expect("stored");
        blobs.put(&key, Bytes::from_static(b"0123456789")).await.expect("stored in its place");
        assert_eq!(blobs.get(&key).await.expect("read").as_deref(), Some(&b"0123456789"[..]));
        assert_eq!(&blobs.get_range(&key, 2..5).await.expect("read")[..], b"234");
        assert_eq!(&blobs.get_range(&key, 5..5).await.expect("read")[..], b"");
        let beyond = blobs.get_range(&key, 8..12).await;
        assert!(matches!(beyond, Err(Error::Corrupt { .. })), "{beyond:?}");
        let large = blobs.get_range(&key, 0..BLOB_READ_BYTES_MAX + 1).await;
        assert!(matches!(large, Err(Error::Limit { .. })), "{large:?}");
        assert_eq!(keys(&blobs, org, run).await, [(key.clone(), 10)]);
        blobs.delete(&key).await.expect("deleted");
        blobs.delete(&key).await.expect("deleted again");
        assert_eq!(blobs.get(&key).await.expect("read"), None);
    }
}

#[tokio::test]
async fn objects_of_one_run_are_removed_and_no_others() {
    let (_kept, all) = all();
    for blobs in all {
        let ((org, one), (_, two)) = (run(), run());
        for fence in 1..=3 {
            blobs.put(&BlobKey::run_changes(org, one, fence), Bytes::from_static(b"x")).await.expect("stored");
        }
        let kept = BlobKey::run_changes(org, two, 1);
        blobs.put(&kept, Bytes::from_static(b"y")).await.expect("stored");
        assert_eq!(blobs.delete_of_run(org, one).await.expect("deleted"), 3);
        assert_eq!(keys(&blobs, org, one).await, []);
        assert_eq!(keys(&blobs, org, two).await, [(kept, 1)]);
    }
}

#[tokio::test]
async fn a_stream_goes_through_piece_by_piece() {
    let (_kept, all) = all();
    for blobs in all {
        let (org, run) = run();
        let key = BlobKey::run_changes(org, run, 1);
        // Pieces of odd sizes, some larger than a part.
        let sizes = [1usize, 0, 3_000_000, 70_001, 1 << 20, 13];
        let pieces: Vec<Bytes> = sizes.iter().zip(1u8..).map(|(size, n)| Bytes::from(vec![n; *size])).collect();
        let whole = pieces.concat();
        let source = stream::iter(pieces.into_iter().map(Ok::<_, io::Error>));
        let size = blobs.put_stream(&key, source, whole.len() as u64).await.expect("stored");
        assert_eq!(size, whole.len() as u64);
        let stored = blobs.get_stream(&key).await.expect("read").expect("there");
        assert_eq!(stored.size, size);
        let read: Vec<Bytes> = stored.pieces.try_collect().await.expect("read");
        assert!(read.concat() == whole);
    }
}

#[tokio::test]
async fn a_stream_that_fails_or_is_too_long_leaves_nothing() {
    let ((folder, server), all) = all();
    for blobs in all {
        let (org, run) = run();
        let key = BlobKey::run_changes(org, run, 1);
        let piece = || Ok::<_, io::Error>(Bytes::from(vec![1; 2_000_000]));
        let broken = stream::iter([piece(), Err(io::Error::other("the agent vanished"))]);
        let failed = blobs.put_stream(&key, broken, u64::MAX).await;
        assert!(
            matches!(&failed, Err(PutStreamError::Source(cause)) if cause.to_string().contains("vanished")),
            "{failed:?}"
        );
        let long = stream::iter([piece(), piece()]);
        let failed = blobs.put_stream(&key, long, 3_999_999).await;
        assert!(matches!(failed, Err(PutStreamError::Store(Error::Limit { given: 4_000_000, .. }))), "{failed:?}");
        assert_eq!(blobs.get(&key).await.expect("read"), None);
        assert_eq!(keys(&blobs, org, run).await, []);
    }
    assert_eq!(files_under(folder.path()), 0, "no part of a file is left");
    assert_eq!(server.half_done(), Vec::<String>::new());
}

fn files_under(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| if path.is_dir() { files_under(&path) } else { 1 })
        .sum()
}

/// A piece that knows how many of its kind are alive.
struct Counted(Vec<u8>, Arc<AtomicU64>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_is_not_gathered_in_memory() {
    let (_kept, [local, _, bucket]) = all();
    // Of a bucket, a part is what comes at once.
    for (blobs, piece_bytes_max) in [(local, 1 << 20), (bucket, 5 << 20)] {
        goes_through_in_pieces(&blobs, piece_bytes_max).await;
    }
}

async fn goes_through_in_pieces(blobs: &Blobs, piece_bytes_max: usize) {
    let (org, run) = run();
    let key = BlobKey::run_changes(org, run, 1);
    let (alive, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let source = {
        let (alive, most) = (alive.clone(), most.clone());
        stream::iter(0..400u32).map(move |_| {
            let now = alive.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            Ok::<_, io::Error>(Bytes::from_owner(Counted(vec![7; 100_000], alive.clone())))
        })
    };
    let size = blobs.put_stream(&key, source, u64::MAX).await.expect("stored");
    assert_eq!(size, 40_000_000);
    assert!(most.load(Ordering::SeqCst) <= 2, "each piece is copied and let go");
    let mut stored = blobs.get_stream(&key).await.expect("read").expect("there");
    let (mut read, mut largest) = (0, 0);
    while let Some(piece) = stored.pieces.try_next().await.expect("read") {
        read += piece.len();
        largest = largest.max(piece.len());
    }
    assert_eq!(read, 40_000_000);
    assert!(largest <= piece_bytes_max, "{largest} bytes at once");
}
