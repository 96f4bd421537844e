//! `POST /agent/v1/runs/{id}/secrets`: the secrets that the credentials of a run name, sealed.

use std::sync::Arc;

use axum::extract::State;
use holm_api::{
    problem::Problem,
    run_secrets::{AskSecrets, SealedSecrets},
};

use crate::{
    app::App,
    auth::speaker::Speaker,
    config::LEASES_BODY_BYTES_MAX,
    http::extract::{RunPath, Short},
    ops,
    problem::Failure,
};

/// Get the secrets of a run
///
/// They are sealed for the key that is given, and may be asked for again while the lease lives.
#[utoipa::path(
    post, path = "/agent/v1/runs/{id}/secrets", tag = "agent", operation_id = "run_secrets",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    request_body = AskSecrets,
    responses(
        (status = 200, description = "The secrets, sealed.", body = SealedSecrets),
        (status = 404, description = "`not_found`: one of them is not there any more.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_fence`, `agent_superseded`", body = Problem, content_type = "application/problem+json"),
    )
)]
pub async fn secrets(
    State(app): State<Arc<App>>,
    speaker: Speaker,
    RunPath(id): RunPath,
    Short(body): Short<LEASES_BODY_BYTES_MAX, AskSecrets>,
) -> Result<axum::Json<SealedSecrets>, Failure> {
    Ok(axum::Json(ops::run_secrets::run_secrets(&app, &speaker, id, body).await?))
}

#[cfg(test)]
mod tests {
    use holm_api::run_secrets::{Asking, Place, PublicKey};
    use holm_domain::ErrorCode;
    use http::StatusCode;
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;
    use crate::testing::World;

    async fn set(world: &World, name: &str, value: &str) {
        let body = json!({"name": name, "value": value, "for": ["api.example.org"]});
        assert_eq!(world.admin().post("/v1/secrets", &body).await.status, StatusCode::CREATED);
    }

    fn bearing(names: &[&str]) -> serde_json::Value {
        let credential = |name: &&str| json!({"to": "api.example.org", "secret": name, "fill": {"kind": "header", "name": format!("x-{}", name.to_lowercase()), "value": "{secret}"}});
        let credentials: Vec<_> = names.iter().map(credential).collect();
        json!({"root": {"kind": "host"}, "argv": ["true"], "allow": ["api.example.org"], "credentials": credentials})
    }

    fn ask(world: &World, fence: u64, key: PublicKey) -> AskSecrets {
        AskSecrets { agent: world.agent_id, instance: world.instance, fence, key }
    }

    #[tokio::test]
    async fn who_holds_the_lease_is_given_what_the_run_names_and_nothing_else() {
        let world = World::new().await;
        for (name, value) in [("ONE", "geheim-eins"), ("TWO", "geheim-zwei"), ("OTHER", "geheim-drei")] {
            set(&world, name, value).await;
        }
        let id = world.queue(bearing(&["TWO", "ONE"])).await;
        let held = world.claim().await;
        assert_eq!(held.run, id);
        let path = format!("/agent/v1/runs/{id}/secrets");
        let asking = Asking::new().unwrap();
        let body = ask(&world, held.fence, asking.key());
        let wrong = AskSecrets { fence: held.fence + 1, ..body };
        world.agent().post(&path, &wrong).await.problem(ErrorCode::StaleFence);
        let stranger = AskSecrets { agent: world.another_agent().await, ..body };
        world.agent().post(&path, &stranger).await.problem(ErrorCode::StaleFence);
        world.other_org_agent().post(&path, &body).await.problem(ErrorCode::NotFound);
        for caller in [world.member(), world.admin()] {
            caller.post(&path, &body).await.problem(ErrorCode::Forbidden);
        }
        let answer = world.agent().post(&path, &body).await;
        assert!(!format!("{answer:?}").contains("geheim"), "{answer:?}");
        let sealed: SealedSecrets = answer.json(StatusCode::OK);
        let opened = asking.open(Place { run: id, fence: held.fence }, &sealed).unwrap();
        let given: Vec<_> = opened.iter().map(|s| (s.name.as_str(), s.version, s.value.expose_secret())).collect();
        assert_eq!(given, [("ONE", 1, "geheim-eins"), ("TWO", 1, "geheim-zwei")]);
    }

    #[tokio::test]
    async fn a_lease_that_is_over_is_given_nothing_also_before_it_is_reaped() {
        let world = World::new().await;
        set(&world, "ONE", "geheim-eins").await;
        world.queue(bearing(&["ONE"])).await;
        let held = world.claim().await;
        let body = ask(&world, held.fence, Asking::new().unwrap().key());
        let path = format!("/agent/v1/runs/{}/secrets", held.run);
        world.clock.advance(world.app().config.lease.ttl);
        world.agent().post(&path, &body).await.problem(ErrorCode::StaleFence);
    }

    #[tokio::test]
    async fn the_newest_value_is_given_and_one_that_was_removed_is_named() {
        let world = World::new().await;
        set(&world, "ONE", "geheim-eins").await;
        let id = world.queue(bearing(&["ONE"])).await;
        let held = world.claim().await;
        let path = format!("/agent/v1/runs/{id}/secrets");
        let rotated = world.admin().put("/v1/secrets/ONE", &json!({"value": "geheim-neu"})).await;
        assert_eq!(rotated.status, StatusCode::OK);
        let asking = Asking::new().unwrap();
        let body = ask(&world, held.fence, asking.key());
        let sealed: SealedSecrets = world.agent().post(&path, &body).await.json(StatusCode::OK);
        let opened = asking.open(Place { run: id, fence: held.fence }, &sealed).unwrap();
        assert_eq!((opened[0].version, opened[0].value.expose_secret()), (2, "geheim-neu"));
        world.admin().delete("/v1/secrets/ONE").await;
        let problem = world.agent().post(&path, &body).await.problem(ErrorCode::NotFound);
        assert_eq!((problem.field.as_deref(), problem.value.as_deref()), (Some("secret"), Some("ONE")));
    }

    #[tokio::test]
    async fn a_run_that_names_what_is_not_kept_is_refused_where_it_is_submitted() {
        let world = World::new().await;
        set(&world, "ONE", "geheim-eins").await;
        let body = json!({"spec": bearing(&["ONE", "TWO"])});
        let problem = world.member().post("/v1/runs", &body).await.problem(ErrorCode::InvalidField);
        assert_eq!(problem.field.as_deref(), Some("spec.credentials[1].secret"));
        assert!(problem.detail.contains("holm secret set TWO"), "{problem}");
        let body = json!({"spec": bearing(&["ONE"])});
        world.other_org().post("/v1/runs", &body).await.problem(ErrorCode::InvalidField);
        assert_eq!(world.member().post("/v1/runs", &body).await.status, StatusCode::CREATED);
    }
}
