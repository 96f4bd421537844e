//! What holds for every route: tokens, roles, problem documents, the committed description.

use std::collections::{BTreeMap, BTreeSet};

use holm_domain::{ErrorCode, access::Role};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::testing::{Caller, World};

/// Every operation of the description: method, path with ids filled in, and whether it needs a token.
fn operations() -> Vec<(Method, String, bool)> {
    let document: Value = serde_json::from_str(&super::openapi().to_json().unwrap()).unwrap();
    let id = "run_00000000000000000000000001";
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = match path {
                path if path.contains("tokens") => "tok_00000000000000000000000001",
                path if path.contains("keys") => "key_00000000000000000000000001",
                path if path.contains("hosts") => "agt_00000000000000000000000001",
                _ => id,
            };
            let open = operation["security"] == serde_json::json!([{}]);
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            found.push((method, path.replace("{id}", id), !open));
        }
    }
    found
}

#[tokio::test]
async fn every_route_but_four_needs_a_token_that_works() {
    let world = World::new().await;
    let mut open = Vec::new();
    for (method, path, needs_token) in operations() {
        if !needs_token {
            open.push(path);
            continue;
        }
        for caller in [world.nobody(), world.with_secret("holm_guess"), world.with_secret("Basic x")] {
            let answer = caller.send(method.as_str(), &path, "application/json", b"{".to_vec()).await;
            answer.problem(ErrorCode::Unauthenticated);
        }
    }
    assert_eq!(open, ["/.well-known/jwks.json", "/healthz", "/readyz", "/v1/openapi.json"]);
}

#[tokio::test]
async fn every_route_refuses_the_roles_that_it_is_not_for() {
    let world = World::new().await;
    let callers: BTreeMap<&str, Caller> = [
        (Role::Admin, world.admin()),
        (Role::Member, world.member()),
        (Role::Agent, world.agent()),
        (Role::Monitor, world.monitor().await),
    ]
    .map(|(role, caller)| (role.as_str(), caller))
    .into();
    let mut seen = 0;
    for (method, path, needs_token) in operations() {
        let allowed: &[&str] = match path.as_str() {
            // They know no roles.
            "/v1/run-token" | "/agent/v1/enrol" | "/agent/v1/session" => continue,
            "/v1/whoami" => &["admin", "member", "agent", "monitor"],
            "/metrics" => &["admin", "monitor"],
            path if path.starts_with("/agent/v1/") => &["agent"],
            path if path.starts_with("/v1/orgs/") && method == Method::POST => &["admin"],
            path if path == "/v1/orgs" || path.starts_with("/v1/pools") => &["admin"],
            path if path.starts_with("/v1/keys") || path == "/v1/audit" => &["admin"],
            path if path.starts_with("/v1/secrets") && method != Method::GET => &["admin"],
            path if path.starts_with("/v1/tokens") || path.starts_with("/v1/hosts/") => &["admin"],
            path if path.starts_with("/v1/") => &["admin", "member"],
            _ => continue,
        };
        for (role, caller) in callers.iter().filter(|_| needs_token) {
            let answer = caller.send(method.as_str(), &path, "application/json", b"{".to_vec()).await;
            let forbidden = answer.status == StatusCode::FORBIDDEN;
            assert_eq!(forbidden, !allowed.contains(role), "{method} {path} as {role}: {}", answer.status);
            seen += 1;
        }
    }
    assert!(seen >= 80, "{seen} combinations");
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_document() {
    let world = World::new().await;
    world.member().get("/v2/runs").await.problem(ErrorCode::NotFound);
    world.member().get("/").await.problem(ErrorCode::NotFound);
    let answer = world.member().send("PATCH", "/v1/runs", "application/json", Vec::new()).await;
    let allowed =
        answer.headers[http::header::ALLOW].to_str().unwrap().split(',').map(str::trim).collect::<BTreeSet<_>>();
    assert_eq!(allowed, ["GET", "HEAD", "POST"].into());
    answer.problem(ErrorCode::MethodNotAllowed);
}

#[tokio::test]
async fn the_description_is_served_and_is_the_committed_one() {
    let world = World::new().await;
    let served: Value = world.nobody().get("/v1/openapi.json").await.json(StatusCode::OK);
    let committed = include_str!("../../../../openapi/v1.json");
    let committed: Value = serde_json::from_str(committed).unwrap();
    assert!(served == committed, "openapi/v1.json is not up to date: `cargo xtask openapi` writes it");
    for (path, item) in served["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["responses"]["default"].is_object(), "{method} {path}");
            assert!(operation["operationId"].is_string(), "{method} {path}");
        }
    }
}
