//! Logs go as a whole, after their time and once; their runs stay.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use holm_domain::{
    OrgId, UnixMicros,
    lease::grant,
    run::{ExitStatus, Outcome, Run},
};
use holm_store::{BlobKey, Doomed, DoomedPart, Due, DuePlace, Error, LOG_INLINE_BYTES, LogAppended, Store};

use crate::{
    corrupt::tamper,
    support::{Engine, Fixture, Tenant, batch, cases, config, save, uuid},
};

cases!(
    what_is_old_is_found_in_order_and_page_by_page,
    a_run_that_an_earlier_program_ended_is_found_and_noted,
    a_deleted_log_leaves_its_run,
    a_deletion_that_is_not_decided_changes_nothing,
    two_servers_delete_a_log_once,
    sealing_a_log_that_is_deleted_brings_nothing_back,
    a_log_that_is_deleted_while_it_is_read_is_not_damaged,
    objects_of_deleted_logs_are_swept_whoever_crashed,
);

const RETENTION: Duration = Duration::from_micros(100);

/// Ends a claimed run.
async fn end(tenant: &Tenant, run: &Run, at: i64) -> Run {
    let held = run.lease.expect("leased");
    let outcome = Outcome::exited(ExitStatus::Code(0));
    let finished = grant::finish(run, held.agent, held.fence, outcome.into(), UnixMicros(at), &config()).expect("held");
    let decision = finished.expect("finished");
    tenant.save(&decision).await.expect("saved");
    decision.run
}

async fn ended(tenant: &Tenant, at: i64) -> Run {
    end(tenant, &tenant.claimed().await, at).await
}

/// The run without its log.
fn without(run: &Run) -> Run {
    run.delete_log(run.ended_at.expect("ended").plus(RETENTION), RETENTION).expect("old enough")
}

async fn delete(store: &Store, run: &Run) -> holm_store::Result<()> {
    store.log_delete(run.version, &without(run), UnixMicros(50)).await
}

async fn kept(store: &Store, ended_by: i64, after: Option<&DuePlace>, limit: u32) -> Vec<Due> {
    store.logs_kept(UnixMicros(ended_by), after, limit).await.expect("read")
}

fn ids(due: &[Due]) -> Vec<holm_domain::RunId> {
    due.iter().map(|due| due.run.as_ref().expect("can be read").id).collect()
}

async fn what_is_old_is_found_in_order_and_page_by_page(fixture: Fixture) {
    let [one, other] = [fixture.tenant().await, fixture.tenant().await];
    let store = &fixture.store;
    one.claimed().await;
    one.queued().await;
    let mut old = Vec::new();
    for (tenant, at) in [(&one, 30), (&other, 10), (&one, 20), (&one, 20), (&other, 40)] {
        old.push(ended(tenant, at).await);
    }
    old.sort_by_key(|run| (run.ended_at, run.id));
    let expected: Vec<_> = old.iter().map(|run| run.id).collect();
    assert_eq!(ids(&kept(store, 9, None, 10).await), []);
    assert_eq!(ids(&kept(store, 20, None, 10).await), expected[..3]);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let mut page = kept(store, 1_000, after.as_ref(), 2).await;
        found.extend(ids(&page));
        match page.pop() {
            Some(last) => after = Some(last.place),
            None => break,
        }
    }
    assert_eq!(found, expected);
    delete(store, &old[1]).await.expect("deleted");
    let left = [&expected[..1], &expected[2..]].concat();
    assert_eq!(ids(&kept(store, 1_000, None, 10).await), left, "what is deleted is not found again");
}

async fn a_run_that_an_earlier_program_ended_is_found_and_noted(fixture: Fixture) {
    if fixture.engine == Engine::Memory {
        return;
    }
    let tenant = fixture.tenant().await;
    let run = ended(&tenant, 500).await;
    tamper(&fixture, "update runs set log_kept_since = 0").await;
    assert_eq!(ids(&kept(&tenant.store, 1, None, 10).await), [run.id]);
    let elsewhere = Run { version: run.version + 1, ..run.clone() };
    tenant.store.log_keep(&elsewhere).await.expect("answered");
    assert_eq!(ids(&kept(&tenant.store, 1, None, 10).await), [run.id], "it was another one that was looked at");
    tenant.store.log_keep(&run).await.expect("noted");
    assert_eq!(ids(&kept(&tenant.store, 499, None, 10).await), []);
    assert_eq!(ids(&kept(&tenant.store, 500, None, 10).await), [run.id]);
}

async fn a_deleted_log_leaves_its_run(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &tenant.store;
    let [claimed, other] = [tenant.claimed().await, tenant.claimed().await];
    for run in [&claimed, &other] {
        // Some rows, and an append that is large enough for a blob.
        for (first, count, length) in [(1u64, 10, 10), (11, 10, 60_000), (21, 10, 30_000)] {
            let bytes = batch(first, count, length);
            store.log_append(tenant.org, run.id, 1, first, first + count - 1, bytes).await.expect("appended");
        }
    }
    let changes = BlobKey::run_changes(tenant.org, claimed.id, 1);
    store.blobs().put(&changes, Bytes::from_static(b"tar")).await.expect("put");
    let run = end(&tenant, &claimed, 40).await;
    let events = tenant.event_seqs(run.id).await;
    delete(store, &run).await.expect("deleted");

    assert_eq!(store.run_get(tenant.org, run.id).await.expect("read"), Some(without(&run)));
    assert_eq!(tenant.log(run.id).await, Vec::<Vec<u8>>::new());
    assert_eq!(store.log_read_back(tenant.org, run.id, 30, 1_000).await.expect("read"), []);
    assert_eq!(store.log_at(tenant.org, run.id, UnixMicros(0)).await.expect("read"), None);
    assert_eq!(store.log_head(tenant.org, run.id).await.expect("read"), 31, "how long it was is still known");
    assert_eq!(tenant.event_seqs(run.id).await, events);
    let objects: Vec<_> = store.blobs().list_of_run(tenant.org, run.id).try_collect().await.expect("listed");
    assert_eq!(objects, [(changes, 3)], "the changes stay, and nothing of the log");
    assert_eq!(store.log_sealable(None, 10).await.expect("read"), [], "nothing of it is worth sealing");
    let late = store.log_append(tenant.org, run.id, 1, 31, 40, batch(31, 10, 10)).await.expect("answered");
    assert_eq!(late, LogAppended::StaleFence);
    assert_eq!(tenant.log(other.id).await.len(), 30, "other logs are as they were");
    store.run_delete(tenant.org, run.id, run.version + 1, UnixMicros(60)).await.expect("the run can still be deleted");
    assert_eq!(store.run_get(tenant.org, run.id).await.expect("read"), None);
}

async fn a_deletion_that_is_not_decided_changes_nothing(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &tenant.store;
    let claimed = tenant.claimed().await;
    store.log_append(tenant.org, claimed.id, 1, 1, 10, batch(1, 10, 10)).await.expect("appended");
    let gone = |run: &Run| Run { logs_deleted_at: Some(UnixMicros(9)), version: run.version + 1, ..run.clone() };
    let live = store.log_delete(claimed.version, &gone(&claimed), UnixMicros(50)).await;
    assert!(matches!(live, Err(Error::Invalid { .. })), "{live:?}");
    let run = end(&tenant, &claimed, 40).await;
    let silent = Run { version: run.version + 1, ..run.clone() };
    let silent = store.log_delete(run.version, &silent, UnixMicros(50)).await;
    assert!(matches!(silent, Err(Error::Invalid { .. })), "{silent:?}");
    let skipping = store.log_delete(run.version - 1, &gone(&run), UnixMicros(50)).await;
    assert!(matches!(skipping, Err(Error::Invalid { .. })), "{skipping:?}");
    let earlier = Run { version: run.version - 1, ..run.clone() };
    let old = store.log_delete(earlier.version, &gone(&earlier), UnixMicros(50)).await;
    assert!(matches!(old, Err(Error::Conflict { what: "run" })), "{old:?}");
    let foreign = Run { org: OrgId::from_uuid(uuid()), ..gone(&run) };
    let foreign = store.log_delete(run.version, &foreign, UnixMicros(50)).await;
    assert!(matches!(foreign, Err(Error::NotFound { what: "run" })), "{foreign:?}");
    assert_eq!(tenant.log(run.id).await.len(), 10);
    assert_eq!(store.run_get(tenant.org, run.id).await.expect("read"), Some(run));
    let doomed = store.doomed_due(DoomedPart::Log, UnixMicros(i64::MAX), None, 10).await.expect("read");
    assert_eq!(doomed, []);
}

async fn two_servers_delete_a_log_once(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    for _ in 0..10 {
        let run = ended(&tenant, 40).await;
        let deleting = stores.clone().map(|store| {
            let run = run.clone();
            tokio::spawn(async move { delete(&store, &run).await })
        });
        let mut won = 0;
        for task in deleting {
            match task.await.expect("no panic") {
                Ok(()) => won += 1,
                Err(error) => assert!(matches!(error, Error::Conflict { what: "run" }), "{error:?}"),
            }
        }
        assert_eq!(won, 1);
        assert_eq!(tenant.store.run_get(tenant.org, run.id).await.expect("read"), Some(without(&run)));
    }
}

async fn sealing_a_log_that_is_deleted_brings_nothing_back(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let other = fixture.second_server().await;
    for _ in 0..10 {
        let claimed = tenant.claimed().await;
        for n in 0..6u64 {
            let bytes = batch(n * 3 + 1, 3, 60_000);
            tenant.store.log_append(tenant.org, claimed.id, 1, n * 3 + 1, n * 3 + 3, bytes).await.expect("appended");
        }
        let run = end(&tenant, &claimed, 40).await;
        let sealing = {
            let (store, org, id) = (other.clone(), tenant.org, run.id);
            tokio::spawn(async move { store.log_seal(org, id, LOG_INLINE_BYTES).await })
        };
        delete(&tenant.store, &run).await.expect("deleted");
        sealing.await.expect("no panic").expect("sealed, or nothing to seal");
        assert_eq!(tenant.log(run.id).await, Vec::<Vec<u8>>::new());
        assert_eq!(other.log_sealable(None, 10).await.expect("read"), []);
        // What the sealing wrote in vain is taken by the sweep.
        for doomed in other.doomed_due(DoomedPart::Log, UnixMicros(i64::MAX), None, 100).await.expect("read") {
            other.doomed_sweep(&doomed, UnixMicros(60), Duration::from_micros(5)).await.expect("swept");
        }
        let objects: Vec<_> = other.blobs().list_of_run(tenant.org, run.id).try_collect().await.expect("listed");
        assert_eq!(objects, []);
    }
}

async fn a_log_that_is_deleted_while_it_is_read_is_not_damaged(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let other = fixture.second_server().await;
    for with_its_run in [false, true].repeat(5) {
        let claimed = tenant.claimed().await;
        for seq in 1..=10u64 {
            tenant.store.log_append(tenant.org, claimed.id, 1, seq, seq, batch(seq, 1, 10)).await.expect("appended");
        }
        let run = end(&tenant, &claimed, 40).await;
        let (store, org, id) = (other.clone(), tenant.org, run.id);
        let reading = tokio::spawn(async move {
            while !store.log_read(org, id, 0, 1_000).await.expect("all or nothing").is_empty() {
                store.log_read(org, id, 9, 1_000).await.expect("all or nothing");
                store.log_read_back(org, id, u64::MAX, 1).await.expect("all or nothing");
                store.log_at(org, id, UnixMicros(i64::MAX)).await.expect("all or nothing");
            }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        if with_its_run {
            tenant.store.run_delete(org, id, run.version, UnixMicros(50)).await.expect("deleted");
        } else {
            delete(&tenant.store, &run).await.expect("deleted");
        }
        reading.await.expect("nothing looked damaged");
    }
}

async fn objects_of_deleted_logs_are_swept_whoever_crashed(fixture: Fixture) {
    if fixture.engine == Engine::Memory {
        return; // No log lies in objects there.
    }
    let tenant = fixture.tenant().await;
    let (store, grace) = (&tenant.store, Duration::from_micros(1_000));
    let claimed = tenant.claimed().await;
    store.log_append(tenant.org, claimed.id, 1, 1, 10, batch(1, 10, 60_000)).await.expect("appended");
    let left: Vec<_> = store.blobs().list_of_run(tenant.org, claimed.id).try_collect().await.expect("listed");
    let (key, bytes) = (left[0].0.clone(), store.blobs().get(&left[0].0).await.expect("read"));
    let run = end(&tenant, &claimed, 40).await;
    delete(store, &run).await.expect("deleted");
    // What a crash between rows and objects leaves, and whoever was still writing.
    let leave = || async { store.blobs().put(&key, bytes.clone().expect("there")).await.expect("put") };
    leave().await;
    let changes = BlobKey::run_changes(tenant.org, run.id, 1);
    store.blobs().put(&changes, Bytes::from_static(b"x")).await.expect("put");
    let due = |now| async move {
        // Another server, which was told nothing.
        let other = store.clone();
        other.doomed_due(DoomedPart::Log, UnixMicros(now), None, 10).await.expect("read")
    };
    let at = UnixMicros(50);
    let doomed = Doomed { part: DoomedPart::Log, org: tenant.org, run: run.id, doomed_at: at, sweep_at: at };
    assert_eq!((due(49).await, due(50).await), (vec![], vec![doomed]));
    let sweep = |now| async move { store.doomed_sweep(&doomed, UnixMicros(now), grace).await.expect("swept") };
    assert_eq!((sweep(60).await, sweep(60).await), (1, 0), "may be repeated");
    leave().await;
    assert_eq!(due(1_049).await, []);
    assert_eq!(due(1_050).await, [Doomed { sweep_at: UnixMicros(1_050), ..doomed }]);
    assert_eq!(sweep(1_050).await, 1, "what came late goes as well");
    assert_eq!(due(i64::MAX).await, [], "and the note with it");
    assert!(store.blobs().get(&changes).await.expect("read").is_some(), "the changes of the run stay");
    let runs = store.doomed_due(DoomedPart::Run, UnixMicros(i64::MAX), None, 10).await.expect("read");
    assert_eq!(runs, [], "the run was not deleted");
    let again = save(store, &holm_domain::run::Decision { run: without(&run), events: vec![] }).await;
    assert!(matches!(again, Err(Error::Conflict { what: "run" })), "{again:?}");
}
