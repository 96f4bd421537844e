//! Join tokens, and the keys of hosts that they enrol.

use holm_domain::{
    OrgId, TokenId, UnixMicros,
    enrol::{HostKey, HostPublicKey, Join, JoinUse},
};
use holm_store::{Error, JOIN_TOKENS_MAX, Result};

use crate::support::{Engine, Fixture, agent, cases, host, uuid};

cases!(
    a_join_token_enrols_one_key_and_the_host_has_it,
    a_join_token_that_does_not_work_enrols_nobody,
    a_key_that_was_not_revoked_is_never_replaced,
    enrolments_that_race_with_one_token_leave_one_key,
    enrolments_that_race_for_one_agent_use_one_token,
    join_tokens_and_keys_stay_with_their_org,
    join_tokens_are_forgotten_and_limited,
);

fn join(org: OrgId, hash: u8) -> Join {
    Join {
        id: TokenId::from_uuid(uuid()),
        org,
        name: "host-7 \u{1f3dd}".to_owned(),
        hash: [hash; 32],
        created_at: UnixMicros(10),
        expires_at: UnixMicros(100),
        revoked_at: None,
        used: None,
    }
}

fn usage(key: u8) -> JoinUse {
    JoinUse { agent: agent(), key: HostPublicKey([key; 32]), at: UnixMicros(50) }
}

#[track_caller]
fn is_conflict(done: Result<()>, about: &str) {
    assert!(matches!(&done, Err(Error::Conflict { what }) if *what == about), "{done:?}");
}

#[track_caller]
fn is_not_found(done: Result<()>, about: &str) {
    assert!(matches!(&done, Err(Error::NotFound { what }) if *what == about), "{done:?}");
}

async fn a_join_token_enrols_one_key_and_the_host_has_it(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, made, used) = (&fixture.store, join(tenant.org, 1), usage(7));
    store.join_create(&made, UnixMicros(0)).await.expect("made");
    assert_eq!(store.join_by_hash(&[1; 32]).await.expect("read"), Some(made.clone()));
    assert_eq!(store.host_key_of(used.agent).await.expect("read"), None);
    store.host_enrol(tenant.org, made.id, used).await.expect("enrolled");
    let after = Join { used: Some(used), ..made.clone() };
    assert_eq!(store.join_by_hash(&[1; 32]).await.expect("read"), Some(after.clone()));
    assert_eq!(store.join_list(tenant.org).await.expect("listed"), [after]);
    let key = HostKey { public: used.key, join: made.id, enrolled_at: used.at, revoked_at: None };
    let another = fixture.second_server().await;
    assert_eq!(another.host_key_of(used.agent).await.expect("read"), Some((tenant.org, key)));
    is_conflict(store.host_enrol(tenant.org, made.id, used).await, "join token");

    let mine = holm_domain::host::Host { id: used.agent, ..host(tenant.org, "mine") };
    store.host_upsert(None, &mine).await.expect("registered");
    let with = |key| holm_domain::host::Host { key: Some(key), ..mine.clone() };
    let stored = || async { store.host_get(tenant.org, mine.id).await.expect("read").expect("there") };
    assert_eq!(stored().await, with(key));
    assert_eq!(store.host_list(tenant.org).await.expect("listed"), [with(key)]);
    for at in [60, 70] {
        store.host_key_revoke(tenant.org, mine.id, UnixMicros(at)).await.expect("revoked");
    }
    let revoked = HostKey { revoked_at: Some(UnixMicros(60)), ..key };
    assert_eq!(stored().await, with(revoked), "the first revocation stays");
    store.host_upsert(Some(mine.instance), &mine).await.expect("registered again");
    assert_eq!(stored().await, with(revoked), "it outlives a registration");
    let mut shown = Vec::new();
    store.host_census(|host| shown.push(host.expect("readable"))).await.expect("shown");
    assert_eq!(shown, [with(revoked)]);
    is_not_found(store.host_key_revoke(tenant.org, agent(), UnixMicros(60)).await, "host key");
}

async fn a_join_token_that_does_not_work_enrols_nobody(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, revoked, expired) = (&fixture.store, join(tenant.org, 1), join(tenant.org, 2));
    for made in [&revoked, &expired] {
        store.join_create(made, UnixMicros(0)).await.expect("made");
    }
    for at in [40, 45] {
        store.join_revoke(tenant.org, revoked.id, UnixMicros(at)).await.expect("revoked");
    }
    assert_eq!(store.join_by_hash(&[1; 32]).await.expect("read").expect("there").revoked_at, Some(UnixMicros(40)));
    is_conflict(store.host_enrol(tenant.org, revoked.id, usage(1)).await, "join token");
    let late = JoinUse { at: UnixMicros(100), ..usage(2) };
    is_conflict(store.host_enrol(tenant.org, expired.id, late).await, "join token");
    is_conflict(store.host_enrol(tenant.org, TokenId::from_uuid(uuid()), late).await, "join token");
    assert_eq!(store.host_key_of(late.agent).await.expect("read"), None);
    let again = store.join_create(&join(tenant.org, 1), UnixMicros(0)).await;
    is_conflict(again, "join token");
}

async fn a_key_that_was_not_revoked_is_never_replaced(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, first, second) = (&fixture.store, join(tenant.org, 1), join(tenant.org, 2));
    for made in [&first, &second] {
        store.join_create(made, UnixMicros(0)).await.expect("made");
    }
    let used = usage(1);
    store.host_enrol(tenant.org, first.id, used).await.expect("enrolled");
    let anew = JoinUse { key: HostPublicKey([2; 32]), ..used };
    is_conflict(store.host_enrol(tenant.org, second.id, anew).await, "host key");
    assert_eq!(store.join_by_hash(&[2; 32]).await.expect("read"), Some(second.clone()), "it was not used up");
    store.host_key_revoke(tenant.org, used.agent, UnixMicros(60)).await.expect("revoked");
    store.host_enrol(tenant.org, second.id, anew).await.expect("enrolled anew");
    let (_, key) = store.host_key_of(used.agent).await.expect("read").expect("there");
    assert_eq!(key, HostKey { public: anew.key, join: second.id, enrolled_at: anew.at, revoked_at: None });
}

async fn enrolments_that_race_with_one_token_leave_one_key(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let made = join(tenant.org, 1);
    fixture.store.join_create(&made, UnixMicros(0)).await.expect("made");
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let racing = (0..8_u8).map(|n| {
        let (store, used) = (stores[usize::from(n) % 2].clone(), usage(n));
        tokio::spawn(async move { (used, store.host_enrol(tenant.org, made.id, used).await) })
    });
    let mut won = Vec::new();
    let mut lost = Vec::new();
    for task in racing.collect::<Vec<_>>() {
        match task.await.expect("no panic") {
            (used, Ok(())) => won.push(used),
            (used, Err(Error::Conflict { what: "join token" })) => lost.push(used.agent),
            (_, Err(other)) => panic!("{other}"),
        }
    }
    assert_eq!((won.len(), lost.len()), (1, 7));
    let stored = fixture.store.join_by_hash(&[1; 32]).await.expect("read").expect("there");
    assert_eq!(stored.used, Some(won[0]));
    for agent in lost {
        assert_eq!(fixture.store.host_key_of(agent).await.expect("read"), None, "no key without its token");
    }
}

async fn enrolments_that_race_for_one_agent_use_one_token(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (stores, used) = ([fixture.store.clone(), fixture.second_server().await], usage(0));
    let mut racing = Vec::new();
    for n in 0..8_u8 {
        let made = join(tenant.org, n);
        fixture.store.join_create(&made, UnixMicros(0)).await.expect("made");
        let (store, used) = (stores[usize::from(n) % 2].clone(), JoinUse { key: HostPublicKey([n; 32]), ..used });
        racing.push(tokio::spawn(async move { (made.id, store.host_enrol(tenant.org, made.id, used).await) }));
    }
    let mut won = Vec::new();
    for task in racing {
        match task.await.expect("no panic") {
            (id, Ok(())) => won.push(id),
            (_, Err(Error::Conflict { what: "host key" })) => {}
            (_, Err(other)) => panic!("{other}"),
        }
    }
    let (_, key) = fixture.store.host_key_of(used.agent).await.expect("read").expect("there");
    assert_eq!(won, [key.join]);
    let listed = fixture.store.join_list(tenant.org).await.expect("listed");
    let spent: Vec<TokenId> = listed.into_iter().filter(|join| join.used.is_some()).map(|join| join.id).collect();
    assert_eq!(spent, won, "the others work still");
}

async fn join_tokens_and_keys_stay_with_their_org(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, mine, theirs) = (&fixture.store, join(tenant.org, 1), join(other.org, 2));
    for made in [&mine, &theirs] {
        store.join_create(made, UnixMicros(0)).await.expect("made");
    }
    let nowhere = store.join_create(&join(OrgId::from_uuid(uuid()), 3), UnixMicros(0)).await;
    is_not_found(nowhere, "org");
    assert_eq!(store.join_list(other.org).await.expect("listed"), std::slice::from_ref(&theirs));
    is_not_found(store.join_revoke(other.org, mine.id, UnixMicros(5)).await, "join token");
    is_conflict(store.host_enrol(other.org, mine.id, usage(1)).await, "join token");
    let registered = host(tenant.org, "mine");
    store.host_upsert(None, &registered).await.expect("registered");
    let stolen = JoinUse { agent: registered.id, ..usage(2) };
    is_conflict(store.host_enrol(other.org, theirs.id, stolen).await, "host key");
    let enrolled = usage(3);
    store.host_enrol(tenant.org, mine.id, enrolled).await.expect("enrolled");
    is_not_found(store.host_key_revoke(other.org, enrolled.agent, UnixMicros(60)).await, "host key");
    store.host_key_revoke(tenant.org, enrolled.agent, UnixMicros(60)).await.expect("revoked");
    let stolen = JoinUse { agent: enrolled.agent, ..usage(4) };
    is_conflict(store.host_enrol(other.org, theirs.id, stolen).await, "host key");
    assert_eq!(store.join_by_hash(&[2; 32]).await.expect("read"), Some(theirs), "it was not used up");
}

async fn join_tokens_are_forgotten_and_limited(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    store.join_create(&join(other.org, 250), UnixMicros(0)).await.expect("made");
    store.join_create(&join(tenant.org, 251), UnixMicros(100)).await.expect("made");
    store.join_create(&join(tenant.org, 252), UnixMicros(100)).await.expect("it is not forgotten before its time");
    assert_eq!(store.join_list(tenant.org).await.expect("listed").len(), 2);
    store.join_create(&join(tenant.org, 253), UnixMicros(101)).await.expect("made");
    let left = store.join_list(tenant.org).await.expect("listed");
    assert_eq!(left.iter().map(|join| join.hash[0]).collect::<Vec<_>>(), [253]);
    assert_eq!(store.join_list(other.org).await.expect("listed").len(), 1, "another org's are not touched");
    // The same statement on both engines, so the one in memory and the one without fsync would show nothing else.
    if fixture.engine != Engine::Memory {
        return;
    }
    let numbered = |n: u32| {
        let mut made = join(tenant.org, 254);
        made.hash[..4].copy_from_slice(&n.to_le_bytes());
        made
    };
    for n in 1..JOIN_TOKENS_MAX {
        store.join_create(&numbered(n), UnixMicros(0)).await.expect("made");
    }
    let full = store.join_create(&numbered(0), UnixMicros(0)).await;
    assert!(matches!(full, Err(Error::Limit { what: "join tokens of an org", max: 4_000, .. })), "{full:?}");
}
