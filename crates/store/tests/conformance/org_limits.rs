//! Limits of orgs, the states of their rates, and how much they have.

use std::time::Duration;

use holm_domain::{
    OrgId, UnixMicros,
    org_limits::{OrgLimit, OrgOverrides},
    rate::{Rate, Taken},
};
use holm_store::{Error, Store};

use crate::support::{Fixture, cases, uuid};

cases!(
    limits_are_of_their_org,
    a_rate_moves_from_what_was_seen,
    many_servers_take_no_more_than_the_rate,
    runs_are_counted_no_further_than_asked,
);

const KIND: &str = "submits_per_minute";

async fn limits_are_of_their_org(fixture: Fixture) {
    let (a, b) = (fixture.tenant().await, fixture.tenant().await);
    let (store, second) = (&fixture.store, fixture.second_server().await);
    assert_eq!(store.org_limits_get(a.org).await.expect("read"), OrgOverrides::default());
    store.org_limit_set(a.org, OrgLimit::Submits, Some(7), &[]).await.expect("set");
    store.org_limit_set(a.org, OrgLimit::RunsRunning, Some(0), &[]).await.expect("set");
    second.org_limit_set(a.org, OrgLimit::Submits, Some(8), &[]).await.expect("set again");
    let set = OrgOverrides { submits_per_minute: Some(8), runs_running_max: Some(0), ..OrgOverrides::default() };
    assert_eq!(store.org_limits_get(a.org).await.expect("read"), set);
    store.org_limit_set(a.org, OrgLimit::RunsRunning, None, &[]).await.expect("taken back");
    store.org_limit_set(a.org, OrgLimit::RunsRunning, None, &[]).await.expect("taken back twice");
    assert_eq!(second.org_limits_get(a.org).await.expect("read").runs_running_max, None);
    assert_eq!(store.org_limits_get(b.org).await.expect("read"), OrgOverrides::default());
    let nowhere = store.org_limit_set(OrgId::from_uuid(uuid()), OrgLimit::Submits, Some(1), &[]).await;
    assert!(matches!(nowhere, Err(Error::NotFound { what: "org" })), "{nowhere:?}");
}

async fn a_rate_moves_from_what_was_seen(fixture: Fixture) {
    let (a, b) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let moved = |from: Option<i64>, to| store.org_rate_move(a.org, KIND, from.map(UnixMicros), UnixMicros(to));
    assert_eq!(store.org_rate_get(a.org, KIND).await.expect("read"), None);
    moved(None, 5).await.expect("begun");
    for stale in [None, Some(4)] {
        let refused = moved(stale, 9).await;
        assert!(matches!(refused, Err(Error::Conflict { what: "rate" })), "{refused:?}");
    }
    moved(Some(5), 6).await.expect("moved");
    assert_eq!(store.org_rate_get(a.org, KIND).await.expect("read"), Some(UnixMicros(6)));
    assert_eq!(store.org_rate_get(a.org, "log_bytes_per_second").await.expect("read"), None);
    assert_eq!(store.org_rate_get(b.org, KIND).await.expect("read"), None);
    let nowhere = store.org_rate_move(OrgId::from_uuid(uuid()), KIND, None, UnixMicros(1)).await;
    assert!(matches!(nowhere, Err(Error::NotFound { what: "org" })), "{nowhere:?}");
}

async fn many_servers_take_no_more_than_the_rate(fixture: Fixture) {
    let org = fixture.tenant().await.org;
    let rate = Rate { units: 60, period: Duration::from_secs(60), burst: 20 };
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let taking = (0..8).map(|n| tokio::spawn(take_all(stores[n % 2].clone(), org, rate)));
    let mut taken = 0;
    for task in taking.collect::<Vec<_>>() {
        taken += task.await.expect("no panic");
    }
    // Five seconds pass for each of them: whoever is last has taken what is left.
    assert_eq!(taken, 25);
}

/// Takes what there is, a second at a time for five; returns how much that was.
async fn take_all(store: Store, org: OrgId, rate: Rate) -> u64 {
    let mut taken = 0;
    for second in 0..=5 {
        let now = UnixMicros(1_000_000_000 + second * 1_000_000);
        loop {
            let stored = store.org_rate_get(org, KIND).await.expect("read");
            let Taken::Units { count, tat } = rate.take(stored.unwrap_or(UnixMicros(0)), now, 1, 3) else { break };
            match store.org_rate_move(org, KIND, stored, tat).await {
                Ok(()) => taken += count,
                Err(Error::Conflict { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    taken
}

async fn runs_are_counted_no_further_than_asked(fixture: Fixture) {
    let (a, b) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    for _ in 0..3 {
        a.queued().await;
    }
    a.claimed().await;
    b.queued().await;
    let queued = async |org, most| store.org_queued_count(org, most).await.expect("counted");
    let leases = async |org, most| store.org_leases_count(org, most).await.expect("counted");
    assert_eq!([queued(a.org, 100).await, queued(a.org, 2).await, queued(b.org, 100).await], [3, 2, 1]);
    assert_eq!([leases(a.org, 100).await, leases(a.org, 0).await, leases(b.org, 100).await], [1, 0, 0]);
}
