//! Events: numbered without gap, stored once.

use std::collections::BTreeMap;

use holm_domain::{
    RunId, UnixMicros,
    lease::{Claimant, grant},
    run::{EventKind, Run},
};
use holm_store::{EVENTS_APPEND_MAX, Error, EventAppended, Store};

use crate::support::{Fixture, Tenant, cases, claimant, config, refused, save, uuid};

cases!(
    pages_go_on_after_a_number,
    a_repeated_event_is_stored_once,
    numbers_have_no_gap_and_no_double_under_contention,
    what_cannot_be_appended_is_refused,
);

async fn append(tenant: &Tenant, run: RunId, fence: u64, first: u64, hosts: &[&str]) -> EventAppended {
    let kinds: Vec<EventKind> = hosts.iter().map(|host| refused(*host)).collect();
    let appended = tenant.store.event_append(tenant.org, run, fence, first, &kinds, UnixMicros(6)).await;
    appended.expect("answered")
}

async fn hosts(tenant: &Tenant, run: RunId) -> Vec<String> {
    let events = tenant.store.event_page(tenant.org, run, 0, 10_000).await.expect("a page");
    let host = |kind| match kind {
        EventKind::EgressRefused { host, .. } => Some(host),
        _ => None,
    };
    events.into_iter().filter_map(|event| host(event.kind)).collect()
}

async fn pages_go_on_after_a_number(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await;
    assert_eq!(append(&tenant, run.id, 1, 1, &["a", "b", "c"]).await, EventAppended::Stored { last_seq: 5 });
    let page = |after, limit| tenant.store.event_page(tenant.org, run.id, after, limit);
    let two = page(2, 2).await.expect("a page");
    assert_eq!(
        two.iter().map(|event| (event.seq, event.at)).collect::<Vec<_>>(),
        [(3, UnixMicros(6)), (4, UnixMicros(6))]
    );
    assert_eq!(two[0].kind, refused("a"));
    assert_eq!(page(5, 10).await.expect("a page"), []);
    assert_eq!(page(u64::MAX, 10).await.expect("a page"), []);
    assert!(matches!(page(0, 0).await, Err(Error::Invalid { .. })));
    assert!(matches!(page(0, 10_001).await, Err(Error::Limit { .. })));
}

async fn a_repeated_event_is_stored_once(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await;
    append(&tenant, run.id, 1, 1, &["a", "b"]).await;
    assert_eq!(append(&tenant, run.id, 1, 1, &["a", "b"]).await, EventAppended::Stored { last_seq: 4 });
    assert_eq!(append(&tenant, run.id, 1, 2, &["b", "c"]).await, EventAppended::Stored { last_seq: 5 });
    assert_eq!(append(&tenant, run.id, 1, 3, &[]).await, EventAppended::Stored { last_seq: 5 });
    assert_eq!(hosts(&tenant, run.id).await, ["a", "b", "c"]);
    let expired = grant::expire(&run, UnixMicros(i64::MAX), &config()).expect("expired");
    tenant.save(&expired).await.expect("saved");
    let anew = grant::claim(&expired.run, claimant(), UnixMicros(9), &config()).expect("claimable");
    tenant.save(&anew).await.expect("claimed");
    append(&tenant, run.id, 2, 1, &["d"]).await;
    assert_eq!(hosts(&tenant, run.id).await, ["a", "b", "c", "d"], "another lease counts anew");
    assert_eq!(tenant.event_seqs(run.id).await, (1..=9).collect::<Vec<_>>());
}

/// Renews a lease some times, each time telling something, whoever else saves the run.
async fn renew(store: Store, run: Run, times: u32) {
    for _ in 0..times {
        for attempt in 0.. {
            let current = store.run_get(run.org, run.id).await.expect("read").expect("there");
            let lease = current.lease.expect("leased");
            let by = Claimant { agent: lease.agent, instance: lease.instance };
            let mut decision =
                grant::renew(&current, by, (lease.fence, None), UnixMicros(3_000), &config()).expect("held");
            decision.events.push(EventKind::Requeued);
            match save(&store, &decision).await {
                Ok(_) => break,
                Err(Error::Conflict { .. }) => assert!(attempt < 10_000, "somebody always wins"),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

async fn numbers_have_no_gap_and_no_double_under_contention(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let run = tenant.claimed().await;
    let id = run.id;
    let mut tasks = Vec::new();
    for store in &stores {
        tasks.push(tokio::spawn(renew(store.clone(), run.clone(), 10)));
    }
    // Each group of events is brought by three tasks at once, as an agent that repeats itself does.
    for n in 0..6usize {
        let tenant = Tenant { store: stores[n % 2].clone(), ..tenant.clone() };
        tasks.push(tokio::spawn(async move {
            for source in 0..10u64 {
                let group = u64::from(n >= 3) * 100 + source * 2 + 1;
                let (first, second) = (format!("{group}"), format!("{}", group + 1));
                append(&tenant, id, 1, group, &[&first, &second]).await;
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    // Queued and Claimed, twenty renewals, forty events of the agent.
    assert_eq!(tenant.event_seqs(run.id).await, (1..=62).collect::<Vec<_>>());
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for host in hosts(&tenant, run.id).await {
        *counts.entry(host).or_default() += 1;
    }
    let expected = (1..=20u64).chain(101..=120).map(|source| (source.to_string(), 1)).collect();
    assert_eq!(counts, expected);
}

async fn what_cannot_be_appended_is_refused(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await;
    let append = |run, first, count| {
        let kinds = vec![refused("a"); count];
        let (store, org) = (tenant.store.clone(), tenant.org);
        async move { store.event_append(org, run, 1, first, &kinds, UnixMicros(6)).await }
    };
    assert!(matches!(append(run.id, 1, EVENTS_APPEND_MAX + 1).await, Err(Error::Limit { .. })));
    assert!(matches!(append(run.id, 0, 1).await, Err(Error::Invalid { .. })));
    assert!(matches!(append(run.id, u64::MAX, 2).await, Err(Error::Invalid { .. })));
    let unknown = append(RunId::from_uuid(uuid()), 1, 1).await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "run" })), "{unknown:?}");
    assert_eq!(tenant.event_seqs(run.id).await, [1, 2]);
}
