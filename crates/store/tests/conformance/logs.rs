//! Logs: appended once, in order, read from anywhere.

use bytes::Bytes;
use holm_domain::{
    RunId,
    log::{BATCH_BYTES_MAX, HEAD_BYTES},
};
use holm_store::{Error, LOG_APPEND_BYTES_MAX, LOG_INLINE_BYTES, LogAppended};

use crate::support::{Fixture, Tenant, batch, cases, entries_of, entry, uuid};

cases!(
    appends_follow_one_another,
    an_overlap_is_cut_at_the_batch,
    an_append_is_stored_once_however_often_it_comes,
    large_appends_are_read_back,
    a_read_is_bounded_and_begins_anywhere,
    what_cannot_be_appended_is_refused,
);

async fn append(tenant: &Tenant, run: RunId, first: u64, last: u64, bytes: Bytes) -> LogAppended {
    tenant.store.log_append(tenant.org, run, 1, first, last, bytes).await.expect("answered")
}

fn next_of(appended: LogAppended) -> Option<u64> {
    match appended {
        LogAppended::Stored { next, .. } => Some(next),
        _ => None,
    }
}

async fn appends_follow_one_another(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    let store = &tenant.store;
    assert_eq!(store.log_head(tenant.org, run).await.expect("read"), 1);
    assert_eq!(append(&tenant, run, 2, 3, batch(2, 2, 10)).await, LogAppended::Gap { next: 1 });
    assert_eq!(next_of(append(&tenant, run, 1, 3, batch(1, 3, 10)).await), Some(4));
    assert_eq!(append(&tenant, run, 1, 3, batch(1, 3, 10)).await, LogAppended::Duplicate { next: 4 });
    assert_eq!(append(&tenant, run, 2, 2, batch(2, 1, 10)).await, LogAppended::Duplicate { next: 4 });
    assert_eq!(append(&tenant, run, 5, 5, batch(5, 1, 10)).await, LogAppended::Gap { next: 4 });
    assert_eq!(next_of(append(&tenant, run, 4, 4, batch(4, 1, 10)).await), Some(5));
    assert_eq!(store.log_head(tenant.org, run).await.expect("read"), 5);
    assert_eq!(tenant.log(run).await, (1..=4).map(|seq| entry(seq, 10)).collect::<Vec<_>>());
    let unknown = store.log_head(tenant.org, RunId::from_uuid(uuid())).await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "run" })), "{unknown:?}");
}

async fn an_overlap_is_cut_at_the_batch(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    append(&tenant, run, 1, 3, batch(1, 3, 10)).await;
    let joined = Bytes::from([batch(1, 3, 10), batch(4, 2, 10), batch(6, 1, 10)].concat());
    assert_eq!(next_of(append(&tenant, run, 1, 6, joined).await), Some(7), "the new batches are stored");
    // A batch that is only half stored is none that was sent before: nothing of it is taken.
    let crooked = batch(5, 4, 10);
    assert_eq!(append(&tenant, run, 5, 8, crooked).await, LogAppended::Gap { next: 7 });
    let rubbish = tenant.store.log_append(tenant.org, run, 1, 5, 8, Bytes::from_static(b"no batch")).await;
    assert!(matches!(rubbish, Err(Error::Invalid { .. })), "{rubbish:?}");
    assert_eq!(tenant.log(run).await, (1..=6).map(|seq| entry(seq, 10)).collect::<Vec<_>>());
}

async fn an_append_is_stored_once_however_often_it_comes(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let run = tenant.claimed().await.id;
    // Four uploaders send the same log, each cut in another way; every tenth batch is too large for a row.
    let length = |seq: u64| if seq.is_multiple_of(10) { 60_000 } else { 20 };
    let pieces: Vec<Bytes> = (0..40u64).map(|n| batch(n * 5 + 1, 5, length(n))).collect();
    let racing = (1..=4usize).map(|step| {
        let (pieces, tenant) = (pieces.clone(), Tenant { store: stores[step % 2].clone(), ..tenant.clone() });
        tokio::spawn(async move {
            let mut stored = 0;
            let mut at = 0;
            while at < pieces.len() {
                let end = (at + step).min(pieces.len());
                let bytes = Bytes::from(pieces[at..end].concat());
                match append(&tenant, run, at as u64 * 5 + 1, end as u64 * 5, bytes).await {
                    LogAppended::Stored { .. } => stored += 1,
                    LogAppended::Duplicate { .. } => {}
                    other => panic!("{other:?}"),
                }
                at = end;
            }
            stored
        })
    });
    let mut stored = 0;
    for task in racing.collect::<Vec<_>>() {
        stored += task.await.expect("no panic");
    }
    assert!((10..=40).contains(&stored), "{stored} appends for 40 batches");
    let expected: Vec<Vec<u8>> = (1..=200).map(|seq| entry(seq, length((seq - 1) / 5))).collect();
    assert!(tenant.log(run).await == expected, "each entry once and in order");
}

async fn large_appends_are_read_back(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    let exact = LOG_INLINE_BYTES / 4 - 12 - HEAD_BYTES;
    let sizes = [exact, 60_000, 65_000, exact, 10];
    let mut expected = Vec::new();
    for size in sizes {
        let first = expected.len() as u64 + 1;
        let bytes = Bytes::from((first..first + 4).map(|seq| batch(seq, 1, size)).collect::<Vec<_>>().concat());
        expected.extend((first..first + 4).map(|seq| entry(seq, size)));
        assert_eq!(next_of(append(&tenant, run, first, first + 3, bytes).await), Some(first + 4));
    }
    let most = (LOG_APPEND_BYTES_MAX / BATCH_BYTES_MAX - 1) as u64;
    let first = expected.len() as u64 + 1;
    let bytes: Vec<Bytes> = (0..most).map(|n| batch(first + n * 15, 15, 60_000)).collect();
    let last = first + most * 15 - 1;
    assert_eq!(next_of(append(&tenant, run, first, last, Bytes::from(bytes.concat())).await), Some(last + 1));
    expected.extend((first..=last).map(|seq| entry(seq, 60_000)));
    assert!(tenant.log(run).await == expected);
}

async fn a_read_is_bounded_and_begins_anywhere(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    for n in 0..30u64 {
        append(&tenant, run, n * 2 + 1, n * 2 + 2, batch(n * 2 + 1, 2, 1_000)).await;
    }
    let whole = batch(1, 2, 1_000).len();
    for after in 0..60u64 {
        for bytes_max in [0, 1, whole, 10_000, 1 << 20] {
            let segments = tenant.store.log_read(tenant.org, run, after, bytes_max).await.expect("a read");
            let held: usize = segments.iter().map(|segment| segment.bytes.len()).sum();
            let entries = entries_of(&segments, after);
            assert!(!entries.is_empty(), "at least one entry after {after}");
            assert!(held <= bytes_max.max(1) + whole, "{held} bytes instead of about {bytes_max}");
            let expected = (after + 1..).map(|seq| entry(seq, 1_000)).take(entries.len());
            assert!(expected.eq(entries), "after {after}");
        }
    }
    for after in [60, u64::MAX] {
        assert_eq!(tenant.store.log_read(tenant.org, run, after, 1_000).await.expect("a read"), []);
    }
}

async fn what_cannot_be_appended_is_refused(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    let append = |first, last, bytes| tenant.store.log_append(tenant.org, run, 1, first, last, bytes);
    let large = Bytes::from(vec![0; LOG_APPEND_BYTES_MAX + 1]);
    assert!(matches!(append(1, 1, large).await, Err(Error::Limit { .. })));
    for (first, last) in [(0, 1), (2, 1), (1, u64::MAX), (1, i64::MAX as u64)] {
        assert!(matches!(append(first, last, batch(1, 1, 1)).await, Err(Error::Invalid { .. })), "{first} to {last}");
    }
    assert!(matches!(append(1, 1, Bytes::new()).await, Err(Error::Invalid { .. })));
    let read = tenant.store.log_read(tenant.org, run, 0, usize::MAX).await;
    assert!(matches!(read, Err(Error::Limit { .. })), "{read:?}");
    let unknown = tenant.store.log_append(tenant.org, RunId::from_uuid(uuid()), 1, 1, 1, batch(1, 1, 1)).await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "run" })), "{unknown:?}");
    assert_eq!(tenant.log(run).await, Vec::<Vec<u8>>::new());
}
