//! Secrets of orgs and projects, and the data keys that sealed them.

use std::collections::BTreeSet;

use holm_domain::{
    EnvelopeId, OrgId, ProjectId, SecretId, UnixMicros,
    egress::bound::Bound,
    secret::{SECRETS_MAX, SecretName},
};
use holm_store::{
    EnvelopeKey, Error, KeptSecret, Project, ResealedSecret, SECRETS_PAGE_MAX, SealedSecret, Secret, Store,
};

use crate::support::{Fixture, Tenant, cases, uuid};

cases!(
    the_projects_own_secret_comes_before_that_of_the_org,
    a_name_stands_once_in_each_scope,
    a_value_is_replaced_by_compare_and_swap,
    what_it_is_bound_to_changes_alone_or_with_its_value,
    what_is_removed_is_gone_and_its_name_is_free,
    no_more_than_the_limit_are_kept,
    secrets_of_another_org_are_out_of_reach,
    nothing_is_stored_that_a_retired_data_key_sealed,
    a_data_key_is_there_for_as_long_as_a_secret_refers_to_it,
    what_was_changed_meanwhile_is_not_sealed_over,
    creations_that_race_with_rotations_are_sealed_by_a_key_that_is_there,
);

fn name(text: &str) -> SecretName {
    text.parse().expect("a name")
}

fn envelope() -> EnvelopeKey {
    EnvelopeKey { id: EnvelopeId::from_uuid(uuid()), sealed: vec![1, 2, 3], created_at: UnixMicros(5) }
}

fn bound(texts: &[&str]) -> Bound {
    Bound::read(texts).expect("a binding")
}

/// A store in which a data key seals.
async fn begun(store: &Store) -> EnvelopeId {
    let envelope = envelope();
    store.envelope_create(&envelope).await.expect("made");
    envelope.id
}

fn secret(org: OrgId, project: Option<ProjectId>, text: &str, by: EnvelopeId) -> KeptSecret {
    let secret = Secret {
        id: SecretId::from_uuid(uuid()),
        org,
        project,
        name: name(text),
        version: 1,
        bound: bound(&["api.example.org/v1"]),
        created_at: UnixMicros(10),
        updated_at: UnixMicros(10),
    };
    KeptSecret { secret, sealed: SealedSecret { by, bytes: format!("{project:?}{text}").into_bytes() } }
}

/// The same with its next value.
fn next(kept: &KeptSecret, by: EnvelopeId) -> KeptSecret {
    let secret = Secret { version: kept.secret.version + 1, updated_at: UnixMicros(20), ..kept.secret.clone() };
    KeptSecret { secret, sealed: SealedSecret { by, bytes: vec![8] } }
}

async fn another_project(tenant: &Tenant) -> ProjectId {
    let id = ProjectId::from_uuid(uuid());
    let project = Project { id, org: tenant.org, name: "other".to_owned(), created_at: UnixMicros(2) };
    tenant.store.project_create(&project).await.expect("a project");
    id
}

fn is_conflict<T: std::fmt::Debug>(done: Result<T, Error>) {
    assert!(matches!(done, Err(Error::Conflict { .. })), "{done:?}");
}

fn is_not_found<T: std::fmt::Debug>(done: Result<T, Error>) {
    assert!(matches!(done, Err(Error::NotFound { .. })), "{done:?}");
}

async fn the_projects_own_secret_comes_before_that_of_the_org(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, org, by) = (&tenant.store, tenant.org, begun(&fixture.store).await);
    let elsewhere = another_project(&tenant).await;
    let of_org = secret(org, None, "token", by);
    let of_project = secret(org, Some(tenant.project), "token", by);
    let other = secret(org, Some(tenant.project), "a.other", by);
    for kept in [&of_project, &of_org, &other] {
        store.secret_create(kept, &[]).await.expect("made");
    }
    let found = async |project, text| store.secret_by_name(org, project, &name(text)).await.expect("read");
    assert_eq!(found(Some(tenant.project), "token").await.as_ref(), Some(&of_project));
    assert_eq!(found(Some(elsewhere), "token").await.as_ref(), Some(&of_org));
    assert_eq!(found(None, "token").await.as_ref(), Some(&of_org));
    assert_eq!(found(None, "a.other").await, None, "a secret of a project is no other's");
    assert_eq!(found(Some(elsewhere), "a.other").await, None);
    assert_eq!(found(Some(tenant.project), "Token").await, None, "letters count as they are");
    let listed = fixture.second_server().await.secrets(org).await.expect("read");
    assert_eq!(listed, [other.secret, of_org.secret, of_project.secret]);
}

async fn a_name_stands_once_in_each_scope(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, org, by) = (&tenant.store, tenant.org, begun(&fixture.store).await);
    for project in [None, Some(tenant.project)] {
        store.secret_create(&secret(org, project, "token", by), &[]).await.expect("made");
        is_conflict(store.secret_create(&secret(org, project, "token", by), &[]).await);
    }
    store.secret_create(&secret(other.org, None, "token", by), &[]).await.expect("another org's own");
    is_not_found(store.secret_create(&secret(OrgId::from_uuid(uuid()), None, "token", by), &[]).await);
    is_not_found(store.secret_create(&secret(org, Some(other.project), "token", by), &[]).await);
    assert_eq!(store.secrets(org).await.expect("read").len(), 2);
}

async fn a_value_is_replaced_by_compare_and_swap(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, by) = (&tenant.store, begun(&fixture.store).await);
    let first = secret(tenant.org, None, "token", by);
    is_not_found(store.secret_replace(&next(&first, by), None, &[]).await);
    store.secret_create(&first, &[]).await.expect("made");
    let second = next(&first, by);
    let stores = [store.clone(), fixture.second_server().await];
    let racing = (0..8).map(|n| {
        let (store, second) = (stores[n % 2].clone(), second.clone());
        tokio::spawn(async move { store.secret_replace(&second, None, &[]).await })
    });
    let mut done = 0;
    for task in racing.collect::<Vec<_>>() {
        match task.await.expect("no panic") {
            Ok(()) => done += 1,
            refused => is_conflict(refused),
        }
    }
    assert_eq!(done, 1);
    let found = store.secret_by_name(tenant.org, None, &name("token")).await.expect("read").expect("there");
    assert_eq!(found, second);
    store.secret_replace(&next(&found, by), None, &[]).await.expect("the version that is there");
}

async fn what_it_is_bound_to_changes_alone_or_with_its_value(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, by) = (&tenant.store, begun(&fixture.store).await);
    let first = secret(tenant.org, None, "token", by);
    let of_project = secret(tenant.org, Some(tenant.project), "token", by);
    let bind =
        async |secret: &Secret, texts| store.secret_bind(&Secret { bound: bound(texts), ..secret.clone() }, &[]).await;
    is_not_found(bind(&first.secret, &["anywhere"]).await);
    for kept in [&first, &of_project] {
        store.secret_create(kept, &[]).await.expect("made");
    }
    let two = &["GET,POST api.example.org:8443/v1", "git.example.org"];
    bind(&first.secret, two).await.expect("bound");
    is_not_found(bind(&Secret { org: other.org, ..first.secret.clone() }, &["anywhere"]).await);
    let found = async || store.secret_by_name(tenant.org, None, &name("token")).await.expect("read").expect("there");
    let now = Secret { bound: bound(two), ..first.secret.clone() };
    assert_eq!(found().await, KeptSecret { secret: now.clone(), ..first.clone() }, "nothing else of it has changed");
    let listed = fixture.second_server().await.secrets(tenant.org).await.expect("read");
    assert_eq!(listed, [now, of_project.secret], "and nothing of another");

    // Who replaces the value alone had read what it was bound to before.
    let second = next(&first, by);
    store.secret_replace(&second, None, &[]).await.expect("replaced");
    assert_eq!((found().await.secret.version, found().await.secret.bound), (2, bound(two)));
    is_conflict(bind(&first.secret, &["anywhere"]).await);
    let anywhere = bound(&["anywhere"]);
    is_conflict(store.secret_replace(&second, Some(&anywhere), &[]).await);
    assert_eq!(found().await.secret.bound, bound(two));
    store.secret_replace(&next(&second, by), Some(&anywhere), &[]).await.expect("replaced");
    assert_eq!((found().await.secret.version, found().await.secret.bound), (3, anywhere));
}

async fn what_is_removed_is_gone_and_its_name_is_free(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, org, by) = (&tenant.store, tenant.org, begun(&fixture.store).await);
    let (of_org, of_project) = (secret(org, None, "token", by), secret(org, Some(tenant.project), "token", by));
    for kept in [&of_org, &of_project] {
        store.secret_create(kept, &[]).await.expect("made");
    }
    store.secret_replace(&next(&of_project, by), None, &[]).await.expect("replaced");
    let remove = async |project| store.secret_delete(org, project, &name("token"), &[]).await;
    assert_eq!(remove(Some(tenant.project)).await.expect("removed"), 2);
    is_not_found(remove(Some(tenant.project)).await);
    let found = store.secret_by_name(org, Some(tenant.project), &name("token")).await.expect("read");
    assert_eq!(found, Some(of_org), "that of the org is there");
    assert_eq!(remove(None).await.expect("removed"), 1);
    assert_eq!(store.secrets(org).await.expect("read"), []);
    store.secret_create(&secret(org, None, "token", by), &[]).await.expect("made again");
}

async fn no_more_than_the_limit_are_kept(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, by) = (&tenant.store, begun(&fixture.store).await);
    for number in 0..SECRETS_MAX {
        store.secret_create(&secret(tenant.org, None, &format!("s{number}"), by), &[]).await.expect("made");
    }
    let refused = store.secret_create(&secret(tenant.org, None, "more", by), &[]).await;
    assert!(matches!(refused, Err(Error::Limit { max, .. }) if max == u64::from(SECRETS_MAX)), "{refused:?}");
    store.secret_create(&secret(other.org, None, "more", by), &[]).await.expect("another org's own limit");
    assert_eq!(store.secrets(tenant.org).await.expect("read").len(), SECRETS_MAX as usize);
}

async fn secrets_of_another_org_are_out_of_reach(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, by) = (&tenant.store, begun(&fixture.store).await);
    let kept = secret(tenant.org, None, "token", by);
    let of_project = secret(tenant.org, Some(tenant.project), "own", by);
    for kept in [&kept, &of_project] {
        store.secret_create(kept, &[]).await.expect("made");
    }
    assert_eq!(store.secrets(other.org).await.expect("read"), []);
    for project in [None, Some(tenant.project), Some(other.project)] {
        for text in ["token", "own"] {
            assert_eq!(store.secret_by_name(other.org, project, &name(text)).await.expect("read"), None);
            is_not_found(store.secret_delete(other.org, project, &name(text), &[]).await);
        }
    }
    let stolen = next(&kept, by);
    let stolen = KeptSecret { secret: Secret { org: other.org, ..stolen.secret }, ..stolen };
    is_not_found(store.secret_replace(&stolen, None, &[]).await);
    is_conflict(
        store.secret_create(&KeptSecret { secret: Secret { version: 1, ..stolen.secret }, ..stolen }, &[]).await,
    );
    let found = store.secret_by_name(tenant.org, None, &name("token")).await.expect("read");
    assert_eq!(found, Some(kept), "it is as it was");
}

async fn nothing_is_stored_that_a_retired_data_key_sealed(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    let (store, old) = (&tenant.store, begun(&fixture.store).await);
    let kept = secret(tenant.org, None, "token", old);
    store.secret_create(&kept, &[]).await.expect("made");
    let new = envelope();
    store.envelope_rotate(old, &new, &[], &[]).await.expect("rotated");
    is_conflict(store.secret_create(&secret(tenant.org, None, "late", old), &[]).await);
    is_conflict(store.secret_replace(&next(&kept, old), None, &[]).await);
    is_conflict(store.secret_create(&secret(tenant.org, None, "late", EnvelopeId::from_uuid(uuid())), &[]).await);
    let again = ResealedSecret { org: tenant.org, id: kept.secret.id, version: 1, sealed: vec![9] };
    is_conflict(store.secrets_reseal(new.id, old, &[again]).await);
    assert_eq!(store.secret_by_name(tenant.org, None, &name("token")).await.expect("read"), Some(kept.clone()));
    store.secret_replace(&next(&kept, new.id), None, &[]).await.expect("by the one that seals");
}

async fn a_data_key_is_there_for_as_long_as_a_secret_refers_to_it(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, old) = (&tenant.store, begun(&fixture.store).await);
    let old_key = store.envelope_current().await.expect("read").expect("there");
    let mut kept = Vec::new();
    for (number, org) in [tenant.org, other.org, tenant.org].into_iter().enumerate() {
        kept.push(secret(org, None, &format!("s{number}"), old));
        store.secret_create(&kept[number], &[]).await.expect("made");
    }
    assert_eq!(store.envelopes_retired().await.expect("read"), []);
    assert_eq!(store.envelopes_forget().await.expect("done"), 0, "the one that seals stays");
    let new = envelope();
    store.envelope_rotate(old, &new, &[], &[]).await.expect("rotated");
    assert_eq!(store.envelope_current().await.expect("read"), Some(new.clone()));
    assert_eq!(store.envelopes_retired().await.expect("read"), std::slice::from_ref(&old_key));
    assert_eq!(store.envelope_get(old).await.expect("read"), Some(old_key));
    let page = async |after, limit| store.secrets_sealed_by(old, after, limit).await.expect("read");
    assert_eq!(page(None, SECRETS_PAGE_MAX).await, kept, "of all orgs");
    assert_eq!(page(Some(kept[0].secret.id), 1).await, &kept[1..2]);
    let refused = store.secrets_sealed_by(old, None, SECRETS_PAGE_MAX + 1).await;
    assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");

    // Half of them, as a rotation that was cut off leaves it.
    let anew = |kept: &KeptSecret| {
        let Secret { org, id, version, .. } = kept.secret;
        ResealedSecret { org, id, version, sealed: vec![7] }
    };
    assert_eq!(store.secrets_reseal(old, new.id, &[anew(&kept[0]), anew(&kept[1])]).await.expect("sealed"), 2);
    assert_eq!(store.envelopes_forget().await.expect("done"), 0);
    assert!(store.envelope_get(old).await.expect("read").is_some());
    assert_eq!(page(None, SECRETS_PAGE_MAX).await, &kept[2..]);
    let found = store.secret_by_name(other.org, None, &name("s1")).await.expect("read").expect("there");
    let sealed = SealedSecret { by: new.id, bytes: vec![7] };
    assert_eq!(found, KeptSecret { sealed, ..kept[1].clone() }, "its version and its times stay");

    store.secret_delete(tenant.org, None, &name("s2"), &[]).await.expect("removed");
    assert_eq!(store.envelopes_forget().await.expect("done"), 1);
    assert_eq!(store.envelope_get(old).await.expect("read"), None);
    assert_eq!(store.envelopes_retired().await.expect("read"), []);
    assert_eq!(store.envelope_current().await.expect("read"), Some(new));
}

async fn what_was_changed_meanwhile_is_not_sealed_over(fixture: Fixture) {
    let (tenant, other) = (fixture.tenant().await, fixture.tenant().await);
    let (store, old) = (&tenant.store, begun(&fixture.store).await);
    let kept: Vec<KeptSecret> = ["a", "b", "c"].map(|text| secret(tenant.org, None, text, old)).into();
    for kept in &kept {
        store.secret_create(kept, &[]).await.expect("made");
    }
    let new = envelope();
    store.envelope_rotate(old, &new, &[], &[]).await.expect("rotated");
    let replaced = next(&kept[0], new.id);
    store.secret_replace(&replaced, None, &[]).await.expect("replaced");
    store.secret_delete(tenant.org, None, &name("b"), &[]).await.expect("removed");
    let anew = |org, kept: &KeptSecret| ResealedSecret { org, id: kept.secret.id, version: 1, sealed: vec![7] };
    let late: Vec<ResealedSecret> = kept.iter().map(|kept| anew(tenant.org, kept)).collect();
    assert_eq!(store.secrets_reseal(old, new.id, &[anew(other.org, &kept[2])]).await.expect("done"), 0);
    assert_eq!(store.secrets_reseal(old, new.id, &late).await.expect("sealed"), 1, "the one that is as it was");
    assert_eq!(store.secrets_reseal(old, new.id, &late).await.expect("sealed"), 0, "again");
    assert_eq!(store.secret_by_name(tenant.org, None, &name("a")).await.expect("read"), Some(replaced));
    assert_eq!(store.secret_by_name(tenant.org, None, &name("b")).await.expect("read"), None);
}

async fn creations_that_race_with_rotations_are_sealed_by_a_key_that_is_there(fixture: Fixture) {
    let tenant = fixture.tenant().await;
    begun(&fixture.store).await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let rotating = stores[1].clone();
    let rotations = tokio::spawn(async move {
        for _ in 0..20 {
            let old = rotating.envelope_current().await.expect("read").expect("there").id;
            rotating.envelope_rotate(old, &envelope(), &[], &[]).await.expect("nobody else rotates");
            rotating.envelopes_forget().await.expect("done");
        }
    });
    let creating = (0..4).map(|task| {
        let (store, org) = (stores[task % 2].clone(), tenant.org);
        tokio::spawn(async move {
            let mut made = 0;
            for number in 0..10 {
                let by = store.envelope_current().await.expect("read").expect("there").id;
                match store.secret_create(&secret(org, None, &format!("s{task}.{number}"), by), &[]).await {
                    Ok(()) => made += 1,
                    refused => is_conflict(refused),
                }
            }
            made
        })
    });
    let mut made = 0;
    for task in creating.collect::<Vec<_>>() {
        made += task.await.expect("no panic");
    }
    rotations.await.expect("no panic");
    let (mut sealing, listed) = (BTreeSet::new(), fixture.store.secrets(tenant.org).await.expect("read"));
    assert_eq!(listed.len(), made);
    for secret in listed {
        let kept = fixture.store.secret_by_name(tenant.org, None, &secret.name).await.expect("read").expect("there");
        assert!(fixture.store.envelope_get(kept.sealed.by).await.expect("read").is_some(), "its key is there");
        sealing.insert(kept.sealed.by);
    }
    fixture.store.envelopes_forget().await.expect("done");
    let retired = fixture.store.envelopes_retired().await.expect("read");
    assert!(retired.iter().all(|envelope| sealing.contains(&envelope.id)), "no other is kept");
}
