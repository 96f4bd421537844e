//! No query of one org reaches what is another's, whatever ids it is given.

use holm_domain::{
    UnixMicros,
    host::Host,
    lease::grant,
    run::{Decision, Run},
};
use holm_store::{Error, RunFilter};

use crate::support::{Fixture, batch, cases, claimant, config, every_run, host, refused, save, token};

cases!(reads_of_another_org_find_nothing, writes_of_another_org_change_nothing);

fn not_found<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::NotFound { .. })), "{result:?}");
}

async fn reads_of_another_org_find_nothing(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let (run, queued) = (tenant.claimed().await, tenant.queued().await);
    let holder = run.lease.expect("leased").agent;
    store.log_append(tenant.org, run.id, 1, 1, 1, batch(1, 1, 10)).await.expect("appended");
    let known = Host { id: holder, ..host(tenant.org, "a") };
    store.host_upsert(None, &known).await.expect("registered");
    store.token_create(&token(tenant.org, 1), &[]).await.expect("made");
    let org = other.org;
    assert_eq!(store.run_get(org, run.id).await.expect("read"), None);
    assert_eq!(store.run_standing(org, run.id).await.expect("read"), None);
    for project in [None, Some(tenant.project)] {
        let filter = RunFilter { project, ..RunFilter::default() };
        assert!(store.run_list(org, &filter, None, 100).await.expect("read").is_empty());
        assert!(store.run_list(org, &filter, Some(queued.id), 100).await.expect("read").is_empty());
    }
    assert!(store.run_queue(org, None, 100).await.expect("read").is_empty());
    let (host, leases) = store.host_and_leases(org, holder).await.expect("read");
    assert!(host.is_none() && leases.is_empty());
    assert!(store.lease_counts(org).await.expect("read").is_empty());
    assert_eq!(store.event_page(org, run.id, 0, 100).await.expect("read"), []);
    assert_eq!(store.log_read(org, run.id, 0, 100).await.expect("read"), []);
    not_found(store.log_head(org, run.id).await);
    assert_eq!(store.host_list(org).await.expect("read"), []);
    assert_eq!(store.token_list(org).await.expect("read"), []);
    assert_eq!(store.project_list(org).await.expect("read").len(), 1, "its own alone");
    // The same questions by the org itself are answered: none of the above is empty for another reason.
    assert_eq!(tenant.listed(&RunFilter::default()).await.len(), 2);
    assert_eq!(store.runs_of_agent(holder, every_run()).await.expect("read").len(), 1);
    let (host, leases) = store.host_and_leases(tenant.org, holder).await.expect("read");
    assert_eq!((host, leases.len()), (store.host_get(tenant.org, holder).await.expect("read"), 1));
    assert_eq!(store.log_read(tenant.org, run.id, 0, 100).await.expect("read").len(), 1);
    assert_eq!(store.host_list(tenant.org).await.expect("read").len(), 1);
}

async fn writes_of_another_org_change_nothing(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let run = tenant.claimed().await;
    let org = other.org;
    not_found(store.event_append(org, run.id, 1, 1, &[refused("a")], UnixMicros(1)).await);
    not_found(store.log_append(org, run.id, 1, 1, 1, batch(1, 1, 10)).await);
    let large = batch(1, 10, 60_000);
    not_found(store.log_append(org, run.id, 1, 1, 10, large).await);
    not_found(store.run_delete(org, run.id, run.version, UnixMicros(1)).await);
    let stolen = Run { org, project: other.project, version: run.version + 1, ..run.clone() };
    not_found(save(store, &Decision { run: stolen.clone(), events: vec![] }).await);
    let again = other.insert(&stolen, &[]).await;
    assert!(matches!(again, Err(Error::Conflict { what: "run" })), "the id is taken: {again:?}");
    // The run is untouched and still takes what its own org brings.
    assert_eq!(store.run_get(tenant.org, run.id).await.expect("read"), Some(run.clone()));
    assert_eq!(tenant.event_seqs(run.id).await, [1, 2]);
    assert_eq!(store.log_head(tenant.org, run.id).await.expect("read"), 1);
    let expired = grant::expire(&run, UnixMicros(i64::MAX), &config()).expect("expired");
    tenant.save(&expired).await.expect("saved");
    let anew = grant::claim(&expired.run, claimant(), UnixMicros(1), &config()).expect("claimable");
    tenant.save(&anew).await.expect("claimed");
}
