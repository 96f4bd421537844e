//! The audit log: with what it tells of in one transaction, without gaps, and never changed.

use holm_domain::{
    EnvelopeId, KeyId, OrgId, SecretId, TokenId, UnixMicros,
    audit::{Action, Actor, Entry, Head, Record, Why, verify},
    egress::bound::Bound,
    enrol::{HostPublicKey, Join, JoinUse},
    host::Cordon,
    keys::KeyTimes,
    org_limits::OrgLimit,
};
use holm_store::{
    AUDIT_PAGE_MAX, EnvelopeKey, Error, KeptSecret, Org, Project, SealedSecret, Secret, SigningKey, Store,
};

use crate::{
    corrupt::{refused, tamper},
    support::{Engine, Fixture, agent, cases, host, token, uuid},
};

cases!(
    records_are_chained_and_read_page_by_page,
    records_of_another_org_are_out_of_reach,
    appends_at_once_leave_no_gap,
    each_change_is_told_once_and_what_changes_nothing_is_not,
    what_is_refused_is_not_told,
    what_cannot_be_told_is_not_done,
    two_logs_that_are_told_at_once_wait_for_nobody,
    the_database_refuses_to_change_a_record,
);

fn told(org: OrgId, subject: impl std::fmt::Display) -> Entry {
    Entry::new(org, UnixMicros(7), Actor::Server, Action::OrgCreated, subject).with("by_name", "laptop \u{1f3dd}")
}

async fn all(store: &Store, org: OrgId) -> Vec<Record> {
    let records = store.audit_page(org, 0, AUDIT_PAGE_MAX).await.expect("a page");
    let head = store.audit_head(org).await.expect("a head");
    assert_eq!(verify(org, &records, Head::default()), Ok(head));
    records
}

async fn subjects(store: &Store, org: OrgId) -> Vec<String> {
    all(store, org).await.into_iter().map(|record| record.subject).collect()
}

async fn records_are_chained_and_read_page_by_page(fixture: Fixture) {
    let (store, org) = (&fixture.store, fixture.tenant().await.org);
    assert_eq!(store.audit_head(org).await.expect("a head"), Head::default());
    let entries = [told(org, 1), told(org, 2).with("a", ""), told(org, 3)];
    store.audit_append(&entries[..2]).await.expect("appended");
    store.audit_append(&entries[2..]).await.expect("appended");
    store.audit_append(&[]).await.expect("nothing is appended");
    let mut head = Head::default();
    let wanted: Vec<Record> = entries
        .iter()
        .map(|entry| {
            let record = entry.after(head);
            head = record.head();
            record
        })
        .collect();
    let second = fixture.second_server().await;
    assert_eq!(all(&second, org).await, wanted);
    assert_eq!(second.audit_page(org, 1, 1).await.expect("a page"), wanted[1..2]);
    assert_eq!(second.audit_page(org, 3, 1).await.expect("a page"), []);
    for limit in [0, AUDIT_PAGE_MAX + 1] {
        store.audit_page(org, 0, limit).await.expect_err("no such page");
    }
    let nowhere = store.audit_append(&[told(OrgId::from_uuid(uuid()), "x")]).await;
    assert!(matches!(nowhere, Err(Error::NotFound { what: "org" })), "{nowhere:?}");
}

async fn records_of_another_org_are_out_of_reach(fixture: Fixture) {
    let (store, a, b) = (&fixture.store, fixture.tenant().await.org, fixture.tenant().await.org);
    store.audit_append(&[told(b, "theirs"), told(a, "ours"), told(b, "theirs too")]).await.expect("appended");
    assert_eq!(subjects(store, a).await, ["ours"]);
    assert_eq!(subjects(store, b).await, ["theirs", "theirs too"]);
    assert_eq!(all(store, a).await[0].seq, 1, "each org counts for itself");
}

async fn appends_at_once_leave_no_gap(fixture: Fixture) {
    let org = fixture.tenant().await.org;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let racing = (0..16).map(|n| {
        let store = stores[n % 2].clone();
        tokio::spawn(async move { store.token_create(&token(org, n as u8), &[told(org, n)]).await })
    });
    for task in racing.collect::<Vec<_>>() {
        task.await.expect("no panic").expect("made");
    }
    let records = all(&fixture.store, org).await;
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=16).collect::<Vec<_>>());
    let mut told: Vec<usize> = records.iter().map(|record| record.subject.parse().expect("a number")).collect();
    told.sort_unstable();
    assert_eq!(told, (0..16).collect::<Vec<_>>());
}

fn kept(org: OrgId, by: EnvelopeId) -> KeptSecret {
    let (id, at) = (SecretId::from_uuid(uuid()), UnixMicros(10));
    let name = "token".parse().expect("a name");
    let bound = Bound::read(&["anywhere"]).expect("a binding");
    let secret = Secret { id, org, project: None, name, version: 1, bound, created_at: at, updated_at: at };
    KeptSecret { secret, sealed: SealedSecret { by, bytes: vec![1] } }
}

fn signing(by: EnvelopeId) -> SigningKey {
    let id = KeyId::from_uuid(uuid());
    SigningKey {
        times: KeyTimes { id, created_at: UnixMicros(6), retires_at: None, withdrawn_at: None },
        public: [9; 32],
        private: Some(SealedSecret { by, bytes: vec![4, 5] }),
    }
}

async fn envelope(store: &Store) -> EnvelopeId {
    let key = EnvelopeKey { id: EnvelopeId::from_uuid(uuid()), sealed: vec![1], created_at: UnixMicros(5) };
    store.envelope_create(&key).await.expect("made");
    key.id
}

fn join(org: OrgId, hash: u8) -> Join {
    Join {
        id: TokenId::from_uuid(uuid()),
        org,
        name: "one".to_owned(),
        hash: [hash; 32],
        created_at: UnixMicros(10),
        expires_at: UnixMicros(100),
        revoked_at: None,
        used: None,
    }
}

async fn each_change_is_told_once_and_what_changes_nothing_is_not(fixture: Fixture) {
    let (org, other) = (fixture.tenant().await.org, fixture.tenant().await.org);
    let store = &fixture.store;
    let say = |subject: &str| [told(org, subject)];
    let mut wanted = Vec::new();
    secrets(store, org, &say, &mut wanted).await;
    hosts(store, org, &say, &mut wanted).await;
    for _ in 0..2 {
        store.pool_share(org, "ci", other, &say("shared")).await.expect("shared");
    }
    for _ in 0..2 {
        store.pool_unshare("ci", other, &say("unshared")).await.expect("unshared");
    }
    store.org_limit_set(other, OrgLimit::Submits, Some(7), &say("limit set")).await.expect("set");
    for _ in 0..2 {
        store.org_limit_set(other, OrgLimit::Submits, None, &say("limit unset")).await.expect("taken back");
    }
    wanted.extend(["shared", "unshared", "limit set", "limit unset"]);
    assert_eq!(subjects(store, org).await, wanted);
    assert_eq!(subjects(store, other).await, [""; 0]);
}

async fn secrets(store: &Store, org: OrgId, say: &impl Fn(&str) -> [Entry; 1], wanted: &mut Vec<&str>) {
    let by = envelope(store).await;
    let secret = kept(org, by);
    store.secret_create(&secret, &say("secret made")).await.expect("made");
    let next = Secret { version: 2, ..secret.secret.clone() };
    store
        .secret_replace(&KeptSecret { secret: next, ..secret.clone() }, None, &say("replaced"))
        .await
        .expect("replaced");
    store.secret_delete(org, None, &secret.secret.name, &say("removed")).await.expect("removed");
    let one = token(org, 1);
    store.token_create(&one, &say("token made")).await.expect("made");
    for at in [20, 30] {
        store.token_revoke(org, one.id, UnixMicros(at), &say("token revoked")).await.expect("revoked");
    }
    assert_eq!(store.token_get(org, one.id).await.expect("read").expect("there").revoked_at, Some(UnixMicros(20)));
    let (first, second) = (signing(by), signing(by));
    store.signing_key_rotate(None, &first, UnixMicros(0), &say("key made")).await.expect("made");
    let old = Some((first.times.id, UnixMicros(70)));
    store.signing_key_rotate(old, &second, UnixMicros(0), &say("key rotated")).await.expect("rotated");
    for at in [8, 9] {
        store.signing_key_withdraw(first.times.id, UnixMicros(at), None, &say("withdrawn")).await.expect("withdrawn");
    }
    let new = EnvelopeKey { id: EnvelopeId::from_uuid(uuid()), sealed: vec![2], created_at: UnixMicros(6) };
    let resealed = [holm_store::Resealed { id: second.times.id, sealed: vec![8] }];
    store.envelope_rotate(by, &new, &resealed, &say("data key rotated")).await.expect("rotated");
    wanted.extend(["secret made", "replaced", "removed", "token made", "token revoked", "key made", "key rotated"]);
    wanted.extend(["withdrawn", "data key rotated"]);
}

async fn hosts(store: &Store, org: OrgId, say: &impl Fn(&str) -> [Entry; 1], wanted: &mut Vec<&str>) {
    let (unused, used) = (join(org, 1), join(org, 2));
    store.join_create(&unused, UnixMicros(0), &say("join made")).await.expect("made");
    for at in [20, 30] {
        store.join_revoke(org, unused.id, UnixMicros(at), &say("join revoked")).await.expect("revoked");
    }
    store.join_create(&used, UnixMicros(0), &say("join made")).await.expect("made");
    let usage = JoinUse { agent: agent(), key: HostPublicKey([3; 32]), at: UnixMicros(50) };
    store.host_enrol(org, used.id, usage, None, &say("enrolled")).await.expect("enrolled");
    for at in [60, 70] {
        store.host_key_revoke(org, usage.agent, None, UnixMicros(at), &say("key revoked")).await.expect("revoked");
    }
    let host = host(org, "plain");
    store.host_upsert(None, &host).await.expect("registered");
    let cordon = Cordon { by: TokenId::from_uuid(uuid()), by_name: "me".to_owned(), at: UnixMicros(9) };
    for cordon in [Some(&cordon), Some(&cordon), None, None] {
        let what = if cordon.is_some() { "cordoned" } else { "uncordoned" };
        store.host_cordon(org, host.id, cordon, &say(what)).await.expect("done");
    }
    store.host_pool(&host, Some("ci"), &say("put into a pool")).await.expect("done");
    wanted.extend(["join made", "join revoked", "join made", "enrolled", "key revoked", "cordoned", "uncordoned"]);
    wanted.push("put into a pool");
}

async fn what_is_refused_is_not_told(fixture: Fixture) {
    let (store, tenant) = (&fixture.store, fixture.tenant().await);
    let (org, say) = (tenant.org, [told(tenant.org, "refused")]);
    let by = envelope(store).await;
    let secret = kept(org, by);
    store.secret_create(&secret, &[]).await.expect("made");
    store.secret_create(&kept(org, by), &say).await.expect_err("the name is taken");
    store.secret_replace(&secret, None, &say).await.expect_err("no next version");
    store.secret_delete(org, None, &"other".parse().expect("a name"), &say).await.expect_err("no such secret");
    store.token_create(&token(org, 1), &[]).await.expect("made");
    store.token_create(&token(org, 1), &say).await.expect_err("the hash is taken");
    store.token_revoke(org, TokenId::from_uuid(uuid()), UnixMicros(9), &say).await.expect_err("no such token");
    store.join_revoke(org, TokenId::from_uuid(uuid()), UnixMicros(9), &say).await.expect_err("no such token");
    store.host_cordon(org, agent(), None, &say).await.expect_err("no such host");
    store.host_pool(&host(org, "x"), Some("ci"), &say).await.expect_err("no such host");
    store.signing_key_withdraw(KeyId::from_uuid(uuid()), UnixMicros(9), None, &say).await.expect_err("no such key");
    store.signing_key_rotate(None, &signing(EnvelopeId::from_uuid(uuid())), UnixMicros(0), &say).await.expect_err("no");
    let made = Org { id: OrgId::from_uuid(uuid()), name: format!("of {org}"), created_at: UnixMicros(1) };
    let project = Project { org: made.id, ..store.project_list(org).await.expect("read").remove(0) };
    store.org_found(&made, &project, &token(made.id, 9), &say).await.expect_err("the name is taken");
    assert_eq!(subjects(store, org).await, [""; 0]);
}

async fn what_cannot_be_told_is_not_done(fixture: Fixture) {
    if fixture.engine == Engine::Memory {
        // There a record cannot fail once the change is made.
        return;
    }
    let (store, org) = (&fixture.store, fixture.tenant().await.org);
    let nowhere = [told(org, "told"), told(OrgId::from_uuid(uuid()), "x")];
    let by = envelope(store).await;
    let one = token(org, 1);
    store.secret_create(&kept(org, by), &nowhere).await.expect_err("it cannot be told");
    store.token_create(&one, &nowhere).await.expect_err("it cannot be told");
    assert_eq!(store.secrets(org).await.expect("read"), []);
    assert_eq!(store.token_get(org, one.id).await.expect("read"), None);
    assert_eq!(subjects(store, org).await, [""; 0], "neither is what could be told");
}

async fn two_logs_that_are_told_at_once_wait_for_nobody(fixture: Fixture) {
    let (a, b) = (fixture.tenant().await.org, fixture.tenant().await.org);
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let racing = (0..16).map(|n| {
        let store = stores[n % 2].clone();
        let entries = if n % 2 == 0 { [told(a, n), told(b, n)] } else { [told(b, n), told(a, n)] };
        tokio::spawn(async move { store.audit_append(&entries).await })
    });
    for task in racing.collect::<Vec<_>>() {
        task.await.expect("no panic").expect("appended");
    }
    assert_eq!((all(&stores[0], a).await.len(), all(&stores[1], b).await.len()), (16, 16));
}

async fn the_database_refuses_to_change_a_record(fixture: Fixture) {
    let (store, org) = (&fixture.store, fixture.tenant().await.org);
    store.audit_append(&[told(org, "one"), told(org, "two"), told(org, "three")]).await.expect("appended");
    let change = "update audit set subject = 'nothing' where seq = 2";
    for statement in [change, "delete from audit where seq = 3", "delete from audit"] {
        if let Some(problem) = refused(&fixture, statement).await {
            assert!(problem.contains("append-only"), "{problem}");
        }
    }
    assert_eq!(subjects(store, org).await, ["one", "two", "three"]);
    // Who owns the database can have it not refuse; the chain tells.
    let no_trigger = match fixture.engine {
        Engine::Memory => return,
        Engine::Sqlite => "drop trigger audit_no_update",
        Engine::Postgres => "drop trigger audit_append_only on audit",
    };
    tamper(&fixture, &format!("{no_trigger}; {change}")).await;
    let records = store.audit_page(org, 0, 10).await.expect("a page");
    let wrong = verify(org, &records, Head::default()).expect_err("it was changed");
    assert_eq!((wrong.seq, wrong.why), (2, Why::Changed));

    tamper(&fixture, "update audit set details = 'x' where seq = 3").await;
    match store.audit_page(org, 0, 10).await {
        Err(Error::Corrupt { table: "audit", key, .. }) => assert_eq!(key, format!("{org} 3")),
        other => panic!("{other:?}"),
    }
}
