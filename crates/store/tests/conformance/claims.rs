//! Leases under contention: one winner, and nothing under an old fence.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use holm_domain::{
    RunId, UnixMicros,
    lease::{Claimant, grant},
    log::HEAD_BYTES,
    run::{EventKind, Outcome, Run},
};
use holm_store::{Error, EventAppended, LogAppended, Renewal, Store};

use crate::support::{Fixture, Tenant, batch, cases, claimant, config, entry, read, refused, save};

cases!(
    two_claimers_never_both_win,
    many_claimers_empty_a_queue_once,
    appends_under_an_old_fence_change_nothing,
    appends_race_with_the_end_of_their_lease,
    renewals_are_saved_together_and_each_by_itself,
    renewals_of_many_at_once_neither_block_nor_overtake_each_other,
);

/// Claims `run` as it was read; whether this claim won.
async fn claim(store: &Store, run: &Run) -> bool {
    let decision = grant::claim(run, claimant(), UnixMicros(2_000), &config()).expect("claimable");
    match save(store, &decision).await {
        Ok(_) => true,
        Err(Error::Conflict { what: "run" }) => false,
        Err(other) => panic!("{other}"),
    }
}

async fn two_claimers_never_both_win(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let mut run = tenant.queued().await;
    for round in 1..=15u64 {
        let racing = (0..8usize).map(|n| {
            let (store, run) = (stores[n % 2].clone(), run.clone());
            tokio::spawn(async move { claim(&store, &run).await })
        });
        let mut wins = 0;
        for task in racing.collect::<Vec<_>>() {
            wins += u32::from(task.await.expect("no panic"));
        }
        assert_eq!(wins, 1, "round {round}");
        let won = tenant.store.run_get(tenant.org, run.id).await.expect("read").expect("there");
        assert_eq!((won.fence, won.version), (round, run.version + 1));
        let expired = grant::expire(&won, UnixMicros(i64::MAX), &config()).expect("expired");
        tenant.save(&expired).await.expect("saved");
        run = expired.run;
    }
    let events = tenant.store.event_page(tenant.org, run.id, 0, 1_000).await.expect("a page");
    let fences: Vec<u64> = events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::Claimed { fence, .. } => Some(fence),
            _ => None,
        })
        .collect();
    assert_eq!(fences, (1..=15).collect::<Vec<_>>(), "each lease is told once, with a fence of its own");
}

async fn many_claimers_empty_a_queue_once(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let mut expected = Vec::new();
    for _ in 0..24 {
        expected.push(tenant.queued().await.id);
    }
    let racing = (0..6usize).map(|n| {
        let (store, org) = (stores[n % 2].clone(), tenant.org);
        tokio::spawn(async move {
            let mut won = Vec::new();
            for _ in 0..1_000 {
                let queue = read(store.run_queue(org, None, 4).await.expect("a queue"));
                if queue.is_empty() {
                    return won;
                }
                for run in &queue {
                    if claim(&store, run).await {
                        won.push(run.id);
                    }
                }
            }
            panic!("the queue does not become empty");
        })
    });
    let mut wins: BTreeMap<RunId, u32> = BTreeMap::new();
    for task in racing.collect::<Vec<_>>() {
        for run in task.await.expect("no panic") {
            *wins.entry(run).or_default() += 1;
        }
    }
    assert_eq!(wins, expected.into_iter().map(|run| (run, 1)).collect(), "each run was won once");
}

async fn appends_under_an_old_fence_change_nothing(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await;
    let store = &tenant.store;
    let told = |fence| store.event_append(tenant.org, run.id, fence, 1, &[], UnixMicros(5));
    let logged = |fence, first| store.log_append(tenant.org, run.id, fence, first, first, batch(first, 1, 10));
    assert_eq!(
        logged(1, 1).await.expect("answered"),
        LogAppended::Stored { next: 2, unsealed_bytes: unsealed(&fixture, HEAD_BYTES as u64 + 12 + 10) }
    );
    for stale in [0, 2, u64::MAX] {
        assert_eq!(told(stale).await.expect("answered"), EventAppended::StaleFence);
        assert_eq!(logged(stale, 2).await.expect("answered"), LogAppended::StaleFence);
        assert_eq!(logged(stale, 1).await.expect("answered"), LogAppended::StaleFence, "not even a duplicate");
    }
    let expired = grant::expire(&run, UnixMicros(i64::MAX), &config()).expect("expired");
    tenant.save(&expired).await.expect("saved");
    for stale in [0, 1, 2] {
        assert_eq!(told(stale).await.expect("answered"), EventAppended::StaleFence, "nobody holds a lease");
        assert_eq!(logged(stale, 2).await.expect("answered"), LogAppended::StaleFence);
    }
    let anew = grant::claim(&expired.run, claimant(), UnixMicros(9_000), &config()).expect("claimable");
    let saved = tenant.save(&anew).await.expect("claimed");
    assert_eq!(saved.next_log_seq, 2, "the log goes on where it was");
    assert_eq!(logged(1, 2).await.expect("answered"), LogAppended::StaleFence);
    assert!(matches!(logged(2, 2).await.expect("answered"), LogAppended::Stored { next: 3, .. }));
    assert_eq!(tenant.log(run.id).await, [entry(1, 10), entry(2, 10)]);
}

/// Waits until something is so; a minute at most.
async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it does not come about");
        tokio::task::yield_now().await;
    }
}

/// In memory nothing waits to be sealed.
fn unsealed(fixture: &Fixture, bytes: u64) -> u64 {
    if fixture.engine == crate::support::Engine::Memory { 0 } else { bytes }
}

/// Appends under one fence until it is told that the fence is stale; what was acknowledged: events, log entries.
async fn append_until_stale(
    tenant: Tenant,
    run: RunId,
    fence: u64,
    mut next: u64,
    taken: Arc<AtomicBool>,
) -> (u64, u64) {
    let (mut events, mut entries) = (0, 0);
    for source in 1..1_000u64 {
        // Memory is so fast that the other side would never get ahead of it.
        if source > 200 {
            until(|| std::future::ready(taken.load(Ordering::SeqCst))).await;
        }
        let ended = taken.load(Ordering::SeqCst);
        let kinds = [refused(format!("fence {fence}"))];
        let told = tenant.store.event_append(tenant.org, run, fence, source, &kinds, UnixMicros(5)).await;
        let logged = tenant.store.log_append(tenant.org, run, fence, next, next, batch(next, 1, 8)).await;
        let (told, logged) = (told.expect("answered"), logged.expect("answered"));
        if ended {
            assert_eq!((told, logged), (EventAppended::StaleFence, LogAppended::StaleFence), "after the save returned");
        }
        if told != EventAppended::StaleFence {
            events += 1;
        }
        match logged {
            LogAppended::Stored { next: following, .. } => {
                (next, entries) = (following, entries + 1);
            }
            LogAppended::StaleFence => return (events, entries),
            other => panic!("{other:?}"),
        }
    }
    panic!("the fence never became stale");
}

async fn appends_race_with_the_end_of_their_lease(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let second = Tenant { store: fixture.second_server().await, ..tenant.clone() };
    let mut run = tenant.queued().await;
    let (mut events, mut entries) = (BTreeMap::new(), 0);
    for fence in 1..=10u64 {
        let claimed = grant::claim(&run, claimant(), UnixMicros(2_000), &config()).expect("claimable");
        let next = tenant.save(&claimed).await.expect("claimed").next_log_seq;
        assert_eq!(next, entries + 1);
        let taken = Arc::new(AtomicBool::new(false));
        let appending = tokio::spawn(append_until_stale(second.clone(), run.id, fence, next, taken.clone()));
        // Something is appended before the lease is taken away, so that both happen in every round.
        let head = || tenant.store.log_head(tenant.org, run.id);
        until(|| async { head().await.expect("read") > next + fence }).await;
        let expired = grant::expire(&claimed.run, UnixMicros(i64::MAX), &config()).expect("expired");
        tenant.save(&expired).await.expect("saved");
        taken.store(true, Ordering::SeqCst);
        let (told, logged) = appending.await.expect("no panic");
        assert!(logged > fence);
        events.insert(format!("fence {fence}"), told);
        entries += logged;
        run = expired.run;
    }
    let log = tenant.log(run.id).await;
    assert_eq!(log, (1..=entries).map(|seq| entry(seq, 8)).collect::<Vec<_>>(), "what was acknowledged, and no more");
    check_events(&tenant, run.id, &events).await;
}

/// Every acknowledged event is there, under its own lease: after its claim and before its expiry.
async fn check_events(tenant: &Tenant, run: RunId, acknowledged: &BTreeMap<String, u64>) {
    let (mut after, mut holder, mut counts, mut next) = (0, 0, BTreeMap::new(), 1);
    loop {
        let page = tenant.store.event_page(tenant.org, run, after, 7).await.expect("a page");
        let Some(last) = page.last() else { break };
        after = last.seq;
        for event in page {
            assert_eq!(event.seq, next, "without gap");
            next += 1;
            match event.kind {
                EventKind::Claimed { fence, .. } => holder = fence,
                EventKind::LeaseExpired { .. } => holder = 0,
                EventKind::EgressRefused { host, .. } => {
                    assert_eq!(host, format!("fence {holder}"), "told under the lease of then");
                    *counts.entry(host).or_insert(0) += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(&counts, acknowledged);
}

fn renewal(run: &Run, at: i64) -> Renewal {
    let lease = run.lease.expect("leased");
    let by = Claimant { agent: lease.agent, instance: lease.instance };
    let renewed = grant::renew(run, by, (run.fence, None), UnixMicros(at), &config()).expect("held").run;
    Renewal { expect_version: run.version, deadline: renewed.deadline(&config()), run: renewed }
}

async fn renewals_are_saved_together_and_each_by_itself(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &tenant.store;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(tenant.claimed().await);
    }
    let renewals: Vec<Renewal> = runs.iter().rev().map(|run| renewal(run, 10_000)).collect();
    let gone = grant::expire(&runs[1], UnixMicros(i64::MAX), &config()).expect("expired");
    tenant.save(&gone).await.expect("saved");
    let claimed_anew = grant::claim(&gone.run, claimant(), UnixMicros(9), &config()).expect("claimable");
    tenant.save(&claimed_anew).await.expect("claimed");
    let agent = runs[2].lease.expect("leased").agent;
    let lost = Outcome::lost("it is gone");
    let ended = grant::finish(&runs[2], agent, 1, lost.into(), UnixMicros(9), &config()).expect("taken").expect("new");
    tenant.save(&ended).await.expect("saved");
    store.run_delete(tenant.org, ended.run.id, ended.run.version, UnixMicros(9)).await.expect("deleted");
    assert_eq!(store.leases_renew(&renewals).await.expect("answered"), [true, true, false, false, true]);
    for (index, run) in runs.iter().enumerate() {
        let stored = store.run_get(tenant.org, run.id).await.expect("read");
        match index {
            1 => assert_eq!(stored.expect("there").fence, 2, "the newer lease stands"),
            2 => assert_eq!(stored, None),
            _ => assert_eq!(stored.as_ref(), Some(&renewals[4 - index].run), "{index}"),
        }
    }
    let due = store.runs_due(UnixMicros(i64::MAX), None, 10_000).await.expect("runs");
    let places = due.iter().filter(|due| due.run.as_ref().is_ok_and(|run| run.id == runs[0].id));
    let noted: Vec<_> = places.map(|due| Some(due.place.at())).collect();
    assert_eq!(noted, [renewals[4].deadline], "its deadline is noted anew");
    assert_eq!(store.leases_renew(&renewals).await.expect("answered"), [false; 5], "each once");
    assert_eq!(tenant.event_seqs(runs[0].id).await, [1, 2], "nothing is told of it");
    assert_eq!(store.leases_renew(&[]).await.expect("answered"), [false; 0]);
    let no_lease = Renewal { expect_version: gone.run.version - 1, run: gone.run, deadline: None };
    assert!(matches!(store.leases_renew(&[no_lease]).await, Err(Error::Invalid { .. })));
}

async fn renewals_of_many_at_once_neither_block_nor_overtake_each_other(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(tenant.claimed().await.id);
    }
    let racing = (0..4usize).map(|n| {
        let (store, org, mut ids) = (stores[n % 2].clone(), tenant.org, ids.clone());
        if n >= 2 {
            ids.reverse();
        }
        tokio::spawn(async move {
            let mut won = 0;
            for round in 0..10 {
                let mut renewals = Vec::new();
                for id in &ids {
                    let run = store.run_get(org, *id).await.expect("read").expect("there");
                    renewals.push(renewal(&run, 10_000 + round));
                }
                won += store.leases_renew(&renewals).await.expect("no deadlock").into_iter().filter(|won| *won).count();
            }
            won
        })
    });
    let mut won = 0;
    for task in racing.collect::<Vec<_>>() {
        won += task.await.expect("no panic");
    }
    let mut versions = 0;
    for id in ids {
        let run = tenant.store.run_get(tenant.org, id).await.expect("read").expect("there");
        versions += run.version;
    }
    let claimed = tenant.claimed().await.version;
    assert_eq!(versions, won as u64 + 20 * claimed, "each that won is a version of its own");
}
