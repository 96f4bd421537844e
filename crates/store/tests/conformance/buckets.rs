//! A bucket of S3: what goes wrong with it is told, each by its own words, and leaves nothing half-done.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use holm_store::{BlobKey, BlobPlace, Blobs, Error, PutStreamError, S3Keys, Store};

use crate::{
    blobs::{keys, run},
    s3::{Fault, KEY_ID, S3Server, SECRET},
    support::{Engine, Fixture, Tenant, batch, on},
};

/// A stream of three parts and a bit.
const LONG: usize = 16 * 1024 * 1024;

pub fn blobs_of(server: &S3Server) -> Blobs {
    blobs_at(&server.place(), SECRET)
}

fn blobs_at(place: &str, secret: &str) -> Blobs {
    let BlobPlace::S3(place) = place.parse().expect("a place") else { panic!("{place} is no bucket") };
    Blobs::s3(&place, S3Keys::given(KEY_ID, secret, None).expect("credentials")).expect("a bucket")
}

fn long() -> Bytes {
    let mut state = 1u64;
    let mut bytes = vec![0; LONG];
    bytes.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    });
    Bytes::from(bytes)
}

/// What `whole` yields in pieces, as a client sends it.
fn pieces(whole: &Bytes) -> impl futures_util::Stream<Item = io::Result<Bytes>> + use<> {
    let whole = whole.clone();
    stream::iter((0..whole.len()).step_by(100_000)).map(move |at| Ok(whole.slice(at..whole.len().min(at + 100_000))))
}

async fn whole(blobs: &Blobs, key: &BlobKey) -> Bytes {
    let found = blobs.get_stream(key).await.expect("read").expect("there");
    let read: Vec<Bytes> = found.pieces.try_collect().await.expect("read");
    Bytes::from(read.concat())
}

/// The words of an error of a store that does not answer; any other error fails the test.
fn unavailable<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(error @ Error::Unavailable { .. }) => {
            let words = error.to_string();
            assert!(!words.contains("hunter2") && !words.contains(SECRET) && !words.contains(KEY_ID), "{words}");
            words
        }
        other => panic!("{other:?}"),
    }
}

fn stream_unavailable(result: Result<u64, PutStreamError>) -> String {
    match result {
        Err(PutStreamError::Store(error)) => unavailable(Err::<u64, _>(error)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_longer_than_a_part_goes_up_in_parts_and_what_is_not_does_not() {
    let (server, whole_of) = (S3Server::start(), long());
    let blobs = blobs_of(&server);
    let (org, run) = run();
    let key = BlobKey::run_changes(org, run, 1);
    assert_eq!(blobs.put_stream(&key, pieces(&whole_of), u64::MAX).await.expect("stored"), LONG as u64);
    assert_eq!(server.asked("PUT", "partNumber="), 4);
    assert_eq!(server.asked("POST", "uploadId="), 1);
    assert!(whole(&blobs, &key).await == whole_of, "it is another one");
    assert_eq!(&blobs.get_range(&key, 6_000_000..6_000_100).await.expect("read"), &whole_of[6_000_000..6_000_100]);
    let short = whole_of.slice(..1_000_000);
    blobs.put_stream(&key, pieces(&short), u64::MAX).await.expect("stored in its place");
    assert_eq!(
        (server.asked("PUT", "partNumber="), server.asked("POST", "uploads")),
        (4, 1),
        "no part of the short one"
    );
    assert!(whole(&blobs, &key).await == short, "it is another one");
    let nothing = stream::iter(Vec::<io::Result<Bytes>>::new());
    assert_eq!(blobs.put_stream(&key, nothing, 0).await.expect("stored"), 0);
    assert_eq!(blobs.get(&key).await.expect("read").expect("there"), Bytes::new());
    assert_eq!(server.half_done(), Vec::<String>::new());
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let (server, whole_of) = (S3Server::start(), long());
    let blobs = blobs_of(&server);
    let (org, run) = run();
    let key = BlobKey::run_changes(org, run, 1);
    for (method, part) in [("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId=")] {
        server.has(Fault::Answer(503, "SlowDown"), method, part, 2);
    }
    server.has(Fault::Break, "PUT", "partNumber=1", 1);
    server.has(Fault::OtherDigest, "PUT", "partNumber=3", 1);
    blobs.put_stream(&key, pieces(&whole_of), u64::MAX).await.expect("stored");
    server.has(Fault::CutShort, "GET", "changes", 2);
    server.has(Fault::Answer(500, "InternalError"), "HEAD", "changes", 1);
    assert!(whole(&blobs, &key).await == whole_of, "it is another one");
    server.has(Fault::CutShort, "GET", "changes", 1);
    assert_eq!(&blobs.get_range(&key, 10..5_000).await.expect("read"), &whole_of[10..5_000]);
    server.has(Fault::BreakAfter, "PUT", "changes", 1);
    blobs.put(&key, Bytes::from_static(b"again")).await.expect("stored");
    assert_eq!(keys(&blobs, org, run).await, [(key, 5)]);
    assert_eq!(server.half_done(), Vec::<String>::new());
}

#[tokio::test]
async fn what_lasts_is_told_and_leaves_nothing_half_done() {
    let (server, whole_of) = (S3Server::start(), long());
    let blobs = blobs_of(&server);
    let (org, run) = run();
    let key = BlobKey::run_changes(org, run, 1);
    for (fault, words) in [
        (Fault::Answer(503, "SlowDown"), "the store says SlowDown: as a test wants it"),
        (Fault::Answer(403, "AccessDenied"), "the credentials are refused (AccessDenied: as a test wants it)"),
        (Fault::Bare(403), "the credentials are refused (Server returned non-2xx status code: 403 Forbidden)"),
        (Fault::OtherDigest, "stored other bytes than were sent"),
        (Fault::Break, "connection"),
    ] {
        // The second part of it, and the whole of a short one.
        server.has(fault, "PUT", "partNumber=2", usize::MAX);
        let told = stream_unavailable(blobs.put_stream(&key, pieces(&whole_of), u64::MAX).await);
        assert!(
            told.contains("write a blob") && told.to_lowercase().contains(&words.to_lowercase()),
            "{fault:?}: {told}"
        );
        server.has(fault, "PUT", "changes", usize::MAX);
        let told = unavailable(blobs.put(&key, Bytes::from_static(b"short")).await);
        assert!(
            told.contains("store a blob") && told.to_lowercase().contains(&words.to_lowercase()),
            "{fault:?}: {told}"
        );
        server.heals();
        assert_eq!(keys(&blobs, org, run).await, [], "{fault:?}");
        assert_eq!(server.half_done(), Vec::<String>::new(), "{fault:?}");
    }
}

#[tokio::test]
async fn an_upload_whose_sender_goes_away_is_given_up() {
    let (server, whole_of) = (S3Server::start(), long());
    let blobs = blobs_of(&server);
    let (org, run) = run();
    let key = BlobKey::run_changes(org, run, 1);
    let some = stream::iter(vec![Ok::<_, io::Error>(whole_of.slice(..12_000_000))]).chain(stream::pending());
    let sending = blobs.put_stream(&key, some, u64::MAX);
    assert!(tokio::time::timeout(Duration::from_secs(2), sending).await.is_err(), "it waits for more");
    while server.asked("DELETE", "uploadId=") == 0 || !server.half_done().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(keys(&blobs, org, run).await, []);
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_said_not_to_within_a_time() {
    let server = S3Server::start();
    let blobs = blobs_of(&server);
    let (org, run) = run();
    let key = BlobKey::run_changes(org, run, 1);
    server.has(Fault::Silence, "", "", usize::MAX);
    let begun = std::time::Instant::now();
    let (put, read) = tokio::join!(blobs.put(&key, Bytes::from_static(b"x")), blobs.get_range(&key, 0..1));
    let (put, read) = (unavailable(put), unavailable(read));
    assert!(put.contains("timed out") || put.contains("no answer within"), "{put}");
    assert!(read.contains("read a part of a blob"), "{read}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_store_that_is_away_is_told_by_its_name_and_a_bucket_that_is_gone_is_no_missing_object() {
    let mut server = S3Server::start();
    let blobs = blobs_of(&server);
    let (org, run) = run();
    let key = BlobKey::run_changes(org, run, 1);
    blobs.prove().await.expect("it works");
    blobs.put(&key, Bytes::from_static(b"kept")).await.expect("stored");
    server.has(Fault::Answer(404, "NoSuchBucket"), "", "", usize::MAX);
    for told in [
        unavailable(blobs.get(&key).await),
        unavailable(blobs.get_range(&key, 0..1).await),
        unavailable(blobs.put(&key, Bytes::new()).await),
        unavailable(blobs.delete(&key).await),
        unavailable(blobs.delete_of_run(org, run).await),
    ] {
        assert!(told.contains("there is no such bucket"), "{told}");
    }
    server.heals();
    let gone = blobs_at(&server.place().replace("//holm", "//another"), SECRET);
    let unreached = gone.reach().await.expect_err("no bucket");
    assert_eq!(unreached.way_out, "make the bucket, or correct its name");
    let refused = blobs_at(&server.place(), "another").reach().await.expect_err("refused");
    assert!(
        refused.problem.contains("SignatureDoesNotMatch") && refused.way_out.contains("AWS_ACCESS_KEY_ID"),
        "{refused:?}"
    );
    for (fault, words, way_out) in [
        (Fault::Answer(403, "RequestTimeTooSkewed"), "the clocks of this machine and of the store differ", "NTP"),
        (Fault::Answer(403, "AccessDenied"), "the credentials are refused", "let these credentials list, read, write"),
        (Fault::Answer(400, "AuthorizationHeaderMalformed"), "AuthorizationHeaderMalformed", "region=NAME"),
        (Fault::Bare(301), "redirect", "region=NAME"),
    ] {
        server.has(fault, "GET", "list-type", 1);
        let unreached = blobs.reach().await.expect_err("a fault");
        assert!(unreached.problem.contains(words) && unreached.way_out.contains(way_out), "{unreached:?}");
    }
    server.stop();
    let unreached = blobs.reach().await.expect_err("it is away");
    assert!(unreached.problem.contains("refused") && unreached.way_out.contains("--blobs"), "{unreached:?}");
    server.start_again();
    assert_eq!(blobs.get(&key).await.expect("read").as_deref(), Some(&b"kept"[..]));
}

/// The log of a run in a bucket, as two servers see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_a_bucket_is_read_by_another_server_and_what_is_missing_of_it_is_told() {
    on(Engine::Sqlite, a_log_in_a_bucket).await;
}

async fn a_log_in_a_bucket(fixture: Fixture) {
    let server = S3Server::start();
    let open = || async { Store::open(&fixture.url, blobs_of(&server)).await.expect("the store opens") };
    let (one, other) = (open().await, open().await);
    let tenant = Tenant { store: one.clone(), ..fixture.tenant().await };
    let run = tenant.claimed().await;
    let (count, length) = (200, 50_000);
    for first in (1..=count).step_by(20) {
        let bytes = batch(first, 20, length);
        one.log_append(tenant.org, run.id, run.fence, first, first + 19, bytes).await.expect("appended");
    }
    one.log_seal(tenant.org, run.id, 1).await.expect("sealed");
    assert!(server.asked("PUT", "/logs/") > 0, "nothing is in the bucket");
    let seen = Tenant { store: other, ..tenant.clone() };
    assert_eq!(seen.log(run.id).await, tenant.log(run.id).await);
    assert_eq!(seen.log(run.id).await.len() as u64, count);
    server.has(Fault::Answer(503, "SlowDown"), "GET", "/logs/", usize::MAX);
    let busy = seen.store.log_read(tenant.org, run.id, 0, 100_000).await;
    assert!(unavailable(busy).contains("SlowDown"));
    server.heals();
    assert!(fixture.blobs.list_of_run(tenant.org, run.id).next().await.is_none(), "nothing is on the disk");
    assert!(seen.store.blobs().delete_of_log(tenant.org, run.id).await.expect("deleted") > 0);
    let missing = seen.store.log_read(tenant.org, run.id, 0, 100_000).await;
    assert!(missing.as_ref().is_err_and(Error::is_damaged_log), "{missing:?}");
}
