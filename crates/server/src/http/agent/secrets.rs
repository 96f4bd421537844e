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
/// They are sealed for the key that is given, and may be asked for again while the lease lives and until the command is started.
#[utoipa::path(
    post, path = "/agent/v1/runs/{id}/secrets", tag = "agent", operation_id = "run_secrets",
    params(("id" = String, Path, description = "The run, as `run_…`.")),
    request_body = AskSecrets,
    responses(
        (status = 200, description = "The secrets, sealed.", body = SealedSecrets),
        (status = 404, description = "`not_found`: one of them is not there any more.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`stale_fence`, `agent_superseded`, `conflict`: one of them is not bound any more to what the run wants it for, or the command was started.", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid_field`: they are longer together than a run may have.", body = Problem, content_type = "application/problem+json"),
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
    use holm_api::{
        agent::StartRun,
        run_secrets::{Asking, Place, PublicKey},
    };
    use holm_domain::{ErrorCode, run::SandboxInfo, secret::VALUE_BYTES_MAX};
    use http::StatusCode;
    use secrecy::ExposeSecret as _;
    use serde_json::json;
    use tracing::Level;

    use super::*;
    use crate::testing::{World, log::Log};

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
        let elsewhere = world.other_org().post("/v1/runs", &body).await.problem(ErrorCode::InvalidField);
        assert_eq!(elsewhere.field.as_deref(), Some("spec.credentials[0].secret"), "what it is bound to is not told");
        assert_eq!(world.member().post("/v1/runs", &body).await.status, StatusCode::CREATED);
    }

    async fn bind(world: &World, name: &str, rules: &[&str]) {
        let path = format!("/v1/secrets/{name}/for");
        assert_eq!(world.admin().put(&path, &json!({"for": rules})).await.status, StatusCode::OK);
    }

    /// A run that has one secret brought to these places.
    fn brought(to: &[&str]) -> serde_json::Value {
        let credential = |to: &&str| json!({"to": to, "secret": "ONE", "fill": {"kind": "bearer"}});
        let credentials: Vec<_> = to.iter().map(credential).collect();
        json!({"root": {"kind": "host"}, "argv": ["true"], "allow": to, "credentials": credentials})
    }

    #[tokio::test]
    async fn who_runs_has_a_secret_brought_to_where_it_is_bound_and_nowhere_else() {
        let world = World::new().await;
        set(&world, "ONE", "geheim-eins").await;
        bind(&world, "ONE", &["GET,POST api.example.org/v1", "git.example.org:8443"]).await;
        let submit = async |to: &[&str]| world.member().post("/v1/runs", &json!({"spec": brought(to)})).await;
        for to in [&["GET api.example.org/v1"][..], &["POST api.example.org/v1/things", "git.example.org:8443"]] {
            assert_eq!(submit(to).await.status, StatusCode::CREATED, "{to:?}");
        }
        for elsewhere in [
            "my.host",
            "GET my.host/v1",
            "GET api.example.org.my.host/v1",
            "GET api.example.org:8443/v1",
            "git.example.org",
            "GET api.example.org",
            "GET api.example.org/v10",
            "api.example.org/v1",
            "DELETE api.example.org/v1",
        ] {
            let refused = submit(&["git.example.org:8443", elsewhere]).await.problem(ErrorCode::InvalidField);
            assert_eq!(refused.field.as_deref(), Some("spec.credentials[1]"), "{elsewhere}");
            assert_eq!(refused.value, Some(format!("{elsewhere}=bearer:ONE")));
            for words in ["`ONE`", "`GET,POST api.example.org/v1, git.example.org:8443`", "`holm secret bind ONE --for"]
            {
                assert!(refused.detail.contains(words), "{elsewhere}: {refused}");
            }
        }
        bind(&world, "ONE", &["anywhere"]).await;
        assert_eq!(submit(&["my.host"]).await.status, StatusCode::CREATED);
    }

    #[tokio::test]
    async fn what_was_bound_anew_meanwhile_is_not_given() {
        let world = World::new().await;
        set(&world, "ONE", "geheim-eins").await;
        bind(&world, "ONE", &["anywhere"]).await;
        let id = world.queue(brought(&["git.example.org", "my.host"])).await;
        let held = world.claim().await;
        let path = format!("/agent/v1/runs/{id}/secrets");
        let asking = Asking::new().unwrap();
        let body = ask(&world, held.fence, asking.key());
        bind(&world, "ONE", &["git.example.org"]).await;
        let refused = world.agent().post(&path, &body).await.problem(ErrorCode::Conflict);
        assert_eq!(refused.field.as_deref(), Some("spec.credentials[1]"));
        assert_eq!(refused.value.as_deref(), Some("my.host=bearer:ONE"));
        for words in ["`ONE`", "`git.example.org`", "`my.host`", "`holm secret bind ONE --for"] {
            assert!(refused.detail.contains(words), "{refused}");
        }
        // The project's own, made meanwhile, is the one that the name stands for.
        bind(&world, "ONE", &["git.example.org", "my.host"]).await;
        let own = json!({"name": "ONE", "value": "geheim-zwei", "for": ["git.example.org"], "project": "default"});
        assert_eq!(world.admin().post("/v1/secrets", &own).await.status, StatusCode::CREATED);
        world.agent().post(&path, &body).await.problem(ErrorCode::Conflict);
        assert_eq!(world.admin().delete("/v1/secrets/ONE?project=default").await.status, StatusCode::NO_CONTENT);
        let sealed: SealedSecrets = world.agent().post(&path, &body).await.json(StatusCode::OK);
        let opened = asking.open(Place { run: id, fence: held.fence }, &sealed).unwrap();
        assert_eq!(opened[0].value.expose_secret(), "geheim-eins");
    }

    #[tokio::test]
    async fn nothing_is_given_once_the_command_was_started() {
        let world = World::new().await;
        set(&world, "ONE", "geheim-eins").await;
        world.queue(brought(&["api.example.org"])).await;
        let held = world.claim().await;
        let path = format!("/agent/v1/runs/{}/secrets", held.run);
        let body = ask(&world, held.fence, Asking::new().unwrap().key());
        world.agent().post(&path, &body).await.json::<SealedSecrets>(StatusCode::OK);
        let (agent, instance, fence) = (world.agent_id, world.instance, held.fence);
        let sandbox = SandboxInfo { agent, runtime: "process".into(), image_digest: None, unenforced: Vec::new() };
        let start = StartRun { instance, fence, sandbox };
        let started = world.agent().post(&format!("/agent/v1/runs/{}/start", held.run), &start).await;
        assert_eq!(started.status, StatusCode::NO_CONTENT);
        let refused = world.agent().post(&path, &body).await.problem(ErrorCode::Conflict);
        assert!(refused.detail.contains("was started"), "{refused}");
    }

    #[tokio::test]
    async fn more_than_a_proxy_masks_is_not_given() {
        let world = World::new().await;
        let longest = "ab".repeat(VALUE_BYTES_MAX / 2);
        for (name, value) in [("ONE", longest.as_str()), ("TWO", longest.as_str()), ("MORE", "geheim-drei")] {
            set(&world, name, value).await;
        }
        let id = world.queue(bearing(&["ONE", "TWO"])).await;
        let held = world.claim().await;
        let body = ask(&world, held.fence, Asking::new().unwrap().key());
        world.agent().post(&format!("/agent/v1/runs/{id}/secrets"), &body).await.json::<SealedSecrets>(StatusCode::OK);
        let id = world.queue(bearing(&["ONE", "TWO", "MORE"])).await;
        let held = world.claim().await;
        let body = ask(&world, held.fence, Asking::new().unwrap().key());
        let refused = world.agent().post(&format!("/agent/v1/runs/{id}/secrets"), &body).await;
        let refused = refused.problem(ErrorCode::InvalidField);
        assert_eq!(refused.field.as_deref(), Some("spec.credentials"));
        assert_eq!(refused.value.as_deref(), Some("8203 bytes"));
        assert!(refused.detail.contains("8192 bytes together"), "{refused}");
    }

    #[tokio::test]
    async fn the_log_tells_what_was_given_and_not_what_was_only_asked_for() {
        let world = World::new().await;
        set(&world, "ONE", "geheim-eins").await;
        let log = Log::default();
        let _kept = log.keep(Level::INFO);
        let id = world.queue(bearing(&["ONE"])).await;
        let held = world.claim().await;
        let path = format!("/agent/v1/runs/{id}/secrets");
        let (agent, instance, fence) = (world.agent_id, world.instance, held.fence);
        // By a key of nothing but zeros nobody can agree on anything.
        let nobody = json!({"agent": agent, "instance": instance, "fence": fence, "key": "A".repeat(43)});
        world.agent().post(&path, &nobody).await.problem(ErrorCode::InvalidField);
        assert_eq!(log.lines_with("a secret was given to a run"), 0);
        let body = ask(&world, held.fence, Asking::new().unwrap().key());
        world.agent().post(&path, &body).await.json::<SealedSecrets>(StatusCode::OK);
        assert_eq!(log.lines_with("a secret was given to a run"), 1);
    }
}
