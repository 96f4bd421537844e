//! Sealing moves bytes and never changes what is read.

use holm_domain::{
    RunId, UnixMicros,
    lease::grant,
    run::{ExitStatus, Outcome},
};
use holm_store::{Error, LOG_INLINE_BYTES, LOG_SEGMENT_BYTES, LogAppended, Sealable, Sealed};

use futures_util::TryStreamExt;

use crate::support::{Engine, Fixture, Tenant, batch, batch_at, cases, config, entries_of, entry, uuid};

cases!(
    a_sealed_log_reads_as_before,
    a_read_within_a_sealed_segment_fetches_little,
    what_is_sealed_takes_less_room,
    a_time_is_found_in_rows_and_in_blobs,
    the_end_is_read_backwards,
    sealing_races_with_appends_reads_and_itself,
    what_is_worth_sealing_is_found_from_the_store,
);

async fn append(tenant: &Tenant, run: RunId, first: u64, count: u64, length: usize) {
    let bytes = batch(first, count, length);
    let last = first + count - 1;
    let appended = tenant.store.log_append(tenant.org, run, 1, first, last, bytes).await.expect("answered");
    assert!(matches!(appended, LogAppended::Stored { .. }), "{appended:?}");
}

async fn a_sealed_log_reads_as_before(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    // Small rows, a blob among them, and more than one sealed blob may hold.
    let mut next = 1;
    for n in 0..80u64 {
        let (count, length) = if n == 20 { (6, 60_000) } else { (2, 50_000) };
        append(&tenant, run, next, count, length).await;
        next += count;
    }
    let before = tenant.log(run).await;
    assert_eq!(before.len() as u64, next - 1);
    let none = tenant.store.log_seal(tenant.org, run, usize::MAX).await.expect("sealed");
    assert_eq!(none, Sealed::default(), "there is less than that");
    let sealed = tenant.store.log_seal(tenant.org, run, 1).await.expect("sealed");
    if fixture.engine != Engine::Memory {
        assert!(sealed.bytes > LOG_SEGMENT_BYTES as u64 && sealed.blobs >= 3, "{sealed:?}");
        assert!(sealed.blobs < 10, "many rows become few blobs: {sealed:?}");
    }
    assert!(tenant.log(run).await == before);
    assert_eq!(tenant.store.log_seal(tenant.org, run, 1).await.expect("sealed"), Sealed::default());
    append(&tenant, run, next, 1, 10).await;
    let after = tenant.store.log_read(tenant.org, run, next - 1, 1_000).await.expect("a read");
    assert_eq!(entries_of(&after, next - 1), [entry(next, 10)]);
    let unknown = tenant.store.log_seal(tenant.org, RunId::from_uuid(uuid()), 1).await;
    assert!(fixture.engine == Engine::Memory || matches!(unknown, Err(Error::NotFound { what: "run" })), "{unknown:?}");
}

async fn a_read_within_a_sealed_segment_fetches_little(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    for n in 0..50u64 {
        append(&tenant, run, n * 10 + 1, 10, 3_000).await;
    }
    tenant.store.log_seal(tenant.org, run, 1).await.expect("sealed");
    for after in (0..500u64).step_by(7) {
        let segments = tenant.store.log_read(tenant.org, run, after, 1).await.expect("a read");
        let held: usize = segments.iter().map(|segment| segment.bytes.len()).sum();
        assert!(held <= 100_000, "{held} bytes for one entry of 3,000");
        let entries = entries_of(&segments, after);
        assert_eq!(entries.first(), Some(&entry(after + 1, 3_000)));
    }
    assert_eq!(tenant.log(run).await.len(), 500);
}

async fn what_is_sealed_takes_less_room(fixture: Fixture) {
    if fixture.engine == Engine::Memory {
        return;
    }
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    // Small appends that are sealed, and one that is large enough for a blob at once and does not shrink.
    for seq in 1..=100u64 {
        append(&tenant, run, seq, 1, 3_000).await;
    }
    append(&tenant, run, 101, 10, 60_000).await;
    tenant.store.log_seal(tenant.org, run, 1).await.expect("sealed");
    let objects: Vec<_> = tenant.store.blobs().list_of_run(tenant.org, run).try_collect().await.expect("listed");
    let stored: u64 = objects.iter().map(|(_, size)| size).sum();
    assert_eq!(objects.len(), 2);
    assert!(stored < 630_000, "{stored} bytes for 600,000, and 300,000 that repeat themselves");
    let expected = (1..=110).map(|seq| entry(seq, if seq > 100 { 60_000 } else { 3_000 }));
    assert!(expected.eq(tenant.log(run).await));
}

async fn a_time_is_found_in_rows_and_in_blobs(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    // The clock of the host went back by 500 after entry 200.
    let at = |seq: u64| i64::try_from(if seq > 200 { seq * 10 - 500 } else { seq * 10 }).expect("small");
    for first in (1..400u64).step_by(10) {
        let bytes = batch_at(first, 10, 3_000, at);
        tenant.store.log_append(tenant.org, run, 1, first, first + 9, bytes).await.expect("appended");
        if first == 301 {
            tenant.store.log_seal(tenant.org, run, 1).await.expect("sealed");
        }
    }
    for wanted in (0..3_600i64).step_by(35) {
        let first = (1..=400).find(|seq| at(*seq) >= wanted);
        let found = tenant.store.log_at(tenant.org, run, UnixMicros(wanted)).await.expect("read");
        assert_eq!(found.is_some(), first.is_some(), "{wanted}: {found:?} for {first:?}");
        let (Some(found), Some(first)) = (found, first) else { continue };
        assert!(found <= first && (first - found < 10 || found == 1), "{wanted}: {found} for {first}");
    }
    let other = fixture.tenant().await;
    assert_eq!(other.store.log_at(other.org, run, UnixMicros(0)).await.expect("read"), None);
}

async fn the_end_is_read_backwards(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    let back = |upto, bytes| tenant.store.log_read_back(tenant.org, run, upto, bytes);
    assert_eq!(back(10, 1_000).await.expect("a read"), []);
    for n in 0..60u64 {
        append(&tenant, run, n * 10 + 1, 10, if n == 20 { 60_000 } else { 3_000 }).await;
        if n == 50 {
            tenant.store.log_seal(tenant.org, run, 1).await.expect("sealed");
        }
    }
    for upto in (1..=600u64).step_by(13) {
        for bytes_max in [1, 100_000, 1 << 20] {
            let segments = back(upto, bytes_max).await.expect("a read");
            let held: usize = segments.iter().map(|segment| segment.bytes.len()).sum();
            assert!(held <= bytes_max + 650_000, "{held} bytes instead of about {bytes_max}");
            let (first, last) = (segments[0].first_seq, segments[segments.len() - 1].last_seq);
            assert!(first <= upto && last >= upto, "{first} to {last} for {upto}");
            let length = |seq: u64| if (201..=210).contains(&seq) { 60_000 } else { 3_000 };
            assert!((first..=last).map(|seq| entry(seq, length(seq))).eq(entries_of(&segments, first - 1)));
        }
    }
    let all = back(u64::MAX, 1).await.expect("a read");
    assert_eq!(all.last().map(|segment| segment.last_seq), Some(600));
}

async fn sealing_races_with_appends_reads_and_itself(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let run = tenant.claimed().await.id;
    let appending = {
        let tenant = Tenant { store: stores[0].clone(), ..tenant.clone() };
        tokio::spawn(async move {
            for n in 0..60u64 {
                append(&tenant, run, n * 3 + 1, 3, if n % 20 == 7 { 64_000 } else { 500 }).await;
            }
        })
    };
    let sealing = (0..2usize).map(|n| {
        let tenant = Tenant { store: stores[n].clone(), ..tenant.clone() };
        tokio::spawn(async move {
            let mut sealed = 0;
            while tenant.store.log_head(tenant.org, run).await.expect("read") < 181 {
                sealed += tenant.store.log_seal(tenant.org, run, 2_000).await.expect("sealed").bytes;
            }
            sealed
        })
    });
    let sealing: Vec<_> = sealing.collect();
    let length = |seq: u64| if (seq - 1) / 3 % 20 == 7 { 64_000 } else { 500 };
    let mut seen = 0u64;
    while seen < 180 {
        let segments = tenant.store.log_read(tenant.org, run, seen, 50_000).await.expect("a read");
        for data in entries_of(&segments, seen) {
            seen += 1;
            assert!(data == entry(seen, length(seen)), "entry {seen}");
        }
    }
    appending.await.expect("no panic");
    let mut sealed = 0;
    for task in sealing {
        sealed += task.await.expect("no panic");
    }
    sealed += tenant.store.log_seal(tenant.org, run, 1).await.expect("sealed").bytes;
    let whole: usize = (0..60u64).map(|n| batch(n * 3 + 1, 3, length(n * 3 + 1)).len()).sum();
    assert!(fixture.engine == Engine::Memory || sealed == whole as u64, "{sealed} of {whole} bytes, each once");
    let expected: Vec<Vec<u8>> = (1..=180).map(|seq| entry(seq, length(seq))).collect();
    assert!(tenant.log(run).await == expected);
}

async fn what_is_worth_sealing_is_found_from_the_store(fixture: Fixture) {
    if fixture.engine == Engine::Memory {
        return;
    }
    let tenant = fixture.tenant().await;
    let [idle, ended, full] = [tenant.claimed().await, tenant.claimed().await, tenant.claimed().await];
    append(&tenant, idle.id, 1, 3, 60_000).await;
    for n in 0..2u64 {
        append(&tenant, ended.id, n * 3 + 1, 3, 60_000).await;
    }
    for n in 0..24u64 {
        append(&tenant, full.id, n * 3 + 1, 3, 60_000).await;
    }
    let sealable = |store: holm_store::Store, after| async move { store.log_sealable(after, 10).await.expect("read") };
    let of = |run, bytes_min| Sealable { org: tenant.org, run, bytes_min };
    // Another server, which was told nothing, as after a crash.
    let other = fixture.second_server().await;
    assert_eq!(sealable(other.clone(), None).await, [of(full.id, LOG_SEGMENT_BYTES)]);
    let held = ended.lease.expect("leased");
    let outcome = Outcome::exited(ExitStatus::Code(0));
    let finished =
        grant::finish(&ended, held.agent, held.fence, outcome.into(), UnixMicros(9), &config()).expect("held");
    tenant.save(&finished.expect("finished")).await.expect("saved");
    let both = [of(ended.id, LOG_INLINE_BYTES), of(full.id, LOG_SEGMENT_BYTES)];
    assert_eq!(sealable(other.clone(), None).await, both);
    assert_eq!(sealable(other.clone(), Some(ended.id)).await, both[1..]);
    for found in both {
        other.log_seal(found.org, found.run, found.bytes_min).await.expect("sealed");
    }
    assert_eq!(sealable(other, None).await, [], "it comes to rest");
}
