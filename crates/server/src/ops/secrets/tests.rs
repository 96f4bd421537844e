//! Secrets are opened for the runs of their projects, and go from one data key to the next whatever happens meanwhile.

use holm_api::keys::EnvelopeRotated;
use holm_store::{Blobs, Store};
use http::StatusCode;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tracing::Level;

use super::*;
use crate::{
    ops::keys::envelope_replace,
    testing::{World, log::Log},
};

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

fn value(number: u32) -> String {
    format!("geheimnis-{number}-{}", number * 7)
}

async fn project(world: &World) -> ProjectId {
    world.app().store.project_by_name(world.org, "default").await.unwrap().unwrap().id
}

async fn keep(world: &World, text: &str, value: &str) {
    let body = json!({"name": text, "value": value, "for": ["anywhere"]});
    world.admin().post("/v1/secrets", &body).await.json::<SecretView>(StatusCode::CREATED);
}

/// Keeps secrets `s0`, `s1` and so on.
async fn keep_many(world: &World, count: u32) {
    for number in 0..count {
        keep(world, &format!("s{number}"), &value(number)).await;
    }
}

/// Each of them has its value.
async fn all_open(world: &World, count: u32) {
    let names: Vec<SecretName> = (0..count).map(|number| name(&format!("s{number}"))).collect();
    let opened = secrets_open(world.app(), world.org, project(world).await, &names).await.unwrap();
    let values: Vec<&str> = opened.iter().map(|opened| opened.value.expose_secret()).collect();
    assert_eq!(values, (0..count).map(value).collect::<Vec<_>>());
    assert!(opened.iter().zip(&names).all(|(opened, name)| opened.name == *name));
}

async fn rotate(world: &World) -> EnvelopeRotated {
    world.admin().post("/v1/keys/envelope/rotate", &()).await.json(StatusCode::OK)
}

/// The one data key that there is seals all.
async fn one_key_is_left(world: &World, count: u32) {
    let store = &world.app().store;
    assert_eq!(store.envelopes_retired().await.unwrap(), []);
    let current = store.envelope_current().await.unwrap().unwrap().id;
    let mut sealed = 0;
    for secret in store.secrets(world.org).await.unwrap() {
        let kept = store.secret_by_name(world.org, None, &secret.name).await.unwrap().unwrap();
        assert_eq!(kept.sealed.by, current, "{}", secret.name);
        sealed += 1;
    }
    assert_eq!(sealed, count);
}

#[tokio::test]
async fn a_run_has_the_secret_of_its_project_before_that_of_the_org() {
    let world = World::new().await;
    let (app, org, project) = (world.app(), world.org, project(&world).await);
    keep(&world, "token", &value(1)).await;
    keep(&world, "other", &value(2)).await;
    let of_project = json!({"name": "token", "value": value(3), "for": ["anywhere"], "project": "default"});
    world.admin().post("/v1/secrets", &of_project).await.json::<SecretView>(StatusCode::CREATED);
    let names = [name("other"), name("token")];
    let opened = secrets_open(app, org, project, &names).await.unwrap();
    let shown: Vec<(&str, u64, &str)> =
        opened.iter().map(|one| (one.name.as_str(), one.version, one.value.expose_secret())).collect();
    assert_eq!(shown, [("other", 1, value(2).as_str()), ("token", 1, value(3).as_str())]);
    assert!(!format!("{opened:?}").contains("geheim"));

    world.admin().put("/v1/secrets/other", &json!({"value": value(4)})).await.json::<SecretView>(StatusCode::OK);
    let opened = secrets_open(app, org, project, &names[..1]).await.unwrap();
    assert_eq!((opened[0].version, opened[0].value.expose_secret()), (2, value(4).as_str()));
}

#[tokio::test]
async fn one_that_is_not_there_is_named_with_the_way_out() {
    let world = World::new().await;
    let (app, project) = (world.app(), project(&world).await);
    keep(&world, "token", &value(1)).await;
    let names = [name("token"), name("missing")];
    let other = app.store.org_by_name("other").await.unwrap().unwrap().id;
    for (org, first) in [(world.org, "missing"), (other, "token")] {
        assert_eq!(bound_of(app, org, project, &names[0]).await.unwrap().is_some(), first != "token");
        let problem = secrets_open(app, org, project, &names).await.map(drop).unwrap_err().into_problem();
        assert_eq!((problem.code, problem.field.as_deref()), (ErrorCode::NotFound, Some("secret")));
        assert_eq!(problem.value.as_deref(), Some(first));
        assert!(problem.detail.contains(&format!("`holm secret set {first}`")), "{problem}");
    }
}

#[tokio::test]
async fn a_value_of_before_is_not_taken_for_the_one_of_now() {
    let world = World::new().await;
    let (app, project) = (world.app(), project(&world).await);
    keep(&world, "token", &value(1)).await;
    let before = app.store.secret_by_name(world.org, None, &name("token")).await.unwrap().unwrap();
    let put_back = Secret { version: 2, ..before.secret };
    app.store.secret_replace(&KeptSecret { secret: put_back, ..before }, None, &[]).await.unwrap();
    let refused = secrets_open(app, world.org, project, &[name("token")]).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Internal);
}

#[tokio::test]
async fn a_rotation_seals_all_anew_and_loses_nothing_that_comes_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("holm.db").display());
    let store = Store::open(&url, Blobs::memory()).await.unwrap();
    let world = World::on_store(store, |_| {}).await;
    keep_many(&world, 150).await;
    let coming = async {
        for number in 150..170 {
            keep(&world, &format!("s{number}"), &value(number)).await;
        }
    };
    let (rotated, ()) = tokio::join!(rotate(&world), coming);
    assert!((151..=171).contains(&rotated.resealed), "with the signing key: {rotated:?}");
    all_open(&world, 170).await;
    let again = rotate(&world).await;
    assert_eq!(again.resealed, 171);
    one_key_is_left(&world, 170).await;
    all_open(&world, 170).await;
}

#[tokio::test]
async fn rotations_at_once_leave_one_data_key() {
    let world = World::new().await;
    keep_many(&world, 30).await;
    let rotations = (0..4).map(|_| rotate(&world));
    futures_util::future::join_all(rotations).await;
    rotate(&world).await;
    one_key_is_left(&world, 30).await;
    all_open(&world, 30).await;
}

#[tokio::test]
async fn a_rotation_that_was_cut_off_is_finished_by_the_next_one() {
    let mut world = World::new().await;
    keep_many(&world, 120).await;
    let by = world.member_token().await;
    // Twice, the second time after one page.
    envelope_replace(world.app(), &by).await.unwrap();
    envelope_replace(world.app(), &by).await.unwrap();
    let store = world.app().store.clone();
    let oldest = store.envelopes_retired().await.unwrap().remove(0);
    let data = data_key(world.app().keys.root().unwrap(), &oldest).unwrap();
    let page = store.secrets_sealed_by(oldest.id, None, SECRETS_PAGE_MAX).await.unwrap();
    assert_eq!(reseal_page(world.app(), &oldest, &data, &page).await.unwrap(), SECRETS_PAGE_MAX);
    world.restart();
    all_open(&world, 120).await;
    keep(&world, "s120", &value(120)).await;
    world.admin().put("/v1/secrets/s110", &json!({"value": value(110)})).await.json::<SecretView>(StatusCode::OK);
    all_open(&world, 121).await;
    assert!(store.envelope_get(oldest.id).await.unwrap().is_some(), "something refers to it");

    assert_eq!(rotate(&world).await.resealed, 122, "all of them, and the signing key");
    assert_eq!(store.envelope_get(oldest.id).await.unwrap(), None);
    one_key_is_left(&world, 121).await;
    all_open(&world, 121).await;
}

#[tokio::test]
async fn one_that_is_damaged_is_told_and_holds_no_other_up() {
    let world = World::new().await;
    keep_many(&world, 5).await;
    let (store, log) = (&world.app().store, Log::default());
    let kept = store.secret_by_name(world.org, None, &name("s4")).await.unwrap().unwrap();
    let secret = Secret { version: 2, ..kept.secret.clone() };
    store.secret_replace(&KeptSecret { secret, ..kept.clone() }, None, &[]).await.unwrap();
    let _kept = log.keep(Level::ERROR);
    assert_eq!(rotate(&world).await.resealed, 5, "four, and the signing key");
    assert_eq!(log.lines_with("a secret cannot be opened"), 1);
    let retired = store.envelopes_retired().await.unwrap();
    assert_eq!(retired.iter().map(|envelope| envelope.id).collect::<Vec<_>>(), [kept.sealed.by]);
    all_open(&world, 4).await;
    world.admin().put("/v1/secrets/s4", &json!({"value": value(4)})).await.json::<SecretView>(StatusCode::OK);
    rotate(&world).await;
    one_key_is_left(&world, 5).await;
    all_open(&world, 5).await;
}
