//! Runs: stored whole, listed page by page, saved by compare-and-swap.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use holm_domain::{
    OrgId, ProjectId, RunId, UnixMicros,
    host::Host,
    lease::grant::{self, Finish},
    limits::LeaseConfig,
    run::{Cancel, Decision, EventKind, ExitStatus, Outcome, Run, RunSpec, RunState, Usage},
};
use holm_store::{BlobKey, Doomed, DoomedPart, Error, Inserted, Leased, Project, RUNS_PAGE_MAX, RunCensus, RunFilter};

use crate::support::{
    Fixture, Tenant, batch, cases, claimant, config, every_run, host, read, refused, sandbox, save, uuid,
};

cases!(
    every_field_of_a_run_survives,
    a_save_with_an_old_version_changes_nothing,
    what_cannot_be_saved_is_refused,
    the_filter_means_what_it_says,
    labels_are_compared_exactly,
    pages_are_stable_while_runs_are_added,
    the_queue_is_oldest_first,
    what_pauses_stands_nowhere_in_the_queue,
    priorities_are_places_in_the_queue,
    deadlines_are_found,
    leases_are_found_by_agent,
    a_key_makes_one_run,
    a_key_makes_one_run_however_many_race,
    a_deleted_run_leaves_nothing,
    objects_of_deleted_runs_are_swept_whoever_crashed,
    live_runs_of_all_orgs_are_counted_by_state,
);

async fn every_field_of_a_run_survives(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let mut spec = RunSpec::new(["printf", "\u{1f3dd} %s\n", "it's \"quoted\" \\ and {text}"]);
    spec.env = BTreeMap::from([("A".to_owned(), "line\nline".to_owned())]);
    spec.labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    spec.limits.memory_bytes = 64 << 40;
    let Decision { run, events } = tenant.admit(spec);
    tenant.insert(&run, &events).await.expect("inserted");
    let stored = |id| tenant.store.run_get(tenant.org, id);
    assert_eq!(stored(run.id).await.expect("read"), Some(run.clone()));
    let by = claimant();
    let agent = by.agent;
    let steps: [&(dyn Fn(&Run) -> Decision + Sync); 4] = [
        &|run| grant::claim(run, by, UnixMicros(2_000), &config()).expect("claimable"),
        &|run| grant::start(run, agent, 1, sandbox(agent), UnixMicros(3_000)).expect("held").expect("started"),
        &|run| run.request_cancel(Cancel::Terminate, UnixMicros(4_000)).expect("asked"),
        &|run| {
            let outcome = Outcome::exited(ExitStatus::Signal(15));
            let result = Some(serde_json::json!({"n": [1, 2.5, null], "text": "\u{0}"}));
            let usage = Usage { memory_peak_bytes: Some(1 << 60), log_bytes: Some(0), ..Usage::default() };
            let finish = Finish { outcome, usage: Some(usage), result };
            grant::finish(run, agent, 1, finish, UnixMicros(5_000), &config()).expect("held").expect("finished")
        },
    ];
    let mut current = run;
    let mut told = events.len() as u64;
    for step in steps {
        let decision = step(&current);
        told += decision.events.len() as u64;
        let saved = tenant.save(&decision).await.expect("saved");
        assert_eq!((saved.next_log_seq, saved.last_event_seq), (1, told));
        assert_eq!(stored(decision.run.id).await.expect("read"), Some(decision.run.clone()));
        current = decision.run;
    }
    let kinds: Vec<EventKind> = tenant
        .store
        .event_page(tenant.org, current.id, 0, 100)
        .await
        .expect("a page")
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds.len(), 5);
    assert_eq!(kinds[0], EventKind::Queued);
    assert_eq!(kinds[2], EventKind::Started { sandbox: sandbox(agent) });
    assert_eq!(kinds[4], EventKind::Ended { outcome: Outcome::exited(ExitStatus::Signal(15)) });
}

async fn a_save_with_an_old_version_changes_nothing(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.queued().await;
    let mine = grant::claim(&run, claimant(), UnixMicros(2_000), &config()).expect("claimable");
    let late = grant::claim(&run, claimant(), UnixMicros(2_000), &config()).expect("claimable");
    tenant.save(&mine).await.expect("claimed");
    let lost = tenant.save(&late).await;
    assert!(matches!(lost, Err(Error::Conflict { what: "run" })), "{lost:?}");
    assert_eq!(tenant.store.run_get(tenant.org, run.id).await.expect("read"), Some(mine.run.clone()));
    assert_eq!(tenant.event_seqs(run.id).await, [1, 2], "the loser told nothing");
    for (decision, held) in [(&mine, 1), (&late, 0)] {
        let agent = decision.run.lease.expect("leased").agent;
        assert_eq!(tenant.store.runs_of_agent(agent, every_run()).await.expect("read").len(), held);
    }
}

async fn what_cannot_be_saved_is_refused(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.queued().await;
    let store = &tenant.store;
    let same = store.run_save(run.version, &run, &[], None, UnixMicros(1)).await;
    assert!(matches!(same, Err(Error::Invalid { .. })), "a save must bring a new version: {same:?}");
    let mut crooked = grant::claim(&run, claimant(), UnixMicros(2_000), &config()).expect("claimable");
    crooked.run.fence += 1;
    let refused = tenant.save(&crooked).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "lease and run must agree: {refused:?}");
    let unknown = Run { id: RunId::from_uuid(uuid()), version: 2, ..run.clone() };
    let refused = store.run_save(1, &unknown, &[], None, UnixMicros(1)).await;
    assert!(matches!(refused, Err(Error::NotFound { what: "run" })), "{refused:?}");
    let again = tenant.insert(&run, &[]).await;
    assert!(matches!(again, Err(Error::Conflict { what: "run" })), "{again:?}");
    let other = fixture.tenant().await;
    let mixed = Run { id: RunId::from_uuid(uuid()), project: other.project, ..run.clone() };
    let refused = tenant.insert(&mixed, &[]).await;
    assert!(matches!(refused, Err(Error::NotFound { what: "project" })), "another org's project: {refused:?}");
    for limit in [0, RUNS_PAGE_MAX + 1] {
        let refused = store.run_list(tenant.org, &RunFilter::default(), None, limit).await;
        assert!(matches!(refused, Err(Error::Invalid { .. } | Error::Limit { .. })), "{refused:?}");
    }
    let labels = (0..9).map(|n| (format!("k{n}"), String::new())).collect();
    let refused = store.run_list(tenant.org, &RunFilter { labels, ..RunFilter::default() }, None, 10).await;
    assert!(matches!(refused, Err(Error::Limit { given: 9, max: 8, .. })), "{refused:?}");
}

/// A run in the state, with labels, in the project.
async fn run_in(tenant: &Tenant, project: ProjectId, state: RunState, labels: &[(&str, &str)]) -> RunId {
    let mut spec = RunSpec::new(["true"]);
    spec.labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let Decision { mut run, .. } = tenant.admit(spec);
    (run.project, run.state) = (project, state);
    tenant.insert(&run, &[]).await.expect("inserted");
    run.id
}

async fn the_filter_means_what_it_says(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let second = Project {
        id: ProjectId::from_uuid(uuid()),
        org: tenant.org,
        name: "second".to_owned(),
        created_at: UnixMicros(1),
    };
    fixture.store.project_create(&second).await.expect("made");
    run_in(&other, other.project, RunState::Running, &[("team", "a")]).await;
    let mut all = Vec::new();
    for project in [tenant.project, second.id] {
        for state in RunState::ALL {
            for labels in [&[][..], &[("team", "a")], &[("team", "a"), ("tier", "1")]] {
                all.push((run_in(&tenant, project, state, labels).await, project, state, labels));
            }
        }
    }
    let projects = [None, Some(tenant.project), Some(second.id), Some(other.project)];
    let state_sets = [&[][..], &[RunState::Ended], &[RunState::Running], &[RunState::Queued, RunState::Claimed]];
    let label_sets = [&[][..], &[("team", "a")], &[("team", "a"), ("tier", "1")], &[("team", "b")], &[("tier", "1")]];
    for project in projects {
        for states in state_sets {
            for labels in label_sets {
                let meets = |(_, p, s, l): &&(RunId, ProjectId, RunState, &[(&str, &str)])| {
                    project.is_none_or(|wanted| wanted == *p)
                        && (states.is_empty() || states.contains(s))
                        && labels.iter().all(|label| l.contains(label))
                };
                let expected: Vec<RunId> = all.iter().rev().filter(meets).map(|row| row.0).collect();
                let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
                let filter = RunFilter { project, states: states.to_vec(), labels };
                assert_eq!(tenant.listed(&filter).await, expected, "{filter:?}");
            }
        }
    }
}

async fn labels_are_compared_exactly(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let odd = [("k", "a%"), ("k", "A%"), ("k", "a_"), ("k", "ab"), ("k'", "\""), ("é", ""), ("K", "a%")];
    for label in odd {
        run_in(&tenant, tenant.project, RunState::Queued, &[label]).await;
    }
    for (key, value) in odd {
        let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let found = tenant.listed(&RunFilter { labels, ..RunFilter::default() }).await;
        assert_eq!(found.len(), 1, "{key}={value}");
    }
    let eight: Vec<(String, String)> = (0..8).map(|n| (format!("k{n}"), format!("v{n}"))).collect();
    let borrowed: Vec<(&str, &str)> = eight.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let full = run_in(&tenant, tenant.project, RunState::Queued, &borrowed).await;
    for missing in 0..8 {
        let partial: Vec<_> = borrowed.iter().copied().filter(|(key, _)| *key != format!("k{missing}")).collect();
        run_in(&tenant, tenant.project, RunState::Queued, &partial).await;
    }
    let labels = eight.into_iter().collect();
    assert_eq!(tenant.listed(&RunFilter { labels, ..RunFilter::default() }).await, [full], "each of the eight counts");
}

async fn pages_are_stable_while_runs_are_added(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    // Ids that are drawn now and inserted later sort between those that are there: another server's clock is behind.
    let (mut there, mut later) = (Vec::new(), Vec::new());
    for n in 0..40 {
        let decision = tenant.admit(RunSpec::new(["true"]));
        if n % 2 == 0 {
            tenant.insert(&decision.run, &decision.events).await.expect("inserted");
            there.push(decision.run.id);
        } else {
            later.push(decision.run);
        }
    }
    let mut seen = Vec::new();
    let mut before = None;
    for _ in 0..100 {
        let page = read(tenant.store.run_list(tenant.org, &RunFilter::default(), before, 3).await.expect("a page"));
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        seen.extend(page.into_iter().map(|run| run.id));
        if let Some(run) = later.pop() {
            tenant.insert(&run, &[]).await.expect("inserted");
        }
        tenant.queued().await;
    }
    assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "newest first, none twice");
    assert!(there.iter().all(|id| seen.contains(id)), "none is skipped");
}

async fn the_queue_is_oldest_first(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let mut expected = Vec::new();
    for queued_at in [30, 10, 20, 10] {
        let Decision { mut run, events } = tenant.admit(RunSpec::new(["true"]));
        run.queued_at = UnixMicros(queued_at);
        tenant.insert(&run, &events).await.expect("inserted");
        expected.push((queued_at, run.id));
    }
    expected.sort();
    other.queued().await;
    let claimed = tenant.claimed().await;
    let queue = async |after, limit| fixture.store.run_queue(tenant.org, after, limit).await.expect("a queue");
    let places = |page| read(page).iter().map(|run: &Run| (run.queued_at.0, run.id)).collect::<Vec<_>>();
    assert_eq!(places(queue(None, 10).await), expected);
    let first = queue(None, 1).await;
    let behind = first[0].place.clone();
    let run = read(first).remove(0);
    let granted = grant::claim(&run, claimant(), UnixMicros(40), &config()).expect("claimable");
    tenant.save(&granted).await.expect("claimed");
    assert_eq!(places(queue(Some(&behind), 3).await), expected[1..], "who claims one hides none behind it");
    assert!(expected.iter().all(|(_, id)| *id != claimed.id));
}

async fn what_pauses_stands_nowhere_in_the_queue(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let pausing = LeaseConfig { retry_pause: Duration::from_secs(1), ..config() };
    let (lost, waiting) = (tenant.claimed().await, tenant.queued().await);
    let queue = async || {
        let page = fixture.store.run_queue(tenant.org, None, 10).await.expect("a queue");
        read(page).iter().map(|run: &Run| run.id).collect::<Vec<_>>()
    };
    let now = lost.deadline(&pausing).expect("a deadline");
    let expired = grant::expire(&lost, now, &pausing).expect("expired");
    tenant.save(&expired).await.expect("saved");
    assert_eq!(queue().await, [waiting.id]);
    assert_eq!(expired.run.deadline(&pausing), Some(now.plus(Duration::from_secs(1))));
    let over = expired.run.end_pause(now.plus(Duration::from_secs(1))).expect("over");
    tenant.save(&over).await.expect("saved");
    let mut both = [lost, waiting].map(|run| (run.queue_at(), run.id));
    both.sort();
    assert_eq!(queue().await, both.map(|(_, id)| id), "at its place of before");
}

async fn priorities_are_places_in_the_queue(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let mut expected = Vec::new();
    for (queued_at, priority) in [(600, 0), (660, 1), (540, -2), (0, 0), (6_000, 1_440)] {
        let Decision { mut run, events } = tenant.admit(RunSpec { priority, ..RunSpec::new(["true"]) });
        run.queued_at = UnixMicros(queued_at * 1_000_000);
        tenant.insert(&run, &events).await.expect("inserted");
        expected.push((queued_at - 60 * i64::from(priority), run.id));
    }
    expected.sort();
    let page = fixture.store.run_queue(tenant.org, None, 10).await.expect("a queue");
    let found = read(page).iter().map(|run: &Run| run.id).collect::<Vec<_>>();
    assert_eq!(found, expected.iter().map(|(_, id)| *id).collect::<Vec<_>>());
}

async fn deadlines_are_found(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (queued, claimed, foreign) = (tenant.queued().await, tenant.claimed().await, other.queued().await);
    let due = |now: UnixMicros| {
        let store = fixture.store.clone();
        async move {
            let due = store.runs_due(now, None, 100).await.expect("read");
            due.into_iter().map(|due| due.run.expect("a run").id).collect::<Vec<_>>()
        }
    };
    let lease_end = claimed.deadline(&config()).expect("a deadline");
    let queue_end = queued.deadline(&config()).expect("a deadline");
    assert!(lease_end < queue_end);
    assert_eq!(due(UnixMicros(lease_end.0 - 1)).await, []);
    assert_eq!(due(lease_end).await, [claimed.id]);
    assert_eq!(due(queue_end).await, [claimed.id, queued.id, foreign.id], "of all orgs, the longest overdue first");
    let page = fixture.store.runs_due(queue_end, None, 2).await.expect("read");
    assert_eq!(page.len(), 2);
    let rest = fixture.store.runs_due(queue_end, Some(&page[1].place), 2).await.expect("read");
    assert_eq!(rest.into_iter().map(|due| due.run.expect("a run").id).collect::<Vec<_>>(), [foreign.id]);
    let ended = queued.request_cancel(Cancel::Kill, UnixMicros(9)).expect("cancelled");
    tenant.save(&ended).await.expect("saved");
    assert_eq!(due(queue_end).await, [claimed.id, foreign.id], "a run that has ended has no deadline");
}

async fn leases_are_found_by_agent(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let holders = [claimant(), claimant()];
    let [one, two] = holders.map(|holder| holder.agent);
    for id in [one, two] {
        let host = Host { id, ..host(tenant.org, "isle") };
        fixture.store.host_upsert(None, &host).await.expect("registered");
    }
    let mut held = Vec::new();
    for holder in [holders[0], holders[0], holders[1]] {
        let run = tenant.queued().await;
        let decision = grant::claim(&run, holder, UnixMicros(2_000), &config()).expect("claimable");
        tenant.save(&decision).await.expect("claimed");
        held.push(decision.run);
    }
    let store = &fixture.store;
    assert_eq!(read(store.runs_of_agent(one, every_run()).await.expect("read")), held[..2]);
    let between = async |first: RunId, last: RunId| read(store.runs_of_agent(one, first..=last).await.expect("read"));
    assert_eq!(between(held[1].id, held[1].id).await, held[1..2]);
    assert_eq!(between(held[1].id, held[2].id).await, held[1..2], "the other is not this agent's");
    assert_eq!(store.lease_counts(tenant.org).await.expect("counted"), BTreeMap::from([(one, 2), (two, 1)]));
    let cancelled = held[1].request_cancel(Cancel::Kill, UnixMicros(2_500)).expect("asked for");
    tenant.save(&cancelled).await.expect("saved");
    let leased = |run: &Run, cancel| Leased { run: run.id, org: run.org, fence: run.fence, cancel };
    let (_, leases) = store.host_and_leases(tenant.org, one).await.expect("read");
    let leases: Vec<_> = leases.into_iter().map(|row| row.lease.expect("read")).collect();
    assert_eq!(leases, [leased(&held[0], None), leased(&held[1], Some(Cancel::Kill))]);
    held[1] = cancelled.run;
    let expired = grant::expire(&held[0], UnixMicros(i64::MAX), &config()).expect("expired");
    tenant.save(&expired).await.expect("saved");
    assert_eq!(read(store.runs_of_agent(one, every_run()).await.expect("read")), held[1..2]);
    let anew = grant::claim(&expired.run, holders[1], UnixMicros(3_000), &config()).expect("claimable");
    tenant.save(&anew).await.expect("claimed");
    assert_eq!(store.lease_counts(tenant.org).await.expect("counted"), BTreeMap::from([(one, 1), (two, 2)]));
}

async fn a_key_makes_one_run(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (first, second) = (tenant.admit(RunSpec::new(["a"])).run, tenant.admit(RunSpec::new(["b"])).run);
    assert_eq!(tenant.insert_once(&first, "key", 1).await.expect("inserted"), Inserted::New);
    let claimed = grant::claim(&first, claimant(), UnixMicros(2_000), &config()).expect("claimable");
    tenant.save(&claimed).await.expect("claimed");
    let existing = Inserted::Existing { run: Box::new(claimed.run.clone()), digest: [1; 32] };
    assert_eq!(tenant.insert_once(&second, "key", 2).await.expect("answered"), existing, "as it is now");
    assert_eq!(tenant.store.run_get(tenant.org, second.id).await.expect("read"), None);
    assert_eq!(tenant.insert_once(&second, "KEY", 2).await.expect("inserted"), Inserted::New);
    let foreign = other.admit(RunSpec::new(["c"])).run;
    assert_eq!(other.insert_once(&foreign, "key", 3).await.expect("inserted"), Inserted::New, "keys are of an org");
    let long = tenant.insert_once(&second, &"k".repeat(257), 1).await;
    assert!(matches!(long, Err(Error::Limit { .. })), "{long:?}");
}

async fn a_key_makes_one_run_however_many_race(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    for round in 0..10u8 {
        let racing = (0..8usize).map(|n| {
            let tenant = Tenant { store: stores[n % 2].clone(), ..tenant.clone() };
            tokio::spawn(async move {
                let run = tenant.admit(RunSpec::new(["true"])).run;
                let inserted = tenant.insert_once(&run, &format!("round {round}"), round).await.expect("answered");
                (run.id, inserted)
            })
        });
        let (mut new, mut answered) = (Vec::new(), Vec::new());
        for task in racing.collect::<Vec<_>>() {
            match task.await.expect("no panic") {
                (id, Inserted::New) => new.push(id),
                (_, Inserted::Existing { run, digest }) => {
                    assert_eq!(digest, [round; 32]);
                    answered.push(run.id);
                }
            }
        }
        assert_eq!(new.len(), 1, "one is new");
        assert_eq!(answered, vec![new[0]; 7], "all others are told of it");
    }
    let stored = tenant.listed(&RunFilter::default()).await;
    assert_eq!(stored.len(), 10);
    for run in stored {
        assert_eq!(tenant.event_seqs(run).await, [1]);
    }
}

async fn a_deleted_run_leaves_nothing(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &tenant.store;
    let first = tenant.admit(RunSpec::new(["true"])).run;
    tenant.insert_once(&first, "key", 1).await.expect("inserted");
    let claimed = grant::claim(&first, claimant(), UnixMicros(2_000), &config()).expect("claimable");
    tenant.save(&claimed).await.expect("claimed");
    let run = claimed.run;
    store.event_append(tenant.org, run.id, 1, 1, &[refused("a")], UnixMicros(1)).await.expect("appended");
    store.log_append(tenant.org, run.id, 1, 1, 3, batch(1, 3, 10)).await.expect("appended");
    store.log_append(tenant.org, run.id, 1, 4, 13, batch(4, 10, 40_000)).await.expect("appended");
    store.log_seal(tenant.org, run.id, 1).await.expect("sealed");
    let early = store.run_delete(tenant.org, run.id, run.version - 1, UnixMicros(7)).await;
    assert!(matches!(early, Err(Error::Conflict { what: "run" })), "{early:?}");
    let foreign = store.run_delete(OrgId::from_uuid(uuid()), run.id, run.version, UnixMicros(7)).await;
    assert!(matches!(foreign, Err(Error::NotFound { what: "run" })), "{foreign:?}");
    assert_eq!(tenant.log(run.id).await.len(), 13, "a refused deletion removes nothing");
    let doomed = store.doomed_due(DoomedPart::Run, UnixMicros(i64::MAX), None, 10).await.expect("read");
    assert_eq!(doomed, [], "and dooms nothing");
    store.run_delete(tenant.org, run.id, run.version, UnixMicros(7)).await.expect("deleted");
    let again = store.run_delete(tenant.org, run.id, run.version, UnixMicros(7)).await;
    assert!(matches!(again, Err(Error::NotFound { what: "run" })), "{again:?}");
    assert_eq!(store.run_get(tenant.org, run.id).await.expect("read"), None);
    assert_eq!(tenant.event_seqs(run.id).await, Vec::<u64>::new());
    assert_eq!(tenant.log(run.id).await, Vec::<Vec<u8>>::new());
    assert!(store.runs_of_agent(run.lease.expect("leased").agent, every_run()).await.expect("read").is_empty());
    assert_eq!(store.blobs().delete_of_run(tenant.org, run.id).await.expect("listed"), 0, "no object is left");
    let anew = Run { id: RunId::from_uuid(uuid()), ..first };
    assert_eq!(tenant.insert_once(&anew, "key", 1).await.expect("inserted"), Inserted::New, "the key is free again");
    let gone = save(store, &Decision { run: Run { version: 3, ..run }, events: vec![] }).await;
    assert!(matches!(gone, Err(Error::NotFound { what: "run" })), "{gone:?}");
}

async fn objects_of_deleted_runs_are_swept_whoever_crashed(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, grace) = (&tenant.store, Duration::from_micros(1_000));
    let mut doomed = Vec::new();
    for at in [30, 10, 20] {
        let run = tenant.claimed().await;
        store.run_delete(tenant.org, run.id, run.version, UnixMicros(at)).await.expect("deleted");
        // What a crash between rows and objects leaves, and whoever was still writing.
        store.blobs().put(&BlobKey::run_changes(tenant.org, run.id, 1), Bytes::from_static(b"x")).await.expect("put");
        let at = UnixMicros(at);
        doomed.push(Doomed { part: DoomedPart::Run, org: tenant.org, run: run.id, doomed_at: at, sweep_at: at });
    }
    doomed.sort_by_key(|doomed| doomed.doomed_at);
    let due = |now, after: Option<Doomed>, limit| async move {
        store.doomed_due(DoomedPart::Run, UnixMicros(now), after.as_ref(), limit).await.expect("read")
    };
    assert_eq!(due(9, None, 10).await, []);
    assert_eq!(due(25, None, 10).await, doomed[..2]);
    assert_eq!(due(100, None, 1).await, doomed[..1]);
    assert_eq!(due(100, Some(doomed[0]), 10).await, doomed[1..]);
    let first = doomed[0];
    let sweep = |now| async move { store.doomed_sweep(&first, UnixMicros(now), grace).await.expect("swept") };
    assert_eq!((sweep(100).await, sweep(100).await), (1, 0), "may be repeated");
    assert_eq!(due(100, None, 10).await, doomed[1..]);
    store.blobs().put(&BlobKey::run_changes(tenant.org, first.run, 2), Bytes::from_static(b"late")).await.expect("put");
    assert_eq!(due(1_010, Some(doomed[2]), 10).await, [Doomed { sweep_at: UnixMicros(1_010), ..first }]);
    assert_eq!(sweep(1_010).await, 1, "what came late goes as well");
    assert_eq!(due(i64::MAX, Some(doomed[2]), 10).await, [], "and the note with it");
}

async fn live_runs_of_all_orgs_are_counted_by_state(fixture: Fixture) {
    let store = &fixture.store;
    assert_eq!(store.run_census().await.expect("counted"), RunCensus::default());
    let (one, other) = (fixture.tenant().await, fixture.tenant().await);
    let queued = [one.queued().await, other.queued().await];
    let held = other.claimed().await;
    let ended = one.queued().await.request_cancel(Cancel::Terminate, UnixMicros(2_000)).expect("cancelled");
    one.save(&ended).await.expect("saved");
    let census = store.run_census().await.expect("counted");
    let oldest_queued_at = queued.iter().map(|run| run.queued_at).min();
    assert_eq!(census, RunCensus { queued: 2, oldest_queued_at, leased: vec![(held.state, 1)] });
}
