//! The keys of the deployment.

use holm_domain::{EnvelopeId, KeyId, UnixMicros, keys::KeyTimes};
use holm_store::{EnvelopeKey, Error, Resealed, SealedSecret, SigningKey, Store};

use crate::support::{Fixture, cases, uuid};

cases!(
    one_data_key_seals_and_one_key_signs,
    a_rotation_erases_what_signs_no_more,
    a_withdrawal_never_leaves_nobody_to_sign,
    a_data_key_goes_with_all_that_it_sealed_or_not_at_all,
    rotations_that_race_leave_one_that_signs,
    what_ended_long_ago_is_forgotten,
);

fn envelope() -> EnvelopeKey {
    EnvelopeKey { id: EnvelopeId::from_uuid(uuid()), sealed: vec![1, 2, 3], created_at: UnixMicros(5) }
}

fn key(by: EnvelopeId) -> SigningKey {
    let id = KeyId::from_uuid(uuid());
    SigningKey {
        times: KeyTimes { id, created_at: UnixMicros(6), retires_at: None, withdrawn_at: None },
        public: [9; 32],
        private: Some(SealedSecret { by, bytes: vec![4, 5] }),
    }
}

/// A store in which one key signs.
async fn begun(store: &Store) -> (EnvelopeKey, SigningKey) {
    let envelope = envelope();
    store.envelope_create(&envelope).await.expect("made");
    let first = key(envelope.id);
    store.signing_key_rotate(None, &first, UnixMicros(0), &[]).await.expect("made");
    (envelope, first)
}

fn is_conflict<T: std::fmt::Debug>(done: Result<T, Error>) {
    assert!(matches!(done, Err(Error::Conflict { .. })), "{done:?}");
}

async fn one_data_key_seals_and_one_key_signs(fixture: Fixture) {
    let store = &fixture.store;
    assert_eq!(store.envelope_current().await.expect("read"), None);
    assert_eq!(store.signing_keys().await.expect("read"), []);
    is_conflict(store.signing_key_rotate(None, &key(envelope().id), UnixMicros(0), &[]).await);
    let (first_envelope, first) = begun(store).await;
    is_conflict(store.envelope_create(&envelope()).await);
    is_conflict(store.signing_key_rotate(None, &key(first_envelope.id), UnixMicros(0), &[]).await);
    let other = fixture.second_server().await;
    assert_eq!(other.envelope_current().await.expect("read"), Some(first_envelope));
    assert_eq!(other.signing_keys().await.expect("read"), [first]);
}

async fn a_rotation_erases_what_signs_no_more(fixture: Fixture) {
    let store = &fixture.store;
    let (envelope, first) = begun(store).await;
    let second = key(envelope.id);
    let old = Some((first.times.id, UnixMicros(70)));
    store.signing_key_rotate(old, &second, UnixMicros(0), &[]).await.expect("rotated");
    let retired = SigningKey {
        times: KeyTimes { retires_at: Some(UnixMicros(70)), ..first.times },
        private: None,
        ..first.clone()
    };
    assert_eq!(store.signing_keys().await.expect("read"), [second, retired.clone()], "newest first");
    is_conflict(store.signing_key_rotate(old, &key(envelope.id), UnixMicros(0), &[]).await);
    assert_eq!(store.signing_keys().await.expect("read")[1], retired, "nothing was changed");
}

async fn a_withdrawal_never_leaves_nobody_to_sign(fixture: Fixture) {
    let store = &fixture.store;
    let (envelope, first) = begun(store).await;
    is_conflict(store.signing_key_withdraw(first.times.id, UnixMicros(7), None, &[]).await);
    assert_eq!(store.signing_keys().await.expect("read"), std::slice::from_ref(&first), "nothing was changed");
    let second = key(envelope.id);
    store.signing_key_withdraw(first.times.id, UnixMicros(7), Some(&second), &[]).await.expect("withdrawn");
    is_conflict(store.signing_key_withdraw(first.times.id, UnixMicros(8), Some(&key(envelope.id)), &[]).await);
    store.signing_key_withdraw(first.times.id, UnixMicros(8), None, &[]).await.expect("withdrawn again");
    let stored = store.signing_keys().await.expect("read");
    assert_eq!(stored[0], second);
    assert_eq!((stored[1].times.withdrawn_at, &stored[1].private), (Some(UnixMicros(7)), &None));
    let unknown = store.signing_key_withdraw(KeyId::from_uuid(uuid()), UnixMicros(8), None, &[]).await;
    assert!(matches!(unknown, Err(Error::NotFound { what: "key" })), "{unknown:?}");
}

async fn a_data_key_goes_with_all_that_it_sealed_or_not_at_all(fixture: Fixture) {
    let store = &fixture.store;
    let (old, first) = begun(store).await;
    let new = envelope();
    is_conflict(store.envelope_rotate(old.id, &new, &[], &[]).await);
    assert_eq!(store.envelope_current().await.expect("read"), Some(old.clone()), "nothing was changed");
    let resealed = [Resealed { id: first.times.id, sealed: vec![8] }];
    store.envelope_rotate(old.id, &new, &resealed, &[]).await.expect("rotated");
    assert_eq!(store.envelope_current().await.expect("read"), Some(new.clone()));
    let stored = store.signing_keys().await.expect("read");
    assert_eq!(stored[0].private, Some(SealedSecret { by: new.id, bytes: vec![8] }));
    is_conflict(store.envelope_rotate(old.id, &envelope(), &resealed, &[]).await);
    // Whether the old data key is there still or not: it seals no more.
    for forgotten in [1, 0] {
        let late = key(old.id);
        let first = (first.times.id, UnixMicros(9));
        is_conflict(store.signing_key_rotate(Some(first), &late, UnixMicros(0), &[]).await);
        is_conflict(store.signing_key_withdraw(first.0, UnixMicros(9), Some(&late), &[]).await);
        assert_eq!(store.envelopes_forget().await.expect("done"), forgotten);
    }
    assert_eq!(store.signing_keys().await.expect("read"), stored, "nothing was changed");
}

async fn rotations_that_race_leave_one_that_signs(fixture: Fixture) {
    let (envelope, first) = begun(&fixture.store).await;
    let stores = [fixture.store.clone(), fixture.second_server().await];
    let racing = (0..8).map(|n| {
        let (store, new) = (stores[n % 2].clone(), key(envelope.id));
        let (old, withdraws) = (first.times.id, n % 3 == 0);
        tokio::spawn(async move {
            match withdraws {
                true => store.signing_key_withdraw(old, UnixMicros(9), Some(&new), &[]).await,
                false => store.signing_key_rotate(Some((old, UnixMicros(90))), &new, UnixMicros(0), &[]).await,
            }
        })
    });
    let mut done = 0;
    for task in racing.collect::<Vec<_>>() {
        match task.await.expect("no panic") {
            Ok(()) => done += 1,
            Err(Error::Conflict { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let stored = fixture.store.signing_keys().await.expect("read");
    assert_eq!((done, stored.len()), (1, 2), "{stored:?}");
    assert_eq!(stored.iter().filter(|key| key.private.is_some()).count(), 1);
}

async fn what_ended_long_ago_is_forgotten(fixture: Fixture) {
    let store = &fixture.store;
    let (envelope, mut newest) = begun(store).await;
    for retires_at in [10, 20, 30] {
        let new = key(envelope.id);
        let old = Some((newest.times.id, UnixMicros(retires_at)));
        store.signing_key_rotate(old, &new, UnixMicros(20), &[]).await.expect("rotated");
        newest = new;
    }
    let kept = store.signing_keys().await.expect("read").into_iter().map(|key| key.times.retires_at);
    assert_eq!(kept.collect::<Vec<_>>(), [None, Some(UnixMicros(30)), Some(UnixMicros(20))]);
}
