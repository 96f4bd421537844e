//! Join tokens, and the keys of hosts that they enrol.

use holm_domain::{
    OrgId, TokenId, UnixMicros,
    enrol::{HostKey, HostPublicKey, Join, JoinUse},
    host::Host,
};
use holm_store::{Error, JOIN_TOKENS_ENDED_MAX, JOIN_TOKENS_MAX, Result, Store};

use crate::support::{Engine, Fixture, agent, cases, host, instance, uuid};

cases!(
    a_join_token_enrols_one_key_and_the_host_has_it,
    a_join_token_that_does_not_work_enrols_nobody,
    a_key_that_was_not_revoked_is_never_replaced,
    a_key_enrols_once_for_whichever_agent,
    only_the_key_that_counts_registers_a_host,
    a_revocation_that_is_repeated_means_the_key_of_before,
    of_an_enrolment_and_a_registration_one_is_heard_whichever_is_first,
    of_an_enrolment_and_a_registration_that_race_one_is_heard,
    a_used_join_token_is_not_revoked,
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
fn is_not_found<T: std::fmt::Debug>(done: Result<T>, about: &str) {
    assert!(matches!(&done, Err(Error::NotFound { what }) if *what == about), "{done:?}");
}

async fn a_join_token_enrols_one_key_and_the_host_has_it(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, made, used) = (&fixture.store, join(tenant.org, 1), usage(7));
    store.join_create(&made, UnixMicros(0), &[]).await.expect("made");
    assert_eq!(store.join_by_hash(&[1; 32]).await.expect("read"), Some(made.clone()));
    assert_eq!(store.host_key_of(used.agent).await.expect("read"), None);
    store.host_enrol(tenant.org, made.id, used, None, &[]).await.expect("enrolled");
    let after = Join { used: Some(used), ..made.clone() };
    assert_eq!(store.join_by_hash(&[1; 32]).await.expect("read"), Some(after.clone()));
    assert_eq!(store.join_list(tenant.org).await.expect("listed"), [after]);
    let key = HostKey { public: used.key, join: made.id, enrolled_at: used.at, revoked_at: None };
    let another = fixture.second_server().await;
    assert_eq!(another.host_key_of(used.agent).await.expect("read"), Some((tenant.org, key)));
    is_conflict(store.host_enrol(tenant.org, made.id, used, None, &[]).await, "join token");

    let mine = Host { id: used.agent, ..host(tenant.org, "mine") };
    is_conflict(store.host_upsert(None, &mine).await, "host");
    store.host_upsert(None, &Host { key: Some(key), ..mine.clone() }).await.expect("registered");
    let with = |key| Host { key: Some(key), ..mine.clone() };
    let stored = || async { store.host_get(tenant.org, mine.id).await.expect("read").expect("there") };
    assert_eq!(stored().await, with(key));
    assert_eq!(store.host_list(tenant.org).await.expect("listed"), [with(key)]);
    store.host_upsert(Some(mine.instance), &with(key)).await.expect("registered again");
    assert_eq!(stored().await, with(key), "it outlives a registration");
    for at in [60, 70] {
        store.host_key_revoke(tenant.org, mine.id, None, UnixMicros(at), &[]).await.expect("revoked");
    }
    let revoked = HostKey { revoked_at: Some(UnixMicros(60)), ..key };
    assert_eq!(stored().await, with(revoked), "the first revocation stays");
    let mut shown = Vec::new();
    store.host_census(|host| shown.push(host.expect("readable"))).await.expect("shown");
    assert_eq!(shown, [with(revoked)]);
    is_not_found(store.host_key_revoke(tenant.org, agent(), None, UnixMicros(60), &[]).await, "host key");
}

async fn a_join_token_that_does_not_work_enrols_nobody(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, revoked, expired) = (&fixture.store, join(tenant.org, 1), join(tenant.org, 2));
    for made in [&revoked, &expired] {
        store.join_create(made, UnixMicros(0), &[]).await.expect("made");
    }
    for at in [40, 45] {
        store.join_revoke(tenant.org, revoked.id, UnixMicros(at), &[]).await.expect("revoked");
    }
    assert_eq!(store.join_by_hash(&[1; 32]).await.expect("read").expect("there").revoked_at, Some(UnixMicros(40)));
    is_conflict(store.host_enrol(tenant.org, revoked.id, usage(1), None, &[]).await, "join token");
    let late = JoinUse { at: UnixMicros(100), ..usage(2) };
    is_conflict(store.host_enrol(tenant.org, expired.id, late, None, &[]).await, "join token");
    is_conflict(store.host_enrol(tenant.org, TokenId::from_uuid(uuid()), late, None, &[]).await, "join token");
    assert_eq!(store.host_key_of(late.agent).await.expect("read"), None);
    let again = store.join_create(&join(tenant.org, 1), UnixMicros(0), &[]).await;
    is_conflict(again, "join token");
}

async fn a_key_that_was_not_revoked_is_never_replaced(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, first, second) = (&fixture.store, join(tenant.org, 1), join(tenant.org, 2));
    for made in [&first, &second] {
        store.join_create(made, UnixMicros(0), &[]).await.expect("made");
    }
    let used = usage(1);
    store.host_enrol(tenant.org, first.id, used, None, &[]).await.expect("enrolled");
    let anew = JoinUse { key: HostPublicKey([2; 32]), ..used };
    is_conflict(store.host_enrol(tenant.org, second.id, anew, None, &[]).await, "host key");
    assert_eq!(store.join_by_hash(&[2; 32]).await.expect("read"), Some(second.clone()), "it was not used up");
    store.host_key_revoke(tenant.org, used.agent, None, UnixMicros(60), &[]).await.expect("revoked");
    store.host_enrol(tenant.org, second.id, anew, None, &[]).await.expect("enrolled anew");
    let (_, key) = store.host_key_of(used.agent).await.expect("read").expect("there");
    assert_eq!(key, HostKey { public: anew.key, join: second.id, enrolled_at: anew.at, revoked_at: None });
}

async fn a_key_enrols_once_for_whichever_agent(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &fixture.store;
    let made = async |n| {
        let made = join(tenant.org, n);
        store.join_create(&made, UnixMicros(0), &[]).await.expect("made");
        made
    };
    let first = usage(1);
    let second = JoinUse { key: HostPublicKey([2; 32]), ..first };
    for (n, used) in [(1, first), (2, second)] {
        store.host_enrol(tenant.org, made(n).await.id, used, None, &[]).await.expect("enrolled");
        store.host_key_revoke(tenant.org, used.agent, None, UnixMicros(60), &[]).await.expect("revoked");
    }
    let another = JoinUse { agent: agent(), ..first };
    let unused = made(3).await;
    for again in [first, second, another, JoinUse { key: second.key, ..another }] {
        is_conflict(store.host_enrol(tenant.org, unused.id, again, None, &[]).await, "host key");
        let known = store.host_key_get(again.key).await.expect("read").expect("it stays");
        assert_eq!((known.agent, known.org), (first.agent, tenant.org), "{again:?}");
        assert_eq!(known.key.revoked_at, Some(UnixMicros(60)), "{again:?}");
    }
    assert_eq!(store.host_key_of(another.agent).await.expect("read"), None);
    let (_, current) = store.host_key_of(first.agent).await.expect("read").expect("there");
    assert_eq!(current.public, second.key, "the newest counts");
    assert_eq!(store.join_by_hash(&[3; 32]).await.expect("read"), Some(unused.clone()), "it was not used up");
    let third = JoinUse { key: HostPublicKey([3; 32]), ..first };
    assert_eq!(store.host_key_get(third.key).await.expect("read"), None);
    store.host_enrol(tenant.org, unused.id, third, None, &[]).await.expect("a new one enrols");
}

async fn only_the_key_that_counts_registers_a_host(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, made, used) = (&fixture.store, join(tenant.org, 1), usage(1));
    store.join_create(&made, UnixMicros(0), &[]).await.expect("made");
    store.host_enrol(tenant.org, made.id, used, None, &[]).await.expect("enrolled");
    let key = HostKey { public: used.key, join: made.id, enrolled_at: used.at, revoked_at: None };
    let mine = Host { id: used.agent, key: Some(key), ..host(tenant.org, "mine") };
    let stranger = Some(HostKey { public: HostPublicKey([2; 32]), ..key });
    for (org, key) in [(tenant.org, None), (tenant.org, stranger), (other.org, None), (other.org, Some(key))] {
        is_conflict(store.host_upsert(None, &Host { org, key, ..mine.clone() }).await, "host");
    }
    store.host_upsert(None, &mine).await.expect("registered");
    is_conflict(store.host_upsert(Some(mine.instance), &Host { key: None, ..mine.clone() }).await, "host");
    store.host_key_revoke(tenant.org, mine.id, None, UnixMicros(60), &[]).await.expect("revoked");
    is_conflict(store.host_upsert(Some(mine.instance), &mine).await, "host");
}

async fn a_revocation_that_is_repeated_means_the_key_of_before(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, first, second) = (&fixture.store, join(tenant.org, 1), join(tenant.org, 2));
    for made in [&first, &second] {
        store.join_create(made, UnixMicros(0), &[]).await.expect("made");
    }
    let old = usage(1);
    let new = JoinUse { key: HostPublicKey([2; 32]), ..old };
    store.host_enrol(tenant.org, first.id, old, None, &[]).await.expect("enrolled");
    let revoke = async |org, agent, meant, at| store.host_key_revoke(org, agent, meant, UnixMicros(at), &[]).await;
    for (org, agent, meant) in
        [(tenant.org, old.agent, new.key), (tenant.org, agent(), old.key), (other.org, old.agent, old.key)]
    {
        is_not_found(revoke(org, agent, Some(meant), 55).await, "host key");
    }
    let revoked = revoke(tenant.org, old.agent, Some(old.key), 60).await.expect("revoked");
    assert_eq!((revoked.public, revoked.revoked_at), (old.key, Some(UnixMicros(60))));
    store.host_enrol(tenant.org, second.id, new, None, &[]).await.expect("enrolled anew");
    let again = revoke(tenant.org, old.agent, Some(old.key), 70).await.expect("it was revoked");
    assert_eq!(again, revoked, "nothing has changed");
    let (_, current) = store.host_key_of(old.agent).await.expect("read").expect("there");
    assert_eq!((current.public, current.revoked_at), (new.key, None));
    let newest = revoke(tenant.org, old.agent, None, 80).await.expect("revoked");
    assert_eq!(newest, HostKey { revoked_at: Some(UnixMicros(80)), ..current });
}

/// How somebody registers with a token while somebody else enrols a key for the same agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Enrols,
    Registers,
    Together,
}

/// Both, in that order, each on a server of its own; whether the one that is heard in the end is the one with the key. Nobody
/// speaks for the agent twice, and somebody does.
async fn enrols_and_registers(fixture: &Fixture, stores: [Store; 2], org: OrgId, n: u8, order: Order) -> bool {
    let (made, used) = (join(org, n), usage(n));
    fixture.store.join_create(&made, UnixMicros(0), &[]).await.expect("made");
    let wanted = Host { id: used.agent, ..host(org, "racing") };
    // In every other round the host is there before, and its agent is started anew.
    let known = n.is_multiple_of(2).then(|| Host { instance: instance(), ..wanted.clone() });
    if let Some(known) = &known {
        fixture.store.host_upsert(None, known).await.expect("registered");
    }
    let [one, other] = stores;
    let (expected, before) = (known.clone(), known.as_ref().map(|known| known.instance));
    let enrols = async move { one.host_enrol(org, made.id, used, expected.as_ref(), &[]).await };
    let registers = async move { other.host_upsert(before, &wanted).await };
    let (enrols, registers) = match order {
        Order::Enrols => {
            let enrols = enrols.await;
            (enrols, registers.await)
        }
        Order::Registers => {
            let registers = registers.await;
            (enrols.await, registers)
        }
        Order::Together => {
            let (enrols, registers) = (tokio::spawn(enrols), tokio::spawn(registers));
            (enrols.await.expect("no panic"), registers.await.expect("no panic"))
        }
    };
    let stored = fixture.store.host_get(org, used.agent).await.expect("read");
    let key = fixture.store.host_key_of(used.agent).await.expect("read");
    assert_ne!(enrols.is_ok(), registers.is_ok(), "{order:?} {n}: one of them is heard: {enrols:?}, {registers:?}");
    let has_enrolled = enrols.is_ok();
    if has_enrolled {
        is_conflict(registers, "host");
        assert!(key.is_some() && stored.map(|host| host.instance) == before, "{order:?} {n}");
    } else {
        is_conflict(enrols, "host");
        assert!(key.is_none() && stored.is_some_and(|host| Some(host.instance) != before), "{order:?} {n}");
    }
    has_enrolled
}

async fn of_an_enrolment_and_a_registration_one_is_heard_whichever_is_first(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    for n in 0..8_u8 {
        let order = if n < 4 { Order::Enrols } else { Order::Registers };
        let has_enrolled = enrols_and_registers(&fixture, stores.clone(), tenant.org, n, order).await;
        assert_eq!(has_enrolled, order == Order::Enrols, "{n}: whoever is first is heard");
    }
}

/// Who wins is left to chance here, so either may always do; that both orders end well, the case above shows.
async fn of_an_enrolment_and_a_registration_that_race_one_is_heard(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let [one, other] = stores.clone();
    for n in 0..40_u8 {
        let stores = if n / 2 % 2 == 0 { [one.clone(), other.clone()] } else { [other.clone(), one.clone()] };
        enrols_and_registers(&fixture, stores, tenant.org, n, Order::Together).await;
    }
}

async fn a_used_join_token_is_not_revoked(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, made, used) = (&fixture.store, join(tenant.org, 1), usage(1));
    store.join_create(&made, UnixMicros(0), &[]).await.expect("made");
    assert_eq!(store.join_get(tenant.org, made.id).await.expect("read"), Some(made.clone()));
    assert_eq!(store.join_get(other.org, made.id).await.expect("read"), None);
    store.host_enrol(tenant.org, made.id, used, None, &[]).await.expect("enrolled");
    is_conflict(store.join_revoke(tenant.org, made.id, UnixMicros(60), &[]).await, "join token");
    let stored = store.join_get(tenant.org, made.id).await.expect("read");
    assert_eq!(stored, Some(Join { used: Some(used), ..made }), "it stays as it was");
}

async fn enrolments_that_race_with_one_token_leave_one_key(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let made = join(tenant.org, 1);
    fixture.store.join_create(&made, UnixMicros(0), &[]).await.expect("made");
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let racing = (0..8_u8).map(|n| {
        let (store, used) = (stores[usize::from(n) % 2].clone(), usage(n));
        tokio::spawn(async move { (used, store.host_enrol(tenant.org, made.id, used, None, &[]).await) })
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
        fixture.store.join_create(&made, UnixMicros(0), &[]).await.expect("made");
        let (store, used) = (stores[usize::from(n) % 2].clone(), JoinUse { key: HostPublicKey([n; 32]), ..used });
        racing
            .push(tokio::spawn(async move { (made.id, store.host_enrol(tenant.org, made.id, used, None, &[]).await) }));
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
        store.join_create(made, UnixMicros(0), &[]).await.expect("made");
    }
    let nowhere = store.join_create(&join(OrgId::from_uuid(uuid()), 3), UnixMicros(0), &[]).await;
    is_not_found(nowhere, "org");
    assert_eq!(store.join_list(other.org).await.expect("listed"), std::slice::from_ref(&theirs));
    is_not_found(store.join_revoke(other.org, mine.id, UnixMicros(5), &[]).await, "join token");
    is_conflict(store.host_enrol(other.org, mine.id, usage(1), None, &[]).await, "join token");
    let registered = host(tenant.org, "mine");
    store.host_upsert(None, &registered).await.expect("registered");
    let stolen = JoinUse { agent: registered.id, ..usage(2) };
    is_conflict(store.host_enrol(other.org, theirs.id, stolen, None, &[]).await, "host key");
    let enrolled = usage(3);
    store.host_enrol(tenant.org, mine.id, enrolled, None, &[]).await.expect("enrolled");
    is_not_found(store.host_key_revoke(other.org, enrolled.agent, None, UnixMicros(60), &[]).await, "host key");
    store.host_key_revoke(tenant.org, enrolled.agent, None, UnixMicros(60), &[]).await.expect("revoked");
    let stolen = JoinUse { agent: enrolled.agent, ..usage(4) };
    is_conflict(store.host_enrol(other.org, theirs.id, stolen, None, &[]).await, "host key");
    assert_eq!(store.join_by_hash(&[2; 32]).await.expect("read"), Some(theirs), "it was not used up");
}

async fn join_tokens_are_forgotten_and_limited(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    store.join_create(&join(other.org, 250), UnixMicros(0), &[]).await.expect("made");
    store.join_create(&join(tenant.org, 251), UnixMicros(100), &[]).await.expect("made");
    store.join_create(&join(tenant.org, 252), UnixMicros(100), &[]).await.expect("it is not forgotten before its time");
    assert_eq!(store.join_list(tenant.org).await.expect("listed").len(), 2);
    store.join_create(&join(tenant.org, 253), UnixMicros(101), &[]).await.expect("made");
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
    let (used, revoked) = (numbered(1), numbered(2));
    for made in [&used, &revoked] {
        store.join_create(made, UnixMicros(0), &[]).await.expect("made");
    }
    store.host_enrol(tenant.org, used.id, usage(1), None, &[]).await.expect("enrolled");
    store.join_revoke(tenant.org, revoked.id, UnixMicros(60), &[]).await.expect("revoked");
    let begin = 3;
    // The one of before is among them.
    for n in begin..begin + JOIN_TOKENS_MAX - 1 {
        store.join_create(&numbered(n), UnixMicros(0), &[]).await.expect("made");
    }
    let full = store.join_create(&numbered(0), UnixMicros(0), &[]).await;
    assert!(matches!(full, Err(Error::Limit { max: 4_000, .. })), "{full:?}");
    let late = Join { created_at: UnixMicros(100), expires_at: UnixMicros(200), ..numbered(0) };
    store.join_revoke(tenant.org, left[0].id, UnixMicros(61), &[]).await.expect("revoked");
    store.join_create(&numbered(begin + JOIN_TOKENS_MAX), UnixMicros(0), &[]).await.expect("one less counts");
    let listed = store.join_list(tenant.org).await.expect("listed");
    assert_eq!(listed.len(), JOIN_TOKENS_MAX as usize + 3, "what has ended is shown beside them");
    store.join_create(&late, UnixMicros(0), &[]).await.expect("the others have expired");
    let listed = store.join_list(tenant.org).await.expect("listed");
    assert_eq!(listed.len(), JOIN_TOKENS_ENDED_MAX as usize + 1, "of those that have ended, the newest are known");
    assert!(!listed.iter().any(|join| join.id == used.id) && listed.iter().any(|join| join.id == late.id));
}
