//! Pools: whom they serve, what runs on their hosts, and that this opens nothing else.

use std::collections::BTreeMap;

use holm_domain::{
    OrgId, TokenId, UnixMicros,
    host::Host,
    lease::{Claimant, grant},
};
use holm_store::{Error, POOL_ORGS_MAX, PoolLeases};

use crate::support::{Fixture, agent, cases, config, every_run, host, read, uuid};

cases!(a_pool_serves_those_it_is_shared_with, a_pool_serves_so_many_orgs, hosts_of_a_pool_execute_runs_of_other_orgs,);

/// A host of `org` in a pool.
async fn pooled(fixture: &Fixture, org: OrgId, name: &str, pool: &str) -> Host {
    let made = Host { id: agent(), ..host(org, name) };
    fixture.store.host_upsert(None, &made).await.expect("registered");
    fixture.store.host_pool(&made, Some(pool), &[]).await.expect("put into it");
    Host { pool: Some(pool.to_owned()), ..made }
}

async fn a_pool_serves_those_it_is_shared_with(fixture: Fixture) {
    let (owner, a, b) = (fixture.tenant().await, fixture.tenant().await, fixture.tenant().await);
    let (store, second) = (&fixture.store, fixture.second_server().await);
    for (pool, org) in [("ci", a.org), ("ci", a.org), ("ci", b.org), ("gpu", b.org)] {
        store.pool_share(owner.org, pool, org, &[]).await.expect("shared");
    }
    let mut both = vec![a.org, b.org];
    both.sort_unstable();
    assert_eq!(second.pool_orgs("ci").await.expect("read"), both);
    assert_eq!(second.pool_orgs("other").await.expect("read"), []);
    let listed = BTreeMap::from([("ci".to_owned(), both), ("gpu".to_owned(), vec![b.org])]);
    assert_eq!(second.pool_list().await.expect("read"), listed);
    let one = pooled(&fixture, owner.org, "one", "ci").await;
    pooled(&fixture, owner.org, "two", "gpu").await;
    pooled(&fixture, a.org, "four", "ci").await;
    store.host_upsert(None, &host(owner.org, "three")).await.expect("registered");
    assert_eq!(store.hosts_shared(owner.org, a.org).await.expect("read"), std::slice::from_ref(&one));
    let names: Vec<_> = store.hosts_shared(owner.org, b.org).await.expect("read");
    assert_eq!(names.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(store.hosts_shared(a.org, b.org).await.expect("read")[0].name, "four");
    // What its agent says of it changes nothing of that.
    store.host_upsert(Some(one.instance), &Host { pool: None, ..one.clone() }).await.expect("registered");
    assert_eq!(store.host_get(owner.org, one.id).await.expect("read").expect("there").pool.as_deref(), Some("ci"));
    // Two say at once in which it is.
    let other = second.host_pool(&Host { pool: None, ..one.clone() }, Some("gpu"), &[]).await;
    assert!(matches!(other, Err(Error::Conflict { what: "host" })), "{other:?}");
    let strange = store.host_pool(&Host { org: a.org, ..one.clone() }, None, &[]).await;
    assert!(matches!(strange, Err(Error::Conflict { what: "host" })), "{strange:?}");
    store.host_pool(&one, None, &[]).await.expect("taken out");
    assert_eq!(store.hosts_shared(owner.org, a.org).await.expect("read"), []);
    // It is in it only as long as it speaks with the same token.
    store.host_pool(&Host { pool: None, ..one.clone() }, Some("ci"), &[]).await.expect("put into it");
    let token = TokenId::from_uuid(uuid());
    store.host_upsert(Some(one.instance), &Host { token, ..one.clone() }).await.expect("registered");
    assert_eq!(store.host_get(owner.org, one.id).await.expect("read").expect("there").pool, None);
    assert_eq!(store.hosts_shared(owner.org, a.org).await.expect("read"), []);
    assert_eq!(store.pool_counts(owner.org).await.expect("counted"), BTreeMap::new());
    assert!(store.pool_unshare("ci", a.org, &[]).await.expect("taken back"));
    assert!(!store.pool_unshare("ci", a.org, &[]).await.expect("taken back twice"));
    assert_eq!(second.pool_orgs("ci").await.expect("read"), [b.org]);
    let nowhere = store.pool_share(owner.org, "ci", OrgId::from_uuid(uuid()), &[]).await;
    assert!(matches!(nowhere, Err(Error::NotFound { what: "org" })), "{nowhere:?}");
}

async fn a_pool_serves_so_many_orgs(fixture: Fixture) {
    let owner = fixture.tenant().await.org;
    let store = &fixture.store;
    let mut tenants = Vec::new();
    for _ in 1..POOL_ORGS_MAX {
        let tenant = fixture.tenant().await;
        store.pool_share(owner, "ci", tenant.org, &[]).await.expect("shared");
        tenants.push(tenant);
    }
    // Only one of those that come at once has room.
    let (late, later, second) = (fixture.tenant().await, fixture.tenant().await, fixture.second_server().await);
    let at_once =
        tokio::join!(store.pool_share(owner, "ci", late.org, &[]), second.pool_share(owner, "ci", later.org, &[]));
    let at_once = [at_once.0, at_once.1];
    assert_eq!(at_once.iter().filter(|shared| shared.is_ok()).count(), 1, "{at_once:?}");
    assert!(at_once.iter().any(|shared| matches!(shared, Err(Error::Limit { .. }))), "{at_once:?}");
    store.pool_share(owner, "ci", tenants[0].org, &[]).await.expect("it is served already");
    assert_eq!(store.pool_orgs("ci").await.expect("read").len(), POOL_ORGS_MAX as usize);
    store.pool_share(owner, "other", late.org, &[]).await.expect("another pool");
}

async fn hosts_of_a_pool_execute_runs_of_other_orgs(fixture: Fixture) {
    let (owner, guest, stranger) = (fixture.tenant().await, fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let shared = pooled(&fixture, owner.org, "one", "ci").await;
    let by = Claimant { agent: shared.id, instance: shared.instance };
    let mut held = Vec::new();
    for tenant in [&owner, &guest, &guest] {
        let decision = grant::claim(&tenant.queued().await, by, UnixMicros(2_000), &config()).expect("claimable");
        tenant.save(&decision).await.expect("claimed");
        held.push(decision.run);
    }
    assert_eq!(read(store.runs_of_agent(shared.id, every_run()).await.expect("read")).len(), 3);
    let (found, leases) = store.host_and_leases(owner.org, shared.id).await.expect("read");
    assert_eq!((found.map(|host| host.id), leases.len()), (Some(shared.id), 3));
    for other in [guest.org, stranger.org] {
        let (found, leases) = store.host_and_leases(other, shared.id).await.expect("read");
        assert!(found.is_none() && leases.is_empty(), "it is no host of theirs");
    }
    assert_eq!(store.lease_counts(owner.org).await.expect("counted"), BTreeMap::from([(shared.id, 3)]));
    assert_eq!(store.lease_counts(guest.org).await.expect("counted"), BTreeMap::new());
    let of = |org, runs| PoolLeases { agent: shared.id, org, runs };
    let mut counted = store.pool_leases(owner.org, "ci").await.expect("counted");
    counted.sort_unstable();
    let mut running = [of(owner.org, 1), of(guest.org, 2)];
    running.sort_unstable();
    assert_eq!(counted, running);
    assert_eq!(store.pool_leases(stranger.org, "ci").await.expect("counted"), []);
    assert_eq!(store.pool_counts(owner.org).await.expect("counted"), BTreeMap::from([("ci".to_owned(), 3)]));
    let found = store.run_of_agent(shared.id, held[1].id).await.expect("read");
    assert_eq!(found.as_ref(), Some(&held[1]));
    assert_eq!(store.run_of_agent(agent(), held[1].id).await.expect("read"), None, "another agent holds it");
    let expired = grant::expire(&held[1], UnixMicros(i64::MAX), &config()).expect("expired");
    guest.save(&expired).await.expect("saved");
    assert_eq!(store.run_of_agent(shared.id, held[1].id).await.expect("read"), None);
}
