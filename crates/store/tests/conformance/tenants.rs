//! Orgs, projects, tokens and hosts.

use holm_domain::{
    OrgId, ProjectId, TokenId, UnixMicros,
    access::Role,
    host::{Cordon, Host},
};
use holm_store::{Error, Org, Project, Store, TOKENS_MAX};

use crate::support::{Engine, Fixture, agent, cases, host, instance, token, uuid};

cases!(
    orgs_are_found_by_id_and_name,
    an_org_is_made_once_however_many_race,
    projects_belong_to_their_org,
    tokens_are_found_by_their_hash_alone,
    tokens_are_listed_and_revoked,
    tokens_are_limited,
    hosts_register_again_and_again,
    hosts_stay_with_their_org,
    hosts_of_all_orgs_are_shown_once,
    a_cordon_stays_until_it_is_lifted,
    everything_is_there_after_a_restart,
    any_number_of_servers_start_at_once,
);

fn org(name: &str) -> Org {
    Org { id: OrgId::from_uuid(uuid()), name: name.to_owned(), created_at: UnixMicros(7) }
}

async fn orgs_are_found_by_id_and_name(fixture: Fixture) {
    let store = &fixture.store;
    let acme = org("acme");
    store.org_create(&acme).await.expect("made");
    assert_eq!(store.org_get(acme.id).await.expect("read"), Some(acme.clone()));
    assert_eq!(store.org_by_name("acme").await.expect("read"), Some(acme.clone()));
    assert_eq!(store.org_by_name("ACME").await.expect("read"), None);
    assert_eq!(store.org_get(OrgId::from_uuid(uuid())).await.expect("read"), None);
    let same_name = store.org_create(&org("acme")).await;
    assert!(matches!(same_name, Err(Error::Conflict { what: "org" })), "{same_name:?}");
    let same_id = store.org_create(&Org { name: "other".to_owned(), ..acme }).await;
    assert!(matches!(same_id, Err(Error::Conflict { what: "org" })), "{same_id:?}");
    store.ping().await.expect("the store answers");
}

async fn an_org_is_made_once_however_many_race(fixture: Fixture) {
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let racing = (0..8).map(|n| {
        let store = stores[n % 2].clone();
        tokio::spawn(async move { store.org_create(&org("default")).await })
    });
    let mut made = 0;
    for task in racing.collect::<Vec<_>>() {
        match task.await.expect("no panic") {
            Ok(()) => made += 1,
            Err(Error::Conflict { what: "org" }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(made, 1);
}

async fn projects_belong_to_their_org(fixture: Fixture) {
    let (a, b) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let of = |org, name: &str| Project {
        id: ProjectId::from_uuid(uuid()),
        org,
        name: name.to_owned(),
        created_at: UnixMicros(3),
    };
    let (upper, umlaut) = (of(a.org, "Zebra"), of(a.org, "älter"));
    store.project_create(&upper).await.expect("made");
    store.project_create(&umlaut).await.expect("made");
    store.project_create(&of(b.org, "Zebra")).await.expect("another org may use the name");
    let again = store.project_create(&of(a.org, "Zebra")).await;
    assert!(matches!(again, Err(Error::Conflict { what: "project" })), "{again:?}");
    let nowhere = store.project_create(&of(OrgId::from_uuid(uuid()), "x")).await;
    assert!(matches!(nowhere, Err(Error::NotFound { what: "org" })), "{nowhere:?}");
    assert_eq!(store.project_by_name(a.org, "Zebra").await.expect("read"), Some(upper));
    assert_eq!(store.project_by_name(b.org, "älter").await.expect("read"), None);
    let names: Vec<String> =
        store.project_list(a.org).await.expect("listed").into_iter().map(|project| project.name).collect();
    assert_eq!(names, ["Zebra", "default", "älter"], "by the bytes of the name");
}

async fn tokens_are_found_by_their_hash_alone(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &fixture.store;
    for (hash, role) in (1..).zip(Role::ALL) {
        let made = holm_domain::access::Token { role, ..token(tenant.org, hash) };
        store.token_create(&made, &[]).await.expect("made");
        assert_eq!(store.token_by_hash(&[hash; 32]).await.expect("read"), Some(made));
    }
    assert_eq!(store.token_by_hash(&[9; 32]).await.expect("read"), None);
    let again = store.token_create(&token(tenant.org, 1), &[]).await;
    assert!(matches!(again, Err(Error::Conflict { what: "token" })), "{again:?}");
    let nowhere = store.token_create(&token(OrgId::from_uuid(uuid()), 8), &[]).await;
    assert!(matches!(nowhere, Err(Error::NotFound { what: "org" })), "{nowhere:?}");
}

async fn tokens_are_listed_and_revoked(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let tokens = [token(tenant.org, 1), token(tenant.org, 2), token(tenant.org, 3)];
    for made in &tokens {
        store.token_create(made, &[]).await.expect("made");
    }
    store.token_revoke(tenant.org, tokens[2].id, UnixMicros(50), &[]).await.expect("revoked");
    store.token_revoke(tenant.org, tokens[2].id, UnixMicros(60), &[]).await.expect("revoked again");
    let listed = store.token_list(tenant.org).await.expect("listed");
    let ids: Vec<TokenId> = listed.iter().map(|token| token.id).collect();
    assert_eq!(ids, [tokens[1].id, tokens[0].id, tokens[2].id], "live ones first, newest first");
    assert_eq!(listed[2].revoked_at, Some(UnixMicros(50)), "the first revocation stays");
    let foreign = store.token_revoke(other.org, tokens[0].id, UnixMicros(50), &[]).await;
    assert!(matches!(foreign, Err(Error::NotFound { what: "token" })), "{foreign:?}");
    assert_eq!(store.token_get(tenant.org, tokens[2].id).await.expect("read").as_ref(), Some(&listed[2]));
    assert_eq!(store.token_get(other.org, tokens[2].id).await.expect("read"), None, "another org's is not there");
    let untouched = store.token_by_hash(&[1; 32]).await.expect("read").expect("there");
    assert_eq!(untouched.revoked_at, None);
    assert_eq!(store.token_list(other.org).await.expect("listed"), []);
}

async fn tokens_are_limited(fixture: Fixture) {
    // The same statement on both engines: the one whose commits cost nothing in the tests shows it for both.
    if fixture.engine == Engine::Sqlite {
        return;
    }
    let tenant = fixture.tenant().await;
    let numbered = |n: u32| {
        let mut made = token(tenant.org, 0);
        made.hash[..4].copy_from_slice(&n.to_le_bytes());
        made
    };
    for n in 0..TOKENS_MAX {
        fixture.store.token_create(&numbered(n), &[]).await.expect("made");
    }
    let full = fixture.store.token_create(&numbered(TOKENS_MAX), &[]).await;
    assert!(matches!(full, Err(Error::Limit { what: "tokens of an org", max: 1_000, .. })), "{full:?}");
    let first = fixture.store.token_list(tenant.org).await.expect("listed")[0].id;
    fixture.store.token_revoke(tenant.org, first, UnixMicros(50), &[]).await.expect("revoked");
    fixture.store.token_create(&numbered(TOKENS_MAX), &[]).await.expect("a revoked token makes room");
}

async fn hosts_register_again_and_again(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let store = &fixture.store;
    let (first, second) = (host(tenant.org, "b"), host(tenant.org, "a"));
    store.host_upsert(None, &first).await.expect("registered");
    store.host_upsert(None, &second).await.expect("registered");
    assert_eq!(store.host_get(tenant.org, first.id).await.expect("read"), Some(first.clone()));
    let later = Host {
        version: "0.2.0".to_owned(),
        instance: instance(),
        superseded: vec![first.instance],
        registered_at: UnixMicros(900),
        seen_at: UnixMicros(900),
        ..first.clone()
    };
    for expected in [None, Some(later.instance)] {
        let beaten = store.host_upsert(expected, &later).await;
        assert!(matches!(beaten, Err(Error::Conflict { what: "host" })), "{beaten:?}");
    }
    store.host_upsert(Some(first.instance), &later).await.expect("registered again");
    let expected = Host { registered_at: first.registered_at, ..later };
    assert_eq!(store.host_list(tenant.org).await.expect("listed"), [second, expected.clone()], "by name");
    store.host_seen(tenant.org, first.id, UnixMicros(950)).await.expect("seen");
    store.host_seen(tenant.org, first.id, UnixMicros(940)).await.expect("seen, by a clock that was set back");
    let seen = store.host_get(tenant.org, first.id).await.expect("read").expect("there");
    assert_eq!(seen, Host { seen_at: UnixMicros(940), ..expected });
}

async fn hosts_stay_with_their_org(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let mine = host(tenant.org, "mine");
    store.host_upsert(None, &mine).await.expect("registered");
    let stolen = store.host_upsert(Some(mine.instance), &Host { org: other.org, ..mine.clone() }).await;
    assert!(matches!(stolen, Err(Error::Conflict { what: "host" })), "{stolen:?}");
    assert_eq!(store.host_get(tenant.org, mine.id).await.expect("read"), Some(mine.clone()));
    assert_eq!(store.host_get(other.org, mine.id).await.expect("read"), None);
    for (org, id) in [(other.org, mine.id), (tenant.org, agent())] {
        let unknown = store.host_seen(org, id, UnixMicros(5_000)).await;
        assert!(matches!(unknown, Err(Error::NotFound { what: "host" })), "{unknown:?}");
    }
    let nowhere = store.host_upsert(None, &host(OrgId::from_uuid(uuid()), "x")).await;
    assert!(matches!(nowhere, Err(Error::NotFound { what: "org" })), "{nowhere:?}");
}

async fn hosts_of_all_orgs_are_shown_once(fixture: Fixture) {
    let store = &fixture.store;
    let mut registered = Vec::new();
    for _ in 0..2 {
        let mine = host(fixture.tenant().await.org, "host");
        store.host_upsert(None, &mine).await.expect("registered");
        registered.push(mine);
    }
    let mut shown = Vec::new();
    store.host_census(|host| shown.push(host.expect("readable"))).await.expect("shown");
    registered.sort_by_key(|host| host.id);
    assert_eq!(shown, registered);
}

async fn a_cordon_stays_until_it_is_lifted(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let store = &fixture.store;
    let mine = host(tenant.org, "mine");
    let cordon = |name: &str| Cordon { by: mine.token, by_name: name.to_owned(), at: UnixMicros(300) };
    store.host_upsert(None, &Host { cordon: Some(cordon("agent")), ..mine.clone() }).await.expect("registered");
    let stored = || async { store.host_get(tenant.org, mine.id).await.expect("read").expect("there").cordon };
    assert_eq!(stored().await, None, "an agent says nothing about it");
    for name in ["first \u{1f3dd}", "second"] {
        store.host_cordon(tenant.org, mine.id, Some(&cordon(name)), &[]).await.expect("cordoned");
    }
    let first = Some(cordon("first \u{1f3dd}"));
    assert_eq!(stored().await, first, "the first one stays");
    store.host_upsert(Some(mine.instance), &mine).await.expect("registered again");
    assert_eq!(stored().await, first, "it outlives the registration");
    assert_eq!(store.host_list(tenant.org).await.expect("listed")[0].cordon, first);
    for (org, id) in [(other.org, mine.id), (tenant.org, agent())] {
        for cordon in [None, first.as_ref()] {
            let unknown = store.host_cordon(org, id, cordon, &[]).await;
            assert!(matches!(unknown, Err(Error::NotFound { what: "host" })), "{unknown:?}");
        }
    }
    assert_eq!(stored().await, first);
    for _ in 0..2 {
        store.host_cordon(tenant.org, mine.id, None, &[]).await.expect("lifted");
        assert_eq!(stored().await, None);
    }
}

async fn everything_is_there_after_a_restart(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let run = tenant.claimed().await;
    let again = fixture.second_server().await;
    assert_eq!(again.run_get(tenant.org, run.id).await.expect("read"), Some(run.clone()));
    assert_eq!(again.event_page(tenant.org, run.id, 0, 10).await.expect("read").len(), 2);
    assert_eq!(again.log_head(tenant.org, run.id).await.expect("read"), 1);
}

async fn any_number_of_servers_start_at_once(fixture: Fixture) {
    // The fixture's own database has its schema; a fresh one beside it does not.
    let Fixture { engine, blobs, .. } = fixture;
    let folder = tempfile::tempdir().expect("a folder");
    let database = match engine {
        Engine::Postgres => Some(crate::postgres::TestDatabase::create().await),
        _ => None,
    };
    let url = match (&database, engine) {
        (Some(database), _) => database.url.clone(),
        (None, Engine::Sqlite) => format!("sqlite:{}", folder.path().join("new.db").display()),
        (None, _) => "memory:".to_owned(),
    };
    let starting = (0..8).map(|_| {
        let (url, blobs) = (url.clone(), blobs.clone());
        tokio::spawn(async move { Store::open(&url, blobs).await })
    });
    for task in starting.collect::<Vec<_>>() {
        let store = task.await.expect("no panic").expect("the store opens");
        store.ping().await.expect("the store answers");
    }
    if let Some(database) = database {
        database.remove().await;
    }
}
