//! What cannot be read is told with its table and key, by every query that meets it, and never skipped. Where many runs are
//! looked after at once it is told in its place, and the others are there.

use std::str::FromStr;

use holm_domain::{
    AgentId, EnvelopeId, RunId, SecretId, TokenId, UnixMicros,
    access::Token,
    egress::bound::Bound,
    host::Host,
    lease::grant,
    run::{Cancel, Run, RunState},
    secret::SecretName,
};
use holm_store::{
    Blobs, EnvelopeKey, Error, KeptSecret, Result, RunFilter, RunRow, SealedSecret, Secret, Store, runs_examine,
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};

use crate::{
    postgres::TestDatabase,
    support::{Engine, Fixture, Tenant, batch, claimant, config, entries_of, every_run, host, on, token, uuid},
};

/// Changes the database behind the store's back.
pub async fn tamper(fixture: &Fixture, sql: &str) {
    if let Some(changed) = executed(fixture, sql).await {
        assert!(changed.expect("a statement") > 0, "the test changes something");
    }
}

/// Why the database does not execute a statement behind the store's back; nothing where there is no database.
pub async fn refused(fixture: &Fixture, sql: &str) -> Option<String> {
    executed(fixture, sql).await.map(|done| done.expect_err("it is refused").to_string())
}

async fn executed(fixture: &Fixture, sql: &str) -> Option<sqlx::Result<u64>> {
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    let done = match fixture.engine {
        Engine::Memory => return None,
        Engine::Sqlite => {
            let mut database = SqliteConnection::connect(&fixture.url).await.expect("the file opens");
            database.execute(sql).await.map(|done| done.rows_affected())
        }
        Engine::Postgres => {
            let options = sqlx::postgres::PgConnectOptions::from_str(&fixture.url).expect("a URL");
            let mut database = PgConnection::connect_with(&options).await.expect("PostgreSQL answers");
            database.execute(sql).await.map(|done| done.rows_affected())
        }
    };
    Some(done)
}

macro_rules! cases_in_sql {
    ($($case:ident),+ $(,)?) => {
        mod on_sqlite { $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $case() { super::on(super::Engine::Sqlite, super::$case).await; })+ }
        mod on_postgres { $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $case() { super::on(super::Engine::Postgres, super::$case).await; })+ }
    };
}

cases_in_sql!(
    a_run_that_cannot_be_read_is_named_everywhere,
    runs_of_a_list_are_read_one_by_one,
    runs_of_an_agent_and_of_a_queue_are_read_one_by_one,
    runs_that_have_not_ended_are_examined_from_outside,
    columns_that_contradict_the_body_are_seen,
    other_rows_that_cannot_be_read_are_named,
    a_secret_that_cannot_be_read_is_named,
    a_missing_or_changed_log_is_seen,
    what_lies_before_damage_and_behind_it_is_read,
    a_log_that_ends_before_its_head_is_damaged,
    a_log_that_begins_late_is_damaged_backwards_too,
    a_head_that_contradicts_its_log_is_damage,
    a_database_of_a_newer_program_is_refused,
);

fn corrupt<T: std::fmt::Debug>(result: Result<T>, table: &str, key: impl ToString) {
    match result {
        Err(Error::Corrupt { table: named, key: at, .. }) => assert_eq!((named, at), (table, key.to_string())),
        other => panic!("{other:?}"),
    }
}

/// Every way by which a claimed run is found.
async fn everywhere(tenant: &Tenant, run: &Run) {
    let store = &tenant.store;
    let agent = run.lease.expect("leased").agent;
    corrupt(store.run_get(tenant.org, run.id).await, "runs", run.id);
    let due = store.runs_due(UnixMicros(i64::MAX), None, 10).await.expect("the others are there");
    assert_eq!(due.len(), 2);
    assert_eq!(due.iter().filter(|due| due.run.is_ok()).count(), 1, "it hides no other");
    let mine = due.into_iter().find_map(|due| due.run.err()).expect("one cannot be read");
    corrupt(Err::<(), _>(mine), "runs", run.id);
    let held = store.runs_of_agent(agent, every_run()).await.expect("it is said of it alone");
    one_by_one(held, &[(run.id, false)]);
    let listed = store.run_list(tenant.org, &RunFilter::default(), None, 10).await.expect("it is said of it alone");
    assert_eq!(listed.len(), 2);
    one_by_one(listed.into_iter().filter(|row| row.id == run.id.to_string()).collect(), &[(run.id, false)]);
}

/// The rows are these, in this order, each with whether it can be read; one that cannot be is named.
#[track_caller]
fn one_by_one<R: Into<RunRow>>(rows: Vec<R>, wanted: &[(RunId, bool)]) {
    let rows: Vec<RunRow> = rows.into_iter().map(Into::into).collect();
    let ids: Vec<String> = wanted.iter().map(|(id, _)| id.to_string()).collect();
    assert_eq!(rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>(), ids);
    for (row, (id, is_whole)) in rows.into_iter().zip(wanted) {
        match row.run {
            Ok(run) => assert_eq!((run.id, true), (*id, *is_whole)),
            Err(error) => {
                assert!(!is_whole, "{error}");
                corrupt(Err::<(), _>(error), "runs", id);
            }
        }
    }
}

async fn a_run_that_cannot_be_read_is_named_everywhere(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await;
    tenant.queued().await;
    for body in [r#"{"v":2,"is":{}}"#, r#"{"v":1,"is":{}}"#, r#"{"v":1"#, "", "null", r#"{"is":1}"#] {
        tamper(&fixture, &format!("update runs set body = '{body}' where id = '{}'", run.id)).await;
        everywhere(&tenant, &run).await;
        let standing = tenant.store.run_standing(tenant.org, run.id).await.expect("columns of their own");
        assert_eq!(standing, Some((RunState::Claimed, run.version)));
    }
    let contradicted = tenant.claimed().await.id;
    tamper(&fixture, &format!("update runs set state = 'ended' where id = '{contradicted}'")).await;
    let standing = tenant.store.run_standing(tenant.org, contradicted).await;
    assert!(matches!(standing, Err(Error::Corrupt { .. })), "{standing:?}");
}

async fn runs_of_a_list_are_read_one_by_one(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let ids = [tenant.queued().await.id, tenant.claimed().await.id, tenant.queued().await.id];
    for id in [ids[0], ids[1]] {
        tamper(&fixture, &format!("update runs set body = 'x' where id = '{id}'")).await;
    }
    let project = RunFilter { project: Some(tenant.project), ..RunFilter::default() };
    let live = RunFilter { states: vec![RunState::Queued, RunState::Claimed], ..RunFilter::default() };
    for filter in [RunFilter::default(), project, live] {
        let list = async |before, limit| tenant.store.run_list(tenant.org, &filter, before, limit).await.expect("rows");
        one_by_one(list(None, 10).await, &[(ids[2], true), (ids[1], false), (ids[0], false)]);
        one_by_one(list(Some(ids[2]), 1).await, &[(ids[1], false)]);
    }
}

async fn runs_of_an_agent_and_of_a_queue_are_read_one_by_one(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, holder) = (&tenant.store, claimant());
    let (mut held, mut queued) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let run = tenant.queued().await;
        let decision = grant::claim(&run, holder, UnixMicros(2_000), &config()).expect("claimable");
        tenant.save(&decision).await.expect("claimed");
        held.push(run.id);
        queued.push(tenant.queued().await.id);
    }
    for id in [held[1], queued[0], queued[1]] {
        tamper(&fixture, &format!("update runs set body = 'x' where id = '{id}'")).await;
    }
    let of_agent = store.runs_of_agent(holder.agent, every_run()).await.expect("a row each");
    one_by_one(of_agent, &[(held[0], true), (held[1], false), (held[2], true)]);
    let queue = async |after, limit| store.run_queue(tenant.org, after, limit).await.expect("a row each");
    one_by_one(queue(None, 10).await, &[(queued[0], false), (queued[1], false), (queued[2], true)]);
    let first = queue(None, 2).await;
    let behind = first[1].place.clone();
    one_by_one(first, &[(queued[0], false), (queued[1], false)]);
    one_by_one(queue(Some(&behind), 2).await, &[(queued[2], true)]);
}

async fn runs_that_have_not_ended_are_examined_from_outside(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let examined = async || {
        let found = runs_examine(&fixture.url).await.expect("examined");
        (found.count, found.unreadable.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(examined().await, (0, Vec::new()));
    // More than a page, of two orgs.
    let mut last = other.claimed().await.id;
    for _ in 0..501 {
        last = tenant.queued().await.id;
    }
    let ended = other.queued().await.request_cancel(Cancel::Kill, UnixMicros(9)).expect("cancelled");
    other.save(&ended).await.expect("saved");
    assert_eq!(examined().await, (502, Vec::new()), "those that have ended are left out");
    for id in [last, ended.run.id] {
        tamper(&fixture, &format!("update runs set body = 'x' where id = '{id}'")).await;
    }
    let (count, unreadable) = examined().await;
    assert_eq!((count, unreadable.len()), (502, 1));
    assert!(unreadable[0].contains(&last.to_string()), "{unreadable:?}");
}

async fn columns_that_contradict_the_body_are_seen(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (run, other) = (tenant.claimed().await, tenant.queued().await);
    for column in ["state = 'ended', version", "version"] {
        tamper(&fixture, &format!("update runs set {column} = version + 1 where id = '{}'", run.id)).await;
        everywhere(&tenant, &run).await;
    }
    let copy = "(select body from runs where id = '";
    tamper(&fixture, &format!("update runs set body = {copy}{}') where id = '{}'", other.id, run.id)).await;
    corrupt(tenant.store.run_get(tenant.org, run.id).await, "runs", run.id);
}

async fn other_rows_that_cannot_be_read_are_named(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &tenant.store;
    let made: Token = token(tenant.org, 1);
    let known: Host = host(tenant.org, "a");
    store.token_create(&made, &[]).await.expect("made");
    store.host_upsert(None, &known).await.expect("registered");
    let run = tenant.claimed().await.id;
    let (token_id, host_id): (TokenId, AgentId) = (made.id, known.id);
    tamper(&fixture, "update tokens set role = 'root'").await;
    corrupt(store.token_by_hash(&[1; 32]).await, "tokens", token_id);
    corrupt(store.token_list(tenant.org).await, "tokens", token_id);
    tamper(&fixture, "update hosts set body = '{\"v\":1,\"is\":[]}'").await;
    corrupt(store.host_get(tenant.org, host_id).await, "hosts", host_id);
    corrupt(store.host_list(tenant.org).await, "hosts", host_id);
    tamper(&fixture, "update events set body = '{\"v\":1,\"is\":{\"kind\":\"unheard_of\"}}' where seq = 1").await;
    corrupt(store.event_page(tenant.org, run, 0, 10).await, "events", run);
    tamper(&fixture, "update log_heads set next_log_seq = -1").await;
    corrupt(store.log_head(tenant.org, run).await, "log_heads", run);
}

async fn a_secret_that_cannot_be_read_is_named(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let by = EnvelopeId::from_uuid(uuid());
    let envelope = EnvelopeKey { id: by, sealed: vec![1], created_at: UnixMicros(1) };
    tenant.store.envelope_create(&envelope).await.expect("made");
    let id = SecretId::from_uuid(uuid());
    let name: SecretName = "token".parse().expect("a name");
    let (created_at, updated_at) = (UnixMicros(1), UnixMicros(1));
    let bound = Bound::read(&["anywhere"]).expect("a binding");
    let secret =
        Secret { id, org: tenant.org, project: None, name: name.clone(), version: 1, bound, created_at, updated_at };
    let kept = KeptSecret { secret, sealed: SealedSecret { by, bytes: vec![2] } };
    tenant.store.secret_create(&kept, &[]).await.expect("made");
    for damage in ["version = -1", "version = 1, bound = '{\"v\":1,\"is\":[]}'"] {
        tamper(&fixture, &format!("update secrets set {damage}")).await;
        corrupt(tenant.store.secrets(tenant.org).await, "secrets", id);
        corrupt(tenant.store.secret_by_name(tenant.org, None, &name).await, "secrets", id);
        corrupt(tenant.store.secrets_sealed_by(by, None, 1).await, "secrets", id);
    }
}

async fn a_missing_or_changed_log_is_seen(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await.id;
    let store = &tenant.store;
    for first in [1u64, 11, 21] {
        let bytes = batch(first, 10, if first == 11 { 60_000 } else { 10 });
        store.log_append(tenant.org, run, 1, first, first + 9, bytes).await.expect("appended");
    }
    let read = |after| store.log_read(tenant.org, run, after, 1 << 20);
    let (key, size) = {
        use futures_util::TryStreamExt;
        let listed: Vec<_> = store.blobs().list_of_run(tenant.org, run).try_collect().await.expect("listed");
        assert_eq!(listed.len(), 1, "the large append alone is a blob");
        listed[0].clone()
    };
    let whole = store.blobs().get(&key).await.expect("read").expect("there");
    assert_eq!(whole.len() as u64, size);
    store.blobs().put(&key, whole.slice(..100)).await.expect("cut off");
    corrupt(read(10).await, "blobs", &key);
    assert!(read(10).await.is_err_and(|error| error.is_damaged_log()), "cut off");
    for at in [5, whole.len() / 2, whole.len() - 1] {
        let mut changed = whole.to_vec();
        changed[at] ^= 0x55;
        store.blobs().put(&key, changed.into()).await.expect("changed");
        corrupt(read(10).await, "blobs", &key);
        corrupt(store.log_read_back(tenant.org, run, 20, 1).await, "blobs", &key);
    }
    store.blobs().delete(&key).await.expect("deleted");
    corrupt(read(10).await, "blobs", &key);
    assert!(read(10).await.is_err_and(|error| error.is_damaged_log()));
    assert_eq!(read(20).await.expect("what does not need it").len(), 1);
    store.blobs().put(&key, whole).await.expect("put back");
    assert_eq!(read(0).await.expect("read").len(), 3);
    tamper(&fixture, "update log_segments set size = size + 1 where last_seq = 30").await;
    corrupt(read(20).await, "log_segments", run);
    tamper(&fixture, "update log_segments set blob_key = 'orgs/x/../../etc/passwd' where last_seq = 20").await;
    corrupt(read(10).await, "log_segments", run);
}

async fn what_lies_before_damage_and_behind_it_is_read(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, org) = (&tenant.store, tenant.org);
    for harm in ["delete from log_segments", "update log_segments set size = size + 1", ""] {
        let run = segments_of(&tenant, [10, if harm.is_empty() { 60_000 } else { 10 }, 10]).await.id;
        if harm.is_empty() {
            store.blobs().delete_of_run(org, run).await.expect("its object is gone");
        } else {
            tamper(&fixture, &format!("{harm} where run = '{run}' and last_seq = 20")).await;
        }
        let read = |after| store.log_read(org, run, after, 1 << 20);
        let back = |upto| store.log_read_back(org, run, upto, 1 << 20);
        assert_eq!(entries_of(&read(0).await.expect("what lies before it"), 0).len(), 10);
        assert_eq!(entries_of(&back(10).await.expect("what lies before it"), 0).len(), 10);
        assert_eq!(entries_of(&read(20).await.expect("what lies behind it"), 20).len(), 10);
        assert_eq!(entries_of(&back(30).await.expect("what lies behind it"), 20).len(), 10);
        for seq in [11, 15, 20] {
            assert!(read(seq - 1).await.is_err_and(|error| error.is_damaged_log()), "after {seq} - 1: {harm}");
            assert!(back(seq).await.is_err_and(|error| error.is_damaged_log()), "up to {seq}: {harm}");
        }
    }
}

/// A log of three segments of ten entries each, the last in a row or, where its entries are large, in a blob.
async fn three_segments(tenant: &Tenant, length: usize) -> Run {
    segments_of(tenant, [10, 10, length]).await
}

/// A log of segments of ten entries each, of these lengths.
async fn segments_of(tenant: &Tenant, lengths: [usize; 3]) -> Run {
    let run = tenant.claimed().await;
    for (first, length) in (1u64..).step_by(10).zip(lengths) {
        let bytes = batch(first, 10, length);
        tenant.store.log_append(tenant.org, run.id, 1, first, first + 9, bytes).await.expect("appended");
    }
    run
}

async fn a_log_that_ends_before_its_head_is_damaged(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, org) = (&tenant.store, tenant.org);
    for (length, is_sealed) in [(10, false), (60_000, false), (10, true)] {
        let run = three_segments(&tenant, length).await.id;
        let read = |after| store.log_read(org, run, after, 1 << 20);
        let back = |upto| store.log_read_back(org, run, upto, 1);
        let of_run = format!("from log_segments where run = '{run}'");
        tamper(&fixture, &format!("delete {of_run} and last_seq = 30")).await;
        if is_sealed {
            assert_eq!(store.log_seal(org, run, 1).await.expect("sealed").blobs, 1);
        }
        assert_eq!(entries_of(&read(0).await.expect("what is there"), 0).len(), 20);
        assert_eq!(entries_of(&read(15).await.expect("what is there"), 15).len(), 5);
        for after in [20, 25, 29] {
            corrupt(read(after).await, "log_segments", run);
        }
        assert_eq!(read(30).await.expect("nothing is behind it"), []);
        assert!(!back(20).await.expect("what is there").is_empty());
        for upto in [21, 30, u64::MAX] {
            corrupt(back(upto).await, "log_segments", run);
        }
        assert_eq!(store.log_at(org, run, UnixMicros(0)).await.expect("what is there"), Some(1));
        corrupt(store.log_at(org, run, UnixMicros(i64::MAX)).await, "log_segments", run);

        store.log_append(org, run, 1, 31, 40, batch(31, 10, 10)).await.expect("the log goes on");
        corrupt(read(20).await, "log_segments", run);
        corrupt(back(25).await, "log_segments", run);
        assert_eq!(entries_of(&read(30).await.expect("what is behind it"), 30).len(), 10);

        tamper(&fixture, &format!("delete {of_run}")).await;
        corrupt(read(0).await, "log_segments", run);
        corrupt(read(39).await, "log_segments", run);
        corrupt(back(1).await, "log_segments", run);
        corrupt(store.log_at(org, run, UnixMicros(0)).await, "log_segments", run);
        assert_eq!(read(40).await.expect("nothing is behind it"), []);
        let elsewhere = fixture.tenant().await.org;
        assert_eq!(store.log_read(elsewhere, run, 0, 1).await.expect("nothing of another's"), []);
    }
    let empty = tenant.claimed().await.id;
    assert_eq!(store.log_read(org, empty, 0, 1).await.expect("it is empty"), []);
    assert_eq!(store.log_read_back(org, empty, u64::MAX, 1).await.expect("it is empty"), []);
    assert_eq!(store.log_at(org, empty, UnixMicros(0)).await.expect("it is empty"), None);
}

async fn a_log_that_begins_late_is_damaged_backwards_too(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = three_segments(&tenant, 10).await.id;
    tamper(&fixture, "delete from log_segments where last_seq = 10").await;
    let back = |upto| tenant.store.log_read_back(tenant.org, run, upto, 1 << 20);
    corrupt(tenant.store.log_read(tenant.org, run, 0, 1).await, "log_segments", run);
    assert_eq!(back(30).await.expect("what is there").len(), 2);
    for upto in [10, 1] {
        corrupt(back(upto).await, "log_segments", run);
    }
}

async fn a_head_that_contradicts_its_log_is_damage(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, org) = (&tenant.store, tenant.org);
    let run = three_segments(&tenant, 10).await.id;
    let read = |after| store.log_read(org, run, after, 1 << 20);
    let back = |upto| store.log_read_back(org, run, upto, 1);
    for next in [0, 1, 21, 41] {
        tamper(&fixture, &format!("update log_heads set next_log_seq = {next}")).await;
        corrupt(read(if next < 30 { 0 } else { 30 }).await, "log_segments", run);
        corrupt(back(u64::MAX).await, "log_segments", run);
        corrupt(store.log_at(org, run, UnixMicros(i64::MAX)).await, "log_segments", run);
    }
    // Its segments go with it.
    tamper(&fixture, "delete from log_heads").await;
    corrupt(read(0).await, "log_segments", run);
    corrupt(back(u64::MAX).await, "log_segments", run);
    corrupt(store.log_at(org, run, UnixMicros(0)).await, "log_segments", run);
    corrupt(store.log_head(org, run).await, "log_heads", run);
    corrupt(store.log_append(org, run, 1, 31, 31, batch(31, 1, 10)).await, "log_heads", run);
}

async fn a_database_of_a_newer_program_is_refused(fixture: Fixture) {
    tamper(&fixture, "insert into schema_steps (step) values (1000)").await;
    corrupt(Store::open(&fixture.url, Blobs::memory()).await, "schema_steps", "step");
}

#[tokio::test]
async fn urls_that_name_no_store_are_refused_without_their_password() {
    for url in ["", "memory", "memory:x", "mysql://a", "sqlite:", "sqlite::memory:", "postgres://u:s3cret@[h/x"] {
        let refused = Store::open(url, Blobs::memory()).await.expect_err(url);
        assert!(matches!(refused, Error::Invalid { .. }), "{url}: {refused}");
        assert!(!format!("{refused:?} {refused}").contains("s3cret"));
    }
    let nowhere = Store::open("sqlite:/nonexistent/holm.db", Blobs::memory()).await;
    assert!(matches!(nowhere, Err(Error::Unavailable { .. })), "{nowhere:?}");
    let database = TestDatabase::create().await;
    let gone = database.url.clone();
    database.remove().await;
    let refused = Store::open(&gone, Blobs::memory()).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_new_database_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("holm.db");
    let store = Store::open(&format!("sqlite:{}", path.display()), Blobs::memory()).await.expect("opens");
    store.ping().await.expect("answers");
    for entry in std::fs::read_dir(folder.path()).expect("a folder") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
}
